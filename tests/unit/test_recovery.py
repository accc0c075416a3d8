import pytest
import torch

from nnunetv2_genseg.recovery import LIMIT, Recovery


class Learner:
    def __init__(self):
        self.weight = torch.zeros(2)

    def state(self):
        return {"parts": [{"weight": self.weight}, ("name", 3)]}

    def restore(self, state):
        self.weight = state["parts"][0]["weight"]


@pytest.fixture
def learner():
    return Learner()


@pytest.fixture
def recovery(learner):
    return Recovery(learner.state, learner.restore)


def test_undo_goes_back_to_the_last_state_that_was_kept(learner, recovery):
    learner.weight += 1
    recovery.keep()
    learner.weight += 1
    recovery.undo("a fault")
    assert learner.weight.tolist() == [1, 1]


def test_what_is_learnt_after_an_undo_does_not_change_the_good_state(learner, recovery):
    recovery.undo("a fault")
    learner.weight += 1
    recovery.undo("a fault")
    assert learner.weight.tolist() == [0, 0]


def test_a_stretch_with_a_fault_is_not_taken_as_good_the_next_one_is(learner, recovery):
    recovery.undo("a fault")
    learner.weight += 1
    recovery.end_stretch()
    recovery.undo("a fault")
    assert learner.weight.tolist() == [0, 0]
    recovery.end_stretch()
    learner.weight += 2
    recovery.end_stretch()
    learner.weight += 1
    recovery.undo("a fault")
    assert learner.weight.tolist() == [2, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_kept(learner, recovery, bad):
    learner.weight = torch.tensor([0.0, bad])
    with pytest.raises(FloatingPointError, match="state holds NaN or infinity"):
        recovery.end_stretch()
    recovery.undo("a fault")
    assert learner.weight.tolist() == [0, 0]


def test_too_many_faults_in_a_row_end_it_with_the_cause(learner, recovery):
    for _ in range(LIMIT):
        recovery.undo("an earlier fault")
    with pytest.raises(FloatingPointError, match=r"the last fault; the generator was put back .* Lower generator.learning_rate"):
        recovery.undo("the last fault")


def test_a_clean_stretch_between_faults_starts_the_count_anew(learner, recovery):
    for _ in range(3 * LIMIT):
        recovery.undo("a fault")
        recovery.end_stretch()
        recovery.end_stretch()
    assert recovery.faults == 0


def test_a_state_that_is_not_finite_is_noticed_after_a_fault_too(learner, recovery):
    recovery.undo("a fault")
    learner.weight = torch.tensor([0.0, float("nan")])
    with pytest.raises(FloatingPointError, match="state holds NaN or infinity"):
        recovery.end_stretch()
