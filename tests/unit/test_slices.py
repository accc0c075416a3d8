"""Slices, outlines and the choice of how much of each image a page shows."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nnunetv2_genseg.plots import gallery
from nnunetv2_genseg.plots.gallery import DETAILS, Detail, fitted, strip
from nnunetv2_genseg.plots.slices import COLOURS, image_picture, legend, outline_picture, shown_size, window_of_volume


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)).convert("RGBA")).astype(int)


def test_slices_are_drawn_without_distortion():
    assert shown_size((40, 20), (1.0, 1.0), 80) == (40, 80)
    assert shown_size((40, 20), (1.0, 4.0), 80) == (80, 40)
    assert shown_size((1, 500), (1.0, 1.0), 100) == (100, 1), "a line is seen"


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_intensities_are_shown_in_the_window_and_slices_one_below_the_other(channels):
    image = np.zeros((channels, 2, 8, 8), np.float32)
    image[0, 1] = 100
    shown = pixels(image_picture(image, np.array([[0.0] * channels, [200.0] * channels]), (16, 16)))
    assert shown.shape == (32, 16, 4)
    assert np.abs(shown[:14, :, :3]).max() < 8
    assert np.abs(shown[16:, :, 0] - 128).mean() < 8
    assert (np.abs(shown[16:, :, 2] - shown[16:, :, 0]).mean() > 60) == (channels == 3), "RGB if there are three channels"


def test_the_window_of_a_large_volume_is_that_of_a_sample():
    image = np.linspace(0, 1000, 2 * 3_000_000).reshape(2, 3, 1000, 1000)
    window = window_of_volume(image)
    np.testing.assert_allclose(window[:, 0], [2.5, 497.5], atol=0.5)
    np.testing.assert_allclose(window[:, 1], [502.5, 997.5], atol=0.5)


@pytest.mark.parametrize("brightest", [200, 4000])
def test_photographs_keep_their_colours(brightest):
    image = np.zeros((3, 1, 4, 4))
    image[0], image[1, :, 0] = brightest, 100
    window = window_of_volume(image, colour=True)
    assert window.tolist() == [[0] * 3, [255 if brightest == 200 else 65535] * 3]


def test_the_legend_names_the_labels_that_are_outlined():
    found = legend({"background": 0, "b": 2, "a": 1, "whole": [1, 2], "one": (12,)})
    assert [name for name, _ in found] == ["b", "a", "one"]
    assert found[1][1] == "rgb({} {} {})".format(*COLOURS[0]) and found[0][1] == found[2][1] == "rgb(255 145 0)"


def test_outlines_stand_out_from_their_dark_edge():
    linear = (COLOURS / 255) ** 2.2
    assert ((linear @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05).min() > 6, "contrast to black"


def test_outlines_are_the_boundaries_of_all_labels():
    labels = np.zeros((2, 10, 10), np.int16)
    labels[0, 2:8, 2:8] = 1
    labels[0, 4:6, 4:6] = 12  # colours repeat after ten labels
    labels[1, :5] = -1
    drawn = pixels(outline_picture(labels, (10, 10)))
    first = drawn[:10]
    opaque = first[..., 3] == 255
    assert not opaque[:2].any() and not drawn[10:, :, 3].any(), "background is transparent"
    assert opaque[2, 2:8].all() and opaque[7, 2:8].all() and opaque[2:8, 2].all() and opaque[2:8, 7].all()
    np.testing.assert_array_equal(first[2, 2, :3], COLOURS[0])
    np.testing.assert_array_equal(first[4, 4, :3], COLOURS[1])
    assert not opaque[3, 3:7].any(), "between two labels there is one line"
    large = pixels(outline_picture(labels[:1], (100, 100)))[..., 3] == 255
    assert large[20, 20:80].all() and not large[22:38, 22:78].any(), "as thin in an enlarged picture"


def test_a_strip_shows_evenly_spread_slices_and_first_that_with_most_labels():
    labels = np.zeros((9, 4, 4), np.int64)
    labels[4, :2], labels[5] = 1, 1
    found = strip(np.zeros((1, 9, 4, 4)), labels, (1.0, 1.0), np.array([[0.0], [1.0]]), Detail(8, 3))
    assert (found["slices"], found["of"], found["first"], found["size"]) == ([0, 4, 8], 9, 1, [8, 8])
    assert pixels(base64.b64decode(found["image"])).shape[:2] == (12, 4), "no larger than the image is"
    assert pixels(base64.b64decode(found["outline"])).shape[:2] == (24, 8), "outlines are thin in small images, too"
    empty = strip(np.zeros((1, 9, 4, 4)), 0 * labels, (1.0, 1.0), np.array([[0.0], [1.0]]), Detail(8, 5))
    assert empty["first"] == 2


def drawn(name: str, detail: Detail) -> gallery.Strip:
    return {"image": name * detail.longest * detail.slices, "outline": "", "slices": [0]}


def test_the_finest_detail_is_taken_in_which_all_fit():
    groups = [("a", str(k)) for k in range(9)]
    costs = [11 * (detail.longest * detail.slices + 208) for detail in DETAILS]
    for detail, cost in zip(DETAILS, costs):
        pictures, found = fitted(groups, drawn, cost)
        assert found == detail and len(pictures) == 10


def test_the_first_groups_are_kept_when_not_all_fit():
    groups = [("a", "0"), ("a", "1"), ("b", "2")]
    least = DETAILS[-1].longest * DETAILS[-1].slices + 208
    for budget, names in ((2 * least, "a0"), (3.5 * least, "a01"), (0.5 * least, "")):
        pictures, _ = fitted(groups, drawn, int(budget))
        assert "".join(sorted(pictures)) == "".join(sorted(names))
