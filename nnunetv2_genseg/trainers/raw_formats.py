"""Writes images in the formats that nnU-Net reads; its own readers write segmentations only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_genseg.checkpoint import UNREADABLE
from nnunetv2_genseg.config import GenSegError

Array = npt.NDArray[Any]
sitk: Any = SimpleITK
Write = Callable[[Array, Path, Path, dict[str, Any]], None]
"""Channels of one file, (channels, slices, height, width); the file; one of the same dataset; and nnU-Net's properties."""


def as_type(values: Array, kind: npt.DTypeLike) -> Array:
    """Values in the type of a file: for whole numbers rounded and clipped to its range."""
    kind = np.dtype(kind)
    if kind.kind == "b":
        return values >= 0.5
    if kind.kind not in "iu":
        return values.astype(kind)
    limits = np.iinfo(kind)
    # float32 cannot hold the largest whole numbers of 32 bits
    return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(kind)


def channels_in(file: Path, reader: type) -> int:
    """Channels that nnU-Net reads from an image file: those of the pixel in photographs, else one."""
    if not issubclass(reader, NaturalImage2DIO):
        return 1
    image = _photograph(file)
    return image.shape[-1] if image.ndim == 3 else 1


def holds_whole_numbers(file: Path) -> bool:
    """Whether an image file holds whole numbers; False also if it cannot be read."""
    try:
        return _pixel_type(file).kind in "iu"
    except RuntimeError:  # said where the image itself is read
        return False


def _pixel_type(file: Path) -> np.dtype[Any]:
    """Of an image file that SimpleITK knows; NIfTI with a scale holds floats."""
    header = sitk.ImageFileReader()
    header.SetFileName(str(file))
    header.ReadImageInformation()
    of_pixels: np.dtype[Any] = sitk.GetArrayFromImage(sitk.Image([1, 1], header.GetPixelID())).dtype
    return of_pixels


def in_colour(image: Array, reader: type) -> bool:
    """Whether an image that nnU-Net has read, (C, slices, height, width), is a photograph in red, green and blue."""
    return issubclass(reader, NaturalImage2DIO) and len(image) == 3


def _photograph(file: Path) -> Array:
    from skimage import io

    image: Array = io.imread(file)
    return image


def _write_photograph(image: Array, target: Path, like: Path, properties: dict[str, Any]) -> None:
    from skimage import io

    there = _photograph(like)
    pixels = image[:, 0].transpose(1, 2, 0) if there.ndim == 3 else image[0, 0]
    pixels = as_type(pixels, there.dtype)
    io.imsave(target, pixels, check_contrast=False)
    _require_whole(target, lambda: _photograph(target), pixels)


def _write_with_sitk(image: Array, target: Path, like: Path, properties: dict[str, Any]) -> None:
    geometry = properties["sitk_stuff"]
    voxels = as_type(image[0], _pixel_type(like))
    saved = sitk.GetImageFromArray(voxels[0] if len(geometry["spacing"]) == 2 else voxels)
    saved.SetSpacing(geometry["spacing"])
    saved.SetOrigin(geometry["origin"])
    saved.SetDirection(geometry["direction"])
    if "original_orientation" in geometry:
        saved = sitk.DICOMOrient(saved, geometry["original_orientation"])
    sitk.WriteImage(saved, str(target), True)
    _require_whole(target, lambda: sitk.GetArrayFromImage(sitk.ReadImage(str(target))), sitk.GetArrayViewFromImage(saved))


def _write_with_nibabel(image: Array, target: Path, like: Path, properties: dict[str, Any]) -> None:
    from nibabel import Nifti1Image, load, orientations, save

    of_axes: Any = orientations
    there: Any = load(like)
    scaled = tuple(there.header.get_slope_inter()) not in ((None, None), (1.0, 0.0))
    voxels = as_type(image[0].transpose(2, 1, 0), np.float32 if scaled else there.get_data_dtype())
    geometry = properties["nibabel_stuff"]
    own = geometry["original_affine"]
    image_class: Any = Nifti1Image
    saved = image_class(voxels, affine=geometry.get("reoriented_affine", own))
    if "reoriented_affine" in geometry:
        saved = saved.as_reoriented(of_axes.ornt_transform(of_axes.axcodes2ornt("RAS"), of_axes.io_orientation(own)))
    save(saved, target)


def _write_tiff(image: Array, target: Path, like: Path, properties: dict[str, Any]) -> None:
    import tifffile

    tifffile.imwrite(target, data=as_type(image[0], tifffile.imread(like).dtype), compression="zlib")
    spacing = json.dumps({"spacing": [float(step) for step in properties["spacing"]]})
    case = target.name[: -len(f"_0000{target.suffix}")]
    target.with_name(f"{case}.json").write_text(spacing + "\n", encoding="utf-8")


WRITERS: dict[type, Write] = {
    NaturalImage2DIO: _write_photograph,
    SimpleITKIO: _write_with_sitk,
    NibabelIO: _write_with_nibabel,
    NibabelIOWithReorient: _write_with_nibabel,
    Tiff3DIO: _write_tiff,
}
"""By the nnU-Net class that reads the format, also of its subclasses."""


def require_format(reader: type) -> None:
    """Raises GenSegError if images of the format that a class of nnU-Net reads cannot be written."""
    if not issubclass(reader, tuple(WRITERS)):
        known = ", ".join(kind.__name__ for kind in WRITERS)
        raise GenSegError(
            f"the dataset is read by {reader.__name__}, whose images this package cannot write; it writes those of {known}. "
            "Convert the dataset to NIfTI, PNG or TIFF"
        )


def _require_whole(target: Path, read: Callable[[], Array], written: Array) -> None:
    """Compares what a file holds with what was written into it: ITK and others say nothing where a disk is full."""
    try:
        whole = np.array_equal(read(), written)
    except UNREADABLE:
        whole = False
    if not whole:
        raise OSError(f"{target} does not hold what was written into it, as where a disk is full")


def write_mask(mask: Array, target: Path, reader: type, properties: dict[str, Any]) -> None:
    """Writes a segmentation by nnU-Net's class for the format, and reads it again.

    Args:
        mask: (slices, height, width), whole numbers.
        target: the file.
        reader: nnU-Net's class.
        properties: nnU-Net's of the case.

    Raises:
        OSError, RuntimeError: the file cannot be written.
    """
    files: Any = reader()
    files.write_seg(mask, str(target), properties)
    _require_whole(target, lambda: files.read_seg(str(target))[0][0], mask)


def write_images(image: Array, targets: Sequence[Path], like: Sequence[Path], reader: type, properties: dict[str, Any]) -> None:
    """Writes an image as the files of a case, in the types of the files of another one.

    Args:
        image: (C, slices, height, width), in the files' own intensities.
        targets: a file for each of `like`.
        like: the files of a case of the same dataset, in the order of its channels.
        reader: nnU-Net's class that reads them.
        properties: nnU-Net's of the case: spacing, origin, direction.

    Raises:
        OSError, RuntimeError: a file cannot be written.
    """
    require_format(reader)
    write = next(WRITERS[kind] for kind in reader.__mro__ if kind in WRITERS)
    first = 0
    for target, file in zip(targets, like, strict=True):
        count = channels_in(file, reader)
        write(image[first : first + count], target, file, properties)
        first += count
    assert first == len(image)
