"""Which cases are held out at each moment (kind: case lists are sets)."""

import json
from types import SimpleNamespace

import pytest
from toy import configured

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.heldout_cases import HeldOutCases
from nnunetv2_genseg.trainers.holdout import FILE_NAME

CASES = [f"case_{i:03d}" for i in range(10)]


def held_out(shown=None, **feedback):
    """For a trainer of which only the settings are read."""
    shown = {case: {"a"} for case in CASES} if shown is None else shown
    return HeldOutCases(SimpleNamespace(genseg=configured(feedback=feedback)), lambda trainer, cases: shown)


def test_each_rotation_holds_other_cases_out_and_all_train_before_and_after():
    cases = held_out(rotations=3)
    start, end = cases.trainer.genseg.feedback_span
    seen = []
    assert cases.move_to(0.0)
    assert cases.split(CASES, []) == CASES
    assert cases.described() == "none"
    for part in range(3):
        assert cases.move_to(start + (end - start) * (part + 0.5) / 3)
        training = cases.split(CASES, [])
        assert sorted([*training, *cases.cases.held_out]) == CASES
        assert cases.described() == ", ".join(cases.cases.held_out)
        seen += cases.cases.held_out
    assert len(set(seen)) == len(seen) == 3
    assert cases.move_to(0.99)
    assert cases.split(CASES, []) == CASES


def test_within_a_rotation_nothing_changes():
    cases = held_out(rotations=1)
    assert not cases.move_to(0.0)
    training = cases.split(CASES, [])
    assert len(training) == 9
    assert not cases.move_to(0.5)
    assert cases.split(CASES, []) == training


def test_named_cases_are_held_out_from_the_start_on():
    cases = held_out(cases=["case_003", "case_007"])
    assert cases.split(CASES, []) == [case for case in CASES if case not in ("case_003", "case_007")]
    assert cases.described() == "case_003, case_007"
    with pytest.raises(GenSegError, match="no training case of this fold is named case_99"):
        held_out(cases=["case_99"]).split(CASES, [])


def test_without_feedback_all_cases_train():
    cases = held_out(enabled=False)
    assert cases.split(CASES, []) == CASES
    assert cases.described() == "none"


def test_a_case_that_is_listed_twice_is_held_out_from_both_places():
    cases = held_out(rotations=1)
    training = cases.split([*CASES, *CASES], ["v", "v"])
    assert len(training) == len(set(training)) == 9
    assert not set(training) & set(cases.cases.held_out)
    assert cases.of_fold == {"training": CASES, "validation": ["v"]}
    assert held_out(enabled=False).split([*CASES, *CASES], []) == CASES


def test_classes_that_the_held_out_cases_lack_are_told(tmp_path):
    shown = {case: {"liver"} for case in CASES} | {"case_002": {"liver", "tumour", "cyst"}, "case_005": set()}
    named = held_out(shown, cases=["case_005", "case_006"])
    named.split(CASES, [])
    assert named.described() == "case_005, case_006; none of them shows cyst, tumour"
    rotating = held_out(shown, rotations=10)
    for part in range(10):
        rotating.rotation = part
        rotating.split(CASES, [])
        assert rotating.cases.held_out != ["case_005"], "others have foreground"
    rotating.write(tmp_path)
    recorded = json.loads((tmp_path / FILE_NAME).read_text())["rotations"]
    assert len(recorded) == 10
    assert recorded[-1] == rotating.cases.held_out
