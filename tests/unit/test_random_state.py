import random

import numpy as np
import pytest
import torch
from toy import CPU, through_a_file

from nnunetv2_genseg.random_state import global_random_state, own_random_state, set_global_random_state


def draws():
    python, numpy = [random.random(), random.gauss(0, 1)], [np.random.rand(), np.random.randn()]
    return [*python, *numpy, float(torch.rand(())), float(torch.randn(()))]


@pytest.fixture
def global_states():
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.set_rng_state(kept[2])


def test_global_random_states_continue_from_a_file(global_states):
    random.gauss(0, 1)  # leaves a cached second value behind, as randn does
    np.random.randn()
    kept = through_a_file(global_random_state(CPU))
    expected = draws()
    assert draws() != expected
    set_global_random_state(kept, CPU)
    assert draws() == expected


def test_own_random_state_is_seeded_and_leaves_the_outside_untouched(global_states):
    before = global_random_state(CPU)
    with own_random_state(11):
        first = draws()
    with own_random_state(11):
        again = draws()
    with own_random_state(12):
        other = draws()
    assert first == again
    assert all(a != b for a, b in zip(first, other))
    outside = draws()
    set_global_random_state(before, CPU)
    assert draws() == outside


def test_own_random_state_is_left_also_by_an_error(global_states):
    before = global_random_state(CPU)
    with pytest.raises(KeyError), own_random_state(11):
        draws()
        raise KeyError
    outside = draws()
    set_global_random_state(before, CPU)
    assert draws() == outside
