"""Real training cases beside synthetic pairs: a dataset of both."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.files.atomic import PARTIAL, put_in_place
from nnunetv2_genseg.trainers.preflight import first_of
from nnunetv2_genseg.trainers.provenance import IMAGES, LABELS

NAMED = re.compile(r"Dataset(\d{3})_\w[\w.-]*")
"""How nnU-Net names a dataset."""


def raw_dataset(name: str) -> Path:
    """The folder of a new raw dataset.

    Raises:
        GenSegError: nnU-Net does not take the name, or knows another dataset of that number.
    """
    number = NAMED.fullmatch(name)
    if number is None:
        raise GenSegError(f"--into-raw needs a name such as Dataset905_Mixed, found {name!r}")
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = os.environ.get(variable)
        others = [path.name for path in Path(folder).glob(f"Dataset{number[1]}_*") if path.name != name] if folder else []
        if others:
            raise GenSegError(
                f"{variable} holds {others[0]} already, which has the same number; choose another one than {number[1]}"
            )
    return Path(os.environ["nnUNet_raw"]) / name


def require_other_names(cases: Sequence[str], pairs: Sequence[str]) -> None:
    """Raises GenSegError if real cases have the names of pairs."""
    both = sorted(set(cases).intersection(pairs))
    if both:
        raise GenSegError(
            f"real cases have the names of pairs ({first_of(both)}); write the pairs into a folder of their own (-o)"
        )


def copy_cases(files: dict[str, tuple[list[Path], Path]], ending: str, folder: Path) -> None:
    """Copies cases into a raw dataset, but for files that are there already.

    Args:
        files: image files, in the order of the channels, and label file of every case.
        ending: of all of them.
        folder: of the dataset.

    Raises:
        GenSegFileError: a file cannot be written.
    """
    for name, (images, label) in files.items():
        for source, target in _copies(name, images, label, ending):
            _copy(source, folder / target)


def _copies(name: str, images: Sequence[Path], label: Path, ending: str) -> Iterator[tuple[Path, str]]:
    """The files of a case and where they go; beside TIFF files those that hold their spacing."""
    for i, image in enumerate(images):
        yield image, f"{IMAGES}/{name}_{i:04d}{ending}"
    yield label, f"{LABELS}/{name}{ending}"
    for part, file in ((IMAGES, images[0]), (LABELS, label)):
        stem = file.name.removesuffix(ending)
        spacing = file.with_name(f"{stem.removesuffix('_0000') if part == IMAGES else stem}.json")
        if spacing.is_file():
            yield spacing, f"{part}/{name}.json"


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        return
    partial = target.parents[1] / f"{target.name}{PARTIAL}"
    try:
        shutil.copyfile(source, partial)
        put_in_place(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise GenSegFileError(
            f"could not copy {source} to {target}: {error}. Free space or correct the permissions and start the same "
            "command again"
        ) from error
