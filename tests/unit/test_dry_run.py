import random

import numpy as np
import pytest
import torch

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.random_state import global_random_state
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.trainers.dry_run import memory_is_full, restored_afterwards

CPU = torch.device("cpu")


def small_loop(dims):
    plan = NetworkPlan((16,) * dims, (4, 4), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)
    return BilevelLoop(GenSegConfig(), plan, LabelCodec.from_labels([1], None), 1, CPU)


def batch(dims):
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, *(16,) * dims, generator=noise)
    return image, (image[:, 0] > 0.5).long()


def tensors(state):
    if isinstance(state, torch.Tensor):
        return [state.clone()]
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in tensors(value)]
    if isinstance(state, (list, tuple)):
        return [tensor for value in state for tensor in tensors(value)]
    return []


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second))


def state_of(loop, network, optimizer):
    return tensors([loop.state_dict(), network.state_dict(), optimizer.state_dict(), global_random_state(CPU)])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("failing", [False, True])
def test_nothing_of_the_block_is_left(dims, failing):
    loop, network = small_loop(dims), torch.nn.Linear(3, 3)
    optimizer = torch.optim.Adam(network.parameters())
    image, labels = batch(dims)

    def step():
        loop.sample(image, labels, None, loop.choose(len(image), 1.0))
        loop.training_step(image, labels)
        network(torch.rand(2, 3)).sum().backward()
        optimizer.step()
        random.random()
        np.random.rand()
        torch.rand(1)

    step()
    loop.means()
    before = state_of(loop, network, optimizer)
    try:
        with restored_afterwards(loop, CPU, network, optimizer):
            step()
            assert not equal(state_of(loop, network, optimizer), before)
            if failing:
                raise RuntimeError("CUDA out of memory")
    except RuntimeError as error:
        assert memory_is_full(error)
    assert equal(state_of(loop, network, optimizer), before)
    assert loop.means() == {}, "what was measured in the block is not reported"


def test_another_process_keeps_its_random_state():
    """The loop's own state is the first process's; loading it would give others a new one."""
    loop = small_loop(2)
    loop.rank = 1
    before = loop.rng.get_state(), loop.slot_rng.get_state()
    with restored_afterwards(loop, CPU):
        loop.sample(*batch(2), None, loop.choose(2, 1.0))
    assert torch.equal(loop.rng.get_state(), before[0])
    assert torch.equal(loop.slot_rng.get_state(), before[1])


@pytest.mark.parametrize("text, full", [("CUDNN_STATUS_ALLOC_FAILED", True), ("shapes do not match", False)])
def test_other_errors_are_not_about_memory(text, full):
    assert memory_is_full(RuntimeError(text)) == full
    assert memory_is_full(torch.cuda.OutOfMemoryError("whatever"))
