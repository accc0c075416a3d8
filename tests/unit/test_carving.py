import json

import pytest

from nnunetv2_genseg.trainers.carving import FILE_NAME, carve

CASES = [f"case_{i:03d}" for i in range(20)]


@pytest.mark.parametrize("count", [3, 4, 10, 20])
@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5])
def test_parts_are_sorted_disjoint_and_complete(count, fraction):
    carving = carve(CASES[:count], fraction, 0)
    assert carving.training == sorted(carving.training)
    assert carving.feedback == sorted(carving.feedback)
    assert not set(carving.training) & set(carving.feedback)
    assert sorted(carving.training + carving.feedback) == CASES[:count]
    assert carving.training
    assert carving.feedback


@pytest.mark.parametrize("count, fraction, held", [(10, 0.2, 2), (20, 0.2, 4), (4, 0.01, 1), (20, 0.5, 10)])
def test_the_fraction_is_held_aside(count, fraction, held):
    assert len(carve(CASES[:count], fraction, 0).feedback) == held


def test_the_seed_decides_which():
    assert carve(CASES, 0.2, 1) == carve(CASES, 0.2, 1)
    assert len({tuple(carve(CASES, 0.2, seed).feedback) for seed in range(10)}) > 5


def test_the_order_of_the_input_does_not_matter():
    assert carve(CASES[::-1], 0.2, 3) == carve(CASES, 0.2, 3)


@pytest.mark.parametrize("count, said", [(0, "0 training cases"), (1, "1 training case,"), (2, "2 training cases,")])
def test_too_few_cases_are_refused_with_the_way_out(count, said):
    with pytest.raises(ValueError, match=f"{said}.*at least 3.*GenSegTrainerNoFeedback"):
        carve(CASES[:count], 0.2, 0)


def test_the_split_is_recorded(tmp_path):
    carving = carve(CASES[:10], 0.2, 5)
    carving.write(tmp_path, 0.2, 5, 1)
    content = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    assert content == {"feedback": carving.feedback, "training": carving.training, "seed": 5, "budget": 10}


def test_turns_hold_all_cases_aside_one_after_the_other(tmp_path):
    turns = [carve(CASES[:10], 0.2, 5, turn) for turn in range(6)]
    assert sorted(case for turn in turns[:5] for case in turn.feedback) == sorted(CASES[:10])
    assert turns[5] == turns[0] == carve(CASES[:10], 0.2, 5)
    assert all(sorted(turn.training + turn.feedback) == sorted(CASES[:10]) for turn in turns)
    turns[0].write(tmp_path, 0.2, 5, 5)
    content = json.loads((tmp_path / FILE_NAME).read_text(encoding="utf-8"))
    assert content["turns"] == [turn.feedback for turn in turns[:5]]
