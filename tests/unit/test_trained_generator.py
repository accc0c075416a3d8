"""Which checkpoint the generator is taken from."""

from nnunetv2_genseg.trainers.trained_generator import newest_state


def test_the_generator_is_that_of_the_last_epoch(tmp_path):
    assert newest_state(None) is None
    assert newest_state(tmp_path) is None
    for name in ("checkpoint_best.genseg-0040.pt", "checkpoint_latest.genseg-0050.pt", "checkpoint_latest.genseg-0045.pt"):
        (tmp_path / name).touch()
    assert newest_state(tmp_path) == (tmp_path / "checkpoint_latest.pth", 50)
    for name in ("checkpoint_best.genseg-0060.pt", "checkpoint_final.genseg-0060.pt"):
        (tmp_path / name).touch()
    assert newest_state(tmp_path) == (tmp_path / "checkpoint_final.pth", 60)
