import pytest
import torch
from toy import through_a_file

from nnunetv2_genseg.bilevel.rollback import LIMIT, Rollback


class Learner:
    def __init__(self):
        self.weight = torch.zeros(2)

    def state_dict(self):
        return {"parts": [{"weight": self.weight}, ("name", 3)]}

    def load_state_dict(self, state):
        self.weight = state["parts"][0]["weight"]


@pytest.fixture
def learner():
    return Learner()


@pytest.fixture
def rollback(learner):
    return Rollback(learner.state_dict, learner.load_state_dict)


def test_undo_goes_back_to_the_last_state_that_was_kept(learner, rollback):
    learner.weight += 1
    rollback.keep()
    learner.weight += 1
    rollback.undo("a fault")
    assert learner.weight.tolist() == [1, 1]


def test_what_is_learned_after_an_undo_does_not_change_the_good_state(learner, rollback):
    rollback.undo("a fault")
    learner.weight += 1
    rollback.undo("a fault")
    assert learner.weight.tolist() == [0, 0]


def test_an_epoch_with_a_fault_is_not_taken_as_good_the_next_one_is(learner, rollback):
    rollback.undo("a fault")
    learner.weight += 1
    rollback.end_epoch()
    rollback.undo("a fault")
    assert learner.weight.tolist() == [0, 0]
    rollback.end_epoch()
    learner.weight += 2
    rollback.end_epoch()
    learner.weight += 1
    rollback.undo("a fault")
    assert learner.weight.tolist() == [2, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_kept(learner, rollback, bad):
    learner.weight = torch.tensor([0.0, bad])
    with pytest.raises(FloatingPointError, match="state holds NaN or infinity"):
        rollback.end_epoch()
    rollback.undo("a fault")
    assert learner.weight.tolist() == [0, 0]


def test_too_many_faults_in_a_row_end_it_with_the_cause(learner, rollback):
    for _ in range(LIMIT):
        rollback.undo("an earlier fault")
    said = r"the last fault; the generator returned to its last finite state 5 times.* Lower generator.learning_rate"
    with pytest.raises(FloatingPointError, match=said):
        rollback.undo("the last fault")


def test_a_clean_epoch_between_faults_starts_the_count_anew(learner, rollback):
    for _ in range(3 * LIMIT):
        rollback.undo("a fault")
        rollback.end_epoch()
        rollback.end_epoch()
    assert rollback.faults == 0


def test_a_state_that_is_not_finite_is_noticed_after_a_fault_too(learner, rollback):
    rollback.undo("a fault")
    learner.weight = torch.tensor([0.0, float("nan")])
    with pytest.raises(FloatingPointError, match="state holds NaN or infinity"):
        rollback.end_epoch()


@pytest.mark.parametrize("at_the_end", [False, True])
@pytest.mark.parametrize("faults", [0, 2])
def test_a_resumed_one_goes_on_as_it_would_have(learner, rollback, faults, at_the_end):
    for _ in range(faults):
        rollback.undo("a fault")
    learner.weight += 1
    rollback.end_epoch()
    if at_the_end:
        rollback.undo("a fault that end_epoch found")
    resumed = Rollback(learner.state_dict, learner.load_state_dict)
    resumed.load_state_dict(through_a_file(rollback.state_dict()))
    states = []
    for one in (rollback, resumed):
        learner.weight = torch.full((2,), 5.0)
        one.end_epoch()
        after = one.faults
        one.undo("a fault")
        states.append((after, one.faults, learner.weight.tolist()))
    assert states[0] == states[1]
    assert states[0][0] == (faults + 1 if at_the_end else 0)
