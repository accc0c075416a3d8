import pytest
import torch
from toy import CODECS, real_pairs, seeded

from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.synthesis.pair_features import SMALLEST, pair_features

KINDS = pytest.mark.parametrize(("codec", "dims", "channels"), [
    ("labels", 2, 3), ("labels", 3, 1), ("regions", 2, 1), ("ignore", 3, 2), ("regions+ignore", 2, 3),
])  # fmt: skip


def named(image, labels, codec):
    """The features by their kind, class and channel."""
    found, channels, foreground = pair_features(image, labels, codec.foreground), image.shape[1], codec.foreground
    regions = 2 * (foreground + 1) * channels
    parts = found.split([regions, regions, regions, regions, foreground * channels, foreground, foreground], dim=1)
    return dict(zip(["mean", "spread", "gradient", "fine", "contrast", "fraction", "surface"], parts, strict=True))


def of_class(values, number, channels, border=False, classes=3):
    """(B, C) values of a class's inside or border."""
    return values[:, (number + classes * border) * channels :][:, :channels]


@KINDS
def test_there_is_a_line_of_finite_features_for_every_pair(codec, dims, channels):
    image, labels = real_pairs(CODECS[codec], dims, channels)
    found = named(image, labels, CODECS[codec])
    assert all(len(values) == 3 for values in found.values())
    assert all(values.isfinite().all() for name, values in found.items() if name in ("contrast", "fraction", "surface"))
    assert of_class(found["mean"], 2, channels, border=True).isfinite().all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_figures_are_those_that_can_be_counted(dims):
    """A cube of intensity 2 with a side of 4 on a background of −1, of which an outer layer of voxels touches the other."""
    labels = torch.zeros(1, *(8,) * dims, dtype=torch.long)
    labels[(0, *(slice(2, 6),) * dims)] = 1
    image = torch.where(labels == 1, 2.0, -1.0)[:, None]
    found = {name: values[0] for name, values in named(image, labels, CODECS["labels"]).items()}
    rim = 4**dims - 2**dims
    nan = pytest.approx(torch.nan, nan_ok=True)
    assert found["fraction"].tolist() == pytest.approx([4**dims / 8**dims, 0])
    assert found["surface"].tolist() == [pytest.approx(rim / 4**dims), nan]
    assert found["contrast"].tolist() == [pytest.approx(3), nan]
    assert found["mean"].tolist() == [pytest.approx(-1), pytest.approx(2), nan, pytest.approx(-1), pytest.approx(2), nan]
    assert found["spread"][:2].exp().tolist() == pytest.approx([SMALLEST] * 2)
    assert found["gradient"][1].exp() == pytest.approx(SMALLEST), "inside"
    assert found["gradient"][4].exp() > 1, "at the border"


@KINDS
def test_a_blurred_boundary_and_noise_are_seen_where_they_are(codec, dims, channels):
    image, labels = real_pairs(CODECS[codec], dims, channels)
    before = named(image, labels, CODECS[codec])
    blurred = named(neighbourhood_mean(image), labels, CODECS[codec])
    assert (blurred["contrast"].abs() < before["contrast"].abs()).float().mean() > 0.8
    for name in ("gradient", "fine"):
        assert (of_class(blurred[name], 2, channels, border=True) < of_class(before[name], 2, channels, border=True)).all()
    noise = 5 * torch.randn(image.shape, generator=seeded(5)) * (labels == 2)[:, None]
    noisy = named(image + noise, labels, CODECS[codec])
    assert (of_class(noisy["fine"], 2, channels, border=True) > of_class(before["fine"], 2, channels, border=True)).all()
    torch.testing.assert_close(noisy["fraction"], before["fraction"])


@KINDS
def test_where_a_pair_lies_in_the_batch_and_how_it_is_turned_does_not_matter(codec, dims, channels):
    image, labels = real_pairs(CODECS[codec], dims, channels)
    found = pair_features(image, labels, 2)
    torch.testing.assert_close(pair_features(image[1:], labels[1:], 2), found[1:], equal_nan=True)
    torch.testing.assert_close(pair_features(image.flip(-1), labels.flip(-1), 2), found, equal_nan=True, rtol=1e-4, atol=1e-4)
    turned = pair_features(image.transpose(-1, -2), labels.transpose(-1, -2), 2)
    torch.testing.assert_close(turned, found, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_ignored_is_no_class_and_no_boundary(dims):
    codec = CODECS["ignore"]
    image, labels = real_pairs(codec, dims, 1, count=1)
    ignored = labels == 3
    assert ignored.any()
    found = named(image, labels, codec)
    plain = named(image, torch.where(ignored, 0, labels), codec)
    torch.testing.assert_close(found["contrast"], plain["contrast"])
    torch.testing.assert_close(found["surface"], plain["surface"])
    assert (found["fraction"] > plain["fraction"]).all(), "of what is known"
    changed = named(image + 100.0 * _far_inside(ignored)[:, None], labels, codec)
    torch.testing.assert_close(changed["mean"], found["mean"], equal_nan=True)
    torch.testing.assert_close(changed["gradient"], found["gradient"], equal_nan=True)


def _far_inside(mask):
    """Voxels of a mask whose neighbours are in it, too."""
    return neighbourhood_mean(mask[:, None].float())[:, 0] == 1
