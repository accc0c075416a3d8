"""A user's own masks, for which a generator draws images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.raw_cases import RawCase, RawCases


class GivenMasks:
    """The masks in a folder: files in the dataset's format that hold its labels.

    Args:
        folder: of the masks.
        cases: of the dataset.

    Raises:
        GenSegError: the folder holds no masks, or one that cannot be read or holds other labels.
    """

    def __init__(self, folder: Path, cases: RawCases) -> None:
        self.cases = cases
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        self.files = [path for path in found if path.name.endswith(cases.ending)]
        if not self.files:
            raise GenSegError(f"{folder} holds no masks; name a folder with files that end with {cases.ending}, as in labelsTr")
        for path in self.files:
            cases.classes(str(path), self._read(path)[0])

    def origin(self) -> dict[str, str]:
        """SHA-256 of every mask's file, by its name."""
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files}

    def _read(self, path: Path) -> tuple[Any, dict[str, Any]]:
        """(slices, height, width) labels, and nnU-Net's properties."""
        try:
            segmentation, properties = self.cases.reader().read_seg(str(path))
        except Exception as error:  # whatever the formats' libraries raise
            raise GenSegError(f"the mask {path} cannot be read ({error}); correct or remove it") from error
        if len(segmentation) != 1:
            raise GenSegError(f"the mask {path} has {len(segmentation)} channels; a mask has one, as in labelsTr")
        return segmentation[0].astype(np.int16), properties

    def fitted(self, case: RawCase, k: int) -> tuple[RawCase, Tensor, str]:
        """A case stretched to the extent of mask number `k`, in the mask's geometry.

        Args:
            case: whose image and intensities are used.
            k: number of the pair; masks are taken in turn.

        Returns:
            The case, the (*spatial) class map of the mask, and the name of its file.
        """
        path = self.files[k % len(self.files)]
        segmentation, properties = self._read(path)
        forward = self.cases.plans.transpose_forward
        wanted = self.cases.classes(str(path), segmentation.transpose(forward))
        shape = tuple(wanted.shape)
        image, labels, outside = self.cases.whole_volume(case)
        stretched = functional.interpolate(image[None], size=shape, mode="trilinear", align_corners=False)[0]
        maps = torch.stack([labels, outside.long()]).float()
        nearest = functional.interpolate(maps[None], size=shape, mode="nearest-exact")[0].long()
        fitted = replace(
            case,
            image=stretched,
            labels=nearest[0],
            outside=nearest[1].bool(),
            spacing=tuple(float(properties["spacing"][axis]) for axis in forward),
            properties=properties,
            whole=shape,
            place=tuple(slice(0, extent) for extent in shape),
        )
        return fitted, wanted, path.name
