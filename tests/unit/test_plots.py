import warnings

import numpy as np
import pytest
import torch
from matplotlib import rc_context, rcParams
from matplotlib.image import imread
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_genseg.plots.progress import CHOSEN, ProgressRecord
from nnunetv2_genseg.plots.samples import save_samples

pytestmark = pytest.mark.filterwarnings("error")


def filled_record():
    record = ProgressRecord()
    record.add(0, 0.0, {"l1": 0.5, "loss_adversarial": -0.1, "loss_discriminator": 2.0})
    record.add(1, 0.25, {"l1": 0.4, "acceptance_rate": 0.9})
    record.add(2, 0.5, {"l1": 0.3, "acceptance_rate": 0.8, "loss_heldout": 0.1, "hypergradient_norm": 1e-4})
    return record


def test_progress_survives_a_checkpoint():
    record, resumed = filled_record(), ProgressRecord()
    resumed.load_state_dict(record.state_dict())
    assert resumed.rows == record.rows
    assert len(resumed.rows) == 3
    assert resumed.rows[1] == {"epoch": 1.0, "share": 0.25, "l1": 0.4, "acceptance_rate": 0.9}


def test_state_is_a_copy():
    record = filled_record()
    record.state_dict()["rows"][0]["l1"] = 9.0
    assert record.rows[0]["l1"] == 0.5


def test_a_repeated_epoch_replaces_its_older_record():
    record = filled_record()
    record.add(1, 0.7, {"l1": 0.1})
    assert [row["epoch"] for row in record.rows].count(1.0) == 1
    assert record.rows[-1] == {"epoch": 1.0, "share": 0.7, "l1": 0.1}


def colourful(record, path):
    record.plot(path, 5)
    picture = imread(path)
    assert picture.shape[:2] == (640, 720)
    return (np.ptp(picture[..., :3], axis=-1) > 0.3).sum()


@pytest.mark.parametrize(
    "name",
    [
        "loss_adversarial",
        "flow",
        "a user's own",
        "acceptance_rate",
        "loss_heldout",
        "loss_synthetic",
        "hypergradient_norm",
        *CHOSEN,
    ],
)
def test_every_curve_is_drawn(name, tmp_path):
    record = ProgressRecord()
    for epoch in range(3):
        record.add(epoch, 0.0, {name: 0.1 + 0.4 * epoch})
    assert colourful(record, tmp_path / "full.png") > colourful(ProgressRecord(), tmp_path / "empty.png") + 50


def test_curves_that_begin_late_are_drawn(tmp_path):
    assert colourful(filled_record(), tmp_path / "full.png") > 200


def test_only_panels_with_something_to_show_are_drawn(tmp_path):
    """Without a generator and without feedback the share of synthetic patches alone."""

    def white_rows(record):
        record.plot(tmp_path / "progress.png", 5)
        return (imread(tmp_path / "progress.png")[..., :3].min(axis=(1, 2)) > 0.99).sum()

    alone = ProgressRecord()
    alone.add(0, 0.5, {"acceptance_rate": 1.0})
    assert white_rows(filled_record()) > white_rows(alone), "spaces between panels"


def example(dims, channels, mask):
    spatial = (12, 14) if dims == 2 else (6, 12, 14)
    noise = torch.Generator().manual_seed(0)
    image, drawn = (torch.randn(2, channels, *spatial, generator=noise) for _ in range(2))
    labels = torch.zeros(2, *spatial, dtype=torch.long)
    if mask == "labels":
        labels[..., 3:9, 4:10] = 1
        labels[..., 5:7, 5:8] = 2
        labels[..., -2:, -2:] = 3  # the ignore label of two foreground classes
    elif mask == "full":
        labels[:] = 1
    return image, labels, drawn, labels.roll(1, -1)


@pytest.mark.parametrize("mask", ["labels", "empty", "full"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_samples_are_drawn(tmp_path, dims, channels, mask):
    path = tmp_path / "samples.png"
    save_samples(path, *example(dims, channels, mask), 2, "epoch 1")
    picture = imread(path)[..., :3]
    assert picture.shape[1] > picture.shape[0] > 300
    assert picture.std() > 0.05
    blue = np.abs(picture - np.array([31, 119, 180]) / 255).max(axis=-1) < 0.02  # the first class of tab10
    assert (blue.sum() > 100) == (mask != "empty")


def test_a_constant_image_is_drawn(tmp_path):
    _, labels, *_ = example(2, 1, "labels")
    image = torch.zeros(2, 1, 12, 14)
    save_samples(tmp_path / "samples.png", image, labels, image, labels, 2, "constant")
    assert imread(tmp_path / "samples.png").std() > 0


def test_a_volume_is_shown_where_most_is_labelled(tmp_path):
    image, labels, *_ = example(3, 1, "empty")
    labels[:, 4, 3:9, 4:10] = 1
    image[:, :, 4] = 0.0
    flat = (image[:, :, 4], labels[:, 4])
    save_samples(tmp_path / "volume.png", image, labels, image, labels, 1, "same")
    save_samples(tmp_path / "slice.png", *flat, *flat, 1, "same")
    assert np.array_equal(imread(tmp_path / "volume.png"), imread(tmp_path / "slice.png"))


def test_pictures_are_the_same_after_one_of_nnunet_s(tmp_path):
    """Which sets large fonts for all that follow, as a training does every epoch."""
    shown = example(2, 1, "labels")

    def pictures():
        filled_record().plot(tmp_path / "progress.png", 5)
        save_samples(tmp_path / "samples.png", *shown, 2, "epoch 1")
        return imread(tmp_path / "progress.png"), imread(tmp_path / "samples.png")

    before = pictures()
    logger = LocalLogger()
    for values in logger.my_fantastic_logging.values():
        values.extend([0.5, 0.4])
    with rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.plot_progress_png(str(tmp_path))
        changed = rcParams["font.size"]
        after = pictures()
        assert rcParams["font.size"] == changed > 20, "nnU-Net's fonts are its own business"
    for first, second in zip(before, after, strict=True):
        assert np.array_equal(first, second)
