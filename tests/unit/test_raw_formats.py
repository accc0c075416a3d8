"""Every format is written as it was read, and every normalisation of nnU-Net is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    CTNormalization,
    ImageNormalization,
    NoNormalization,
    RescaleTo01Normalization,
    RGBTo01Normalization,
    ZScoreNormalization,
)
from skimage import io

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.raw_cases import Line
from nnunetv2_genseg.trainers.raw_formats import (
    as_type,
    channels_in,
    holds_whole_numbers,
    require_format,
    write_images,
    write_mask,
)
from tests.full_disk import room

RNG = np.random.default_rng(0)
TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
PROPERTIES = {"mean": 40.0, "std": 90.0, "percentile_00_5": -150.0, "percentile_99_5": 300.0}


def voxels(kind: str, *shape: int) -> np.ndarray:
    return RNG.normal(scale=40, size=shape).astype(kind) if kind[0] == "f" else RNG.integers(0, 250, shape).astype(kind)


def with_sitk(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5)[: array.ndim])
    image.SetOrigin((-3.0, 5.0, 11.0)[: array.ndim])
    if array.ndim == 3:
        image.SetDirection(TURNED)
    sitk.WriteImage(image, str(path))


def with_nibabel(path: Path, array: np.ndarray) -> None:
    affine = np.array([[0, -0.8, 0, 5], [0.7, 0, 0, -3], [0, 0, -2.5, 11], [0, 0, 0, 1]], float)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


FORMATS: dict[str, tuple[type[BaseReaderWriter], Any, str, list[np.ndarray]]] = {
    "rgb png": (NaturalImage2DIO, lambda path, array: io.imsave(path, array), ".png", [voxels("uint8", 9, 8, 3)]),
    "grey png": (NaturalImage2DIO, lambda path, array: io.imsave(path, array), ".png", [voxels("uint16", 9, 8)] * 2),
    "flat tif": (NaturalImage2DIO, lambda path, array: io.imsave(path, array), ".tif", [voxels("uint16", 9, 8)]),
    "tiff": (Tiff3DIO, tifffile.imwrite, ".tiff", [voxels("int16", 4, 9, 8), voxels("float32", 4, 9, 8)]),
    "nifti": (SimpleITKIO, with_sitk, ".nii.gz", [voxels("int16", 4, 9, 8), voxels("float32", 4, 9, 8)]),
    "flat nifti": (SimpleITKIO, with_sitk, ".nii.gz", [voxels("uint8", 9, 8)]),
    "nrrd": (SimpleITKIO, with_sitk, ".nrrd", [voxels("uint8", 4, 9, 8)]),
    "reoriented": (SimpleITKIOWithReorient, with_sitk, ".nii.gz", [voxels("int16", 4, 9, 8)]),
    "nibabel": (NibabelIO, with_nibabel, ".nii.gz", [voxels("int16", 8, 9, 4)]),
    "nibabel reoriented": (NibabelIOWithReorient, with_nibabel, ".nii.gz", [voxels("float32", 8, 9, 4)]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_image_is_written_as_it_was_read(name, tmp_path):
    reader, save, ending, channels = FORMATS[name]
    files = [tmp_path / f"case_{i:04d}{ending}" for i in range(len(channels))]
    for path, array in zip(files, channels, strict=True):
        save(path, array)
        assert holds_whole_numbers(path) == (array.dtype.kind != "f")
    image, properties = reader().read_images([str(path) for path in files])
    targets = [tmp_path / f"new_{i:04d}{ending}" for i in range(len(channels))]
    assert sum(channels_in(path, reader) for path in files) == len(image)
    write_images(image + 0.3 * (name == "rgb png"), targets, files, reader, properties)
    again, geometry = reader().read_images([str(path) for path in targets])
    np.testing.assert_array_equal(again, image)
    assert list(geometry["spacing"]) == list(properties["spacing"])
    for own, new in zip(files, targets, strict=True):
        if reader in (SimpleITKIO, SimpleITKIOWithReorient):
            one, other = sitk.ReadImage(str(own)), sitk.ReadImage(str(new))
            assert one.GetPixelID() == other.GetPixelID()
            np.testing.assert_allclose(one.GetDirection(), other.GetDirection())
            np.testing.assert_allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-5)
        elif reader in (NibabelIO, NibabelIOWithReorient):
            one, other = nibabel.load(own), nibabel.load(new)
            assert one.get_data_dtype() == other.get_data_dtype()
            np.testing.assert_allclose(one.affine, other.affine)
        else:
            assert io.imread(own).dtype == io.imread(new).dtype
    mask, path = RNG.integers(0, 3, image.shape[1:]).astype(np.uint8), tmp_path / f"mask{ending}"
    write_mask(mask, path, reader, properties)
    again, geometry = reader().read_seg(str(path))
    np.testing.assert_array_equal(again[0], mask)
    np.testing.assert_allclose(geometry["spacing"], properties["spacing"])
    # a library may say nothing where the disk is full
    with room(path.stat().st_size // 2), pytest.raises((OSError, RuntimeError)):
        write_mask(mask, path, reader, properties)
    with room(targets[0].stat().st_size // 2), pytest.raises((OSError, RuntimeError)):
        write_images(image, targets, files, reader, properties)


def test_a_format_that_cannot_be_written_is_refused():
    with pytest.raises(GenSegError, match="read by Other"):
        require_format(type("Other", (BaseReaderWriter,), {}))


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("uint8", [-3.0, 0.5, 1.5, 254.6, 300.0], [0, 0, 2, 255, 255]),
        ("int16", [-40000.0, -1.4, 40000.0], [-32768, -1, 32767]),
        ("int32", [3e9], [2**31 - 1]),
        ("float32", [0.25], [0.25]),
        ("bool", [0.2, 0.8], [False, True]),
    ],
)
def test_values_are_rounded_and_clipped_to_the_files_type(kind, given, expected):
    found = as_type(np.array(given, np.float32), kind)
    assert found.dtype == kind
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("scheme", "scale", "offset"),
    [
        (ZScoreNormalization, None, None),
        (CTNormalization, 90.0, 40.0),
        (NoNormalization, 1.0, 0.0),
        (RescaleTo01Normalization, None, None),
        (RGBTo01Normalization, 255.0, 0.0),
    ],
)
def test_every_normalisation_is_measured(scheme: type[ImageNormalization], scale, offset):
    raw = np.abs(RNG.normal(100, 60, 4000)).clip(0, 255).astype(np.float32)
    if scheme is CTNormalization:
        raw = RNG.normal(80, 200, 4000).astype(np.float32)
    normalised = scheme(use_mask_for_norm=False, intensityproperties=PROPERTIES).run(raw.copy())
    line = Line.measured(raw, normalised)
    assert line.straight
    expected = {ZScoreNormalization: (raw.std(), raw.mean()), RescaleTo01Normalization: (np.ptp(raw), raw.min())}
    scale, offset = expected.get(scheme, (scale, offset))
    assert line.scale == pytest.approx(scale, rel=1e-4)
    assert line.offset == pytest.approx(offset, abs=0.01)
    assert (line.low, line.high) == pytest.approx((normalised.min(), normalised.max()))


def test_a_normalisation_that_is_no_line_is_told_apart():
    raw = RNG.uniform(1, 100, 4000).astype(np.float32)
    line = Line.measured(raw, np.log(raw))
    assert not line.straight
    assert line.scale > 0


def test_a_constant_channel_keeps_its_value():
    raw = np.full(50, 7.0, np.float32)
    line = Line.measured(raw, ZScoreNormalization(False, PROPERTIES).run(raw.copy()))
    assert line.scale * 0 + line.offset == 7
    assert line.straight
