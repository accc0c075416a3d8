"""The cases in two parts (kind: case lists are sets)."""

import json

import pytest

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.holdout import FILE_NAME, hold_out

CASES = [f"case_{i:03d}" for i in range(20)]


@pytest.mark.parametrize("count", [3, 4, 10, 20])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5])
def test_parts_are_sorted_disjoint_and_complete(count, fraction):
    parts = hold_out(CASES[:count], fraction, 0)
    assert parts.training == sorted(parts.training)
    assert parts.held_out == sorted(parts.held_out)
    assert not set(parts.training) & set(parts.held_out)
    assert sorted(parts.training + parts.held_out) == CASES[:count]
    assert len(parts.training) >= 2
    assert parts.held_out


@pytest.mark.parametrize("count, fraction, held", [(10, 0.2, 2), (20, 0.2, 4), (4, 0.01, 1), (20, 0.5, 10), (3, 0.5, 1)])
def test_the_fraction_is_held_out(count, fraction, held):
    assert len(hold_out(CASES[:count], fraction, 0).held_out) == held


def test_the_seed_decides_which():
    assert hold_out(CASES, 0.2, 1) == hold_out(CASES, 0.2, 1)
    assert len({tuple(hold_out(CASES, 0.2, seed).held_out) for seed in range(10)}) > 5


def test_the_order_of_the_input_does_not_matter():
    assert hold_out(CASES[::-1], 0.2, 3) == hold_out(CASES, 0.2, 3)


@pytest.mark.parametrize("count, said", [(0, "0 training cases"), (1, "1 training case,"), (2, "2 training cases,")])
def test_too_few_cases_are_refused_with_the_way_out(count, said):
    with pytest.raises(GenSegError, match=f"{said}.*at least 3.*GenSegTrainerNoFeedback"):
        hold_out(CASES[:count], 0.2, 0)


def test_named_cases_are_held_out_whatever_the_seed():
    names = ["case_003", "case_001"]
    parts = hold_out(CASES[:5], names, 7)
    assert parts.held_out == ["case_001", "case_003"]
    assert parts.training == ["case_000", "case_002", "case_004"]
    assert hold_out(CASES[:5], names, 8) == parts


def test_names_of_other_cases_are_refused_with_near_ones():
    with pytest.raises(GenSegError, match=r"no training case of this fold is named case_01x; did you mean case_01\d"):
        hold_out(CASES, ["case_000", "case_01x"], 0)
    known = r"named other; they are case_000, case_001, case_002, case_003, case_004, \.\.\."
    with pytest.raises(GenSegError, match=known):
        hold_out(CASES, ["other"], 0)


def test_two_cases_must_remain_to_train_on():
    assert len(hold_out(CASES[:4], CASES[:2], 0).training) == 2
    with pytest.raises(GenSegError, match=r"names 3 of the fold's 4 training cases, so that 1 remain.*at least 2 must"):
        hold_out(CASES[:4], CASES[:3], 0)


def test_the_split_is_recorded(tmp_path):
    parts = hold_out(CASES[:10], 0.2, 5)
    parts.write(tmp_path, 5, [parts.held_out])
    content = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    assert content == {"held_out": parts.held_out, "training": parts.training, "seed": 5, "cases": 10}


def test_rotations_hold_all_cases_out_one_after_the_other(tmp_path):
    rotations = [hold_out(CASES[:10], 0.2, 5, rotation) for rotation in range(6)]
    assert sorted(case for parts in rotations[:5] for case in parts.held_out) == CASES[:10]
    assert rotations[5] == rotations[0] == hold_out(CASES[:10], 0.2, 5)
    assert all(sorted(parts.training + parts.held_out) == CASES[:10] for parts in rotations)
    rotations[0].write(tmp_path, 5, [parts.held_out for parts in rotations[:5]])
    content = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    assert content["rotations"] == [parts.held_out for parts in rotations[:5]]


def test_a_case_that_is_named_twice_is_one_case():
    assert hold_out(CASES + CASES[:7], 0.2, 3) == hold_out(CASES, 0.2, 3)
    with pytest.raises(GenSegError, match="2 training cases,"):
        hold_out(["a", "b", "a", "b"], 0.2, 0)


@pytest.mark.parametrize("count, fraction", [(10, 0.1), (10, 0.2), (13, 0.3)])
@pytest.mark.parametrize("shown", [2, 3, 5])
def test_no_rotation_is_without_foreground_where_others_have_it(count, fraction, shown):
    for seed in range(10):
        foreground = CASES[:shown]
        for rotation in range(6):
            plain = hold_out(CASES[:count], fraction, seed, rotation)
            parts = hold_out(CASES[:count], fraction, seed, rotation, foreground)
            assert set(parts.held_out) & set(foreground)
            assert set(parts.training) & set(foreground) or len(plain.held_out) > 1
            assert len(parts.held_out) == len(plain.held_out)
            if set(plain.held_out) & set(foreground):
                assert parts == plain, "no other change"


def test_the_only_case_with_foreground_is_not_held_out_all_the_time():
    held = [hold_out(CASES[:10], 0.1, 0, rotation, CASES[:1]).held_out for rotation in range(10)]
    assert held.count(CASES[:1]) == 1
