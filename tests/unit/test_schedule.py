import pytest
from toy import configured

from nnunetv2_genseg.bilevel.schedule import rotation_at, stage_at


def test_stages_over_the_schedule():
    config = configured(schedule={"warmup": 0.2, "ramp": 0.2, "tail": 0.2}, mixing={"share": 0.8}, feedback={"start": 0.5})
    shares = {0.0: 0.0, 0.19: 0.0, 0.2: 0.0, 0.3: 0.4, 0.4: 0.8, 0.79: 0.8, 0.8: 0.0, 0.99: 0.0}
    assert {at: stage_at(at, config).share for at in shares} == pytest.approx(shares)
    assert [stage_at(at, config).feedback for at in (0.0, 0.3, 0.49, 0.5, 0.79, 0.81)] == [False] * 3 + [True] * 2 + [False]
    assert [stage_at(at, config).tail for at in (0.0, 0.5, 0.79, 0.81, 0.99)] == [False] * 3 + [True] * 2


def test_the_share_never_falls_before_the_tail():
    config = configured()
    shares = [stage_at(i / 1000, config).share for i in range(849)]
    assert shares == sorted(shares)
    assert shares[-1] == config.mixing.share


def test_without_a_ramp_the_full_share_follows_the_warmup():
    config = configured(schedule={"warmup": 0.2, "ramp": 0.0, "tail": 0.0})
    assert [stage_at(at, config).share for at in (0.19, 0.2, 0.999)] == [0.0, 0.5, 0.5]
    assert not stage_at(0.999, config).tail


def test_the_share_of_unlabelled_images_rises_over_a_fifth_after_the_warmup():
    given = {"images": ["folder"], "share": 0.6}
    config = configured(schedule={"warmup": 0.2, "ramp": 0.0, "tail": 0.2}, unlabelled=given)
    shares = {0.0: 0.0, 0.19: 0.0, 0.2: 0.0, 0.3: 0.3, 0.4: 0.6, 0.79: 0.6, 0.8: 0.0}
    assert {at: stage_at(at, config).unlabelled for at in shares} == pytest.approx(shares)
    without = configured(schedule={"warmup": 0.2, "ramp": 0.0, "tail": 0.2}, unlabelled={"share": 0.6})
    assert {stage_at(at, without).unlabelled for at in shares} == {0.0}


def test_feedback_waits_for_the_warmup_and_for_being_enabled():
    early = configured(schedule={"warmup": 0.4}, feedback={"start": 0.1})
    assert not stage_at(0.3, early).feedback
    assert not stage_at(0.4, early).feedback, "no patch is synthetic yet"
    assert stage_at(0.5, early).feedback
    assert not stage_at(0.5, configured(feedback={"enabled": False})).feedback


def test_rotations_divide_the_time_of_the_feedback_equally():
    config = configured(schedule={"warmup": 0.2, "tail": 0.2}, feedback={"start": 0.3, "rotations": 5})
    found = {at: rotation_at(at, config) for at in (0.0, 0.29, 0.3, 0.39, 0.4, 0.55, 0.6, 0.79, 0.8, 0.99)}
    assert found == {0.0: None, 0.29: None, 0.3: 0, 0.39: 0, 0.4: 1, 0.55: 2, 0.6: 3, 0.79: 4, 0.8: None, 0.99: None}


@pytest.mark.parametrize("feedback", [{"rotations": 1}, {"cases": ["a", "b"]}], ids=["one rotation", "named cases"])
def test_cases_of_a_single_rotation_are_held_out_from_the_start_on(feedback):
    config = configured(feedback=feedback)
    assert [rotation_at(at, config) for at in (0.0, 0.3, 0.84, 0.86)] == [0, 0, 0, None]


def test_without_feedback_no_case_is_held_out():
    config = configured(feedback={"enabled": False})
    assert {rotation_at(i / 20, config) for i in range(20)} == {None}


def test_a_rotation_begins_where_rounding_puts_its_first_iteration():
    """0.3 + 0.55 * 2 / 5 is no exact number: its iteration belongs to the part that begins."""
    config = configured()
    start, end = config.feedback_span
    for part in range(5):
        assert rotation_at(start + (end - start) * part / 5, config) == part
