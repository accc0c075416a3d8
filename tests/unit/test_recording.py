"""By-products of a training: bars, pictures and lines in the log never end it (kind: a by-product ends a training)."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toy import Setting
from tqdm import tqdm

from nnunetv2_genseg.trainers import recording
from nnunetv2_genseg.trainers.progress_bar import ProgressBar, with_progress
from nnunetv2_genseg.trainers.recording import PROGRESS_FILE, SAMPLES_FILE, Recorder


class Terminal(io.StringIO):
    """One that goes away after some writes, as when the connection to a server breaks."""

    def __init__(self, writes, error):
        super().__init__()
        self.writes, self.error = writes, error

    def isatty(self):
        return True

    def write(self, text):
        self.writes -= 1
        if self.writes < 0:
            raise self.error
        return super().write(text)


def closed():
    file = io.StringIO()
    file.close()
    return file


TERMINALS = {
    "none": lambda: None,
    "closed": closed,
    **{
        f"{type(error).__name__} after {writes}": lambda writes=writes, error=error: Terminal(writes, error)
        for error in (OSError(5, "Input/output error"), BrokenPipeError(32, "Broken pipe"), ValueError("I/O operation"))
        for writes in (0, 1, 3)
    },
}


@pytest.mark.parametrize("terminal", TERMINALS.values(), ids=TERMINALS.keys())
def test_a_bar_without_a_terminal_is_no_error(terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal())
    bar = ProgressBar(50, "steps")
    for _ in range(50):
        bar.step()
    bar.close()
    bar.step()
    assert list(with_progress(range(30), "steps")) == list(range(30))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lock_is_free).result(), "tqdm's own thread waits for it when the program ends"


def lock_is_free():
    """Whether another thread than the one that draws bars can have tqdm's lock."""
    taken = [lock for lock in tqdm.get_lock().locks if lock.acquire(False)]
    for lock in taken:
        lock.release()
    return len(taken) == len(tqdm.get_lock().locks)


def test_a_terminal_shows_the_bar(monkeypatch):
    terminal = Terminal(1000, OSError())
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(with_progress(range(30), "drawing")) == list(range(30))
    assert "drawing" in terminal.getvalue()


@pytest.mark.parametrize("blocked", [PROGRESS_FILE, SAMPLES_FILE])
def test_a_picture_that_cannot_be_written_is_told_once_and_the_other_is_drawn(blocked, tmp_path):
    setting, said = Setting(), []
    (tmp_path / blocked).mkdir()
    recorder = Recorder(said.append, shown=True)
    for epoch in range(2):
        recorder.refresh(tmp_path, epoch, 2, lambda: (setting.image, setting.labels), setting.loop)
    (line,) = said
    assert blocked in line
    assert "Is a directory" in line
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted({PROGRESS_FILE, SAMPLES_FILE} - {blocked})


def test_pictures_take_a_small_part_of_the_time_and_are_there_after_the_first_and_the_last_epoch(tmp_path, monkeypatch):
    setting, clock, drawn = Setting(), [1000.0], []
    monkeypatch.setattr(recording.time, "monotonic", lambda: clock[0])

    def patches():
        clock[0] += 2.0  # the pictures take two seconds
        drawn.append(epoch)
        return setting.image, setting.labels

    recorder = Recorder(print, shown=True)
    for epoch in range(50):
        clock[0] += 30.0
        recorder.refresh(tmp_path, epoch, 50, patches, setting.loop)
    assert drawn == [0, 14, 28, 42, 49]


@pytest.mark.parametrize("spatial", [(1, 16), (16, 1), (1, 8, 8), (8, 1, 8), (8, 8, 1)])
def test_patches_of_one_voxels_width_are_drawn(spatial, tmp_path):
    said, setting = [], Setting(len(spatial))

    class Loop:
        codec = setting.codec

        def preview(self, image, labels):
            return setting.sampler.replace(image, labels, {"deformation": [0, 1]}, torch.Generator()).pairs

    image = torch.randn(2, 1, *spatial)
    Recorder(said.append, shown=True).refresh(tmp_path, 0, 1, lambda: (image, (image[:, 0] > 0).long()), Loop())
    assert said == []
    assert (tmp_path / SAMPLES_FILE).is_file()
