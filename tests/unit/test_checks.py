import pytest

from nnunetv2_genseg.trainers.checks import require_previous_stage

CASES = ["case.1", "case_2", "case_3", "case_4", "case_5"]
REMEDY = "first train configuration 3d_lowres with -tr GenSegTrainer to its end, every fold or `all`"


def require(folder):
    require_previous_stage(folder, CASES, "3d_lowres", "GenSegTrainer")


@pytest.mark.parametrize("ending", ["b2nd", "npz"])
def test_a_first_stage_that_segmented_every_case_is_enough(ending, tmp_path):
    for case in [*CASES, "of another fold"]:
        (tmp_path / f"{case}.{ending}").touch()
    require(tmp_path)


def test_cases_that_the_first_stage_did_not_segment_are_named(tmp_path):
    (tmp_path / "case_2.b2nd").touch()
    names = "case.1, case_3, case_4, ..."
    with pytest.raises(ValueError, match=rf"lacks the segmentations of 4 of 5 training cases \({names}\); {REMEDY}"):
        require(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}/none, the previous stage's segmentations, is missing; {REMEDY}"):
        require(tmp_path / "none")
