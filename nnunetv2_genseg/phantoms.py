"""Small raw datasets for nnU-Net made on the spot: textured scenes with two structures, in 2D (RGB PNG) or 3D (NIfTI)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from scipy.ndimage import gaussian_filter

Array = npt.NDArray[np.float64]
LABELS = {"background": 0, "outer": 1, "inner": 2}


@dataclass(frozen=True)
class PhantomDataset:
    """What is written.

    A case is a body with smooth texture, vessels and a bias field, in it a warped ellipsoid (`outer`) that holds a
    second one off its centre (`inner`). Position, size, pose and contrast differ from case to case.
    """

    dataset_id: int
    dims: int
    """2 (RGB PNG) or 3 (NIfTI with spacing)."""
    training_cases: int
    test_cases: int
    extent: int = 64
    """Size of the longest axis, voxels."""
    seed: int = 0

    @property
    def name(self) -> str:
        """The dataset's folder name."""
        return f"Dataset{self.dataset_id:03d}_Phantom{self.dims}D"

    @property
    def file_ending(self) -> str:
        """Of images and labels."""
        return ".png" if self.dims == 2 else ".nii.gz"

    def write(self, raw_folder: Path) -> Path:
        """Writes imagesTr, labelsTr, imagesTs, labelsTs and dataset.json; returns the dataset's folder.

        Args:
            raw_folder: nnU-Net's `nnUNet_raw`.
        """
        folder = raw_folder / self.name
        rng = np.random.default_rng(self.seed)
        for part, count in (("Tr", self.training_cases), ("Ts", self.test_cases)):
            for i in range(count):
                image, labels = self._case(rng)
                case = f"{part.lower()}_{i:03d}"
                self._save(image, folder / f"images{part}", case, image_file=True)
                self._save(labels, folder / f"labels{part}", case, image_file=False)
        channels = {"0": "R", "1": "G", "2": "B"} if self.dims == 2 else {"0": "MRI"}
        description = {
            "channel_names": channels,
            "labels": LABELS,
            "numTraining": self.training_cases,
            "file_ending": self.file_ending,
        }
        (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        return folder

    def _case(self, rng: np.random.Generator) -> tuple[Array, npt.NDArray[np.uint8]]:
        shape = (self.extent,) * 2 if self.dims == 2 else (self.extent // 2, self.extent, self.extent * 3 // 4)
        axes = [np.linspace(-1, 1, n) for n in shape]
        position = np.stack(np.meshgrid(*axes, indexing="ij"))
        wobble = np.stack([_smooth(rng, shape, 0.12) for _ in shape]) * 0.12
        position = position + wobble

        centre = rng.uniform(-0.25, 0.25, self.dims)
        radius = rng.uniform(0.32, 0.5, self.dims)
        outer = _inside(position, centre, radius)
        inner = outer & _inside(position, centre + rng.uniform(-0.3, 0.3, self.dims) * radius, radius * rng.uniform(0.4, 0.55))
        labels = (outer.astype(np.uint8) + inner).astype(np.uint8)

        body = _inside(position, np.zeros(self.dims), np.full(self.dims, 0.95))
        tissue = _smooth(rng, shape, 0.10) > 0.3
        vessel = np.abs(_smooth(rng, shape, 0.06)) < 0.12
        tone = rng.normal([0.30, 0.42, 0.55, 0.50, 0.68], 0.04)
        scene = np.where(body, tone[0], 0.03)
        scene = np.where(body & tissue, tone[1], scene)
        scene = np.where(body & vessel, tone[2], scene)
        scene = np.where(outer, tone[3], scene)
        scene = np.where(inner, tone[4], scene)
        texture = 0.05 * _smooth(rng, shape, 0.02) + 0.03 * rng.standard_normal(shape)
        image = gaussian_filter(scene, 0.7) + texture
        return image * (1 + 0.15 * _smooth(rng, shape, 0.4)), labels

    def _save(self, array: npt.NDArray[np.generic], folder: Path, case: str, *, image_file: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if self.dims == 3:
            saved = sitk.GetImageFromArray(array.astype(np.float32) if image_file else array)
            saved.SetSpacing((1.0, 1.0, 1.5))  # type: ignore[no-untyped-call]
        elif image_file:
            colours = np.clip(np.stack([array.astype(float) * tint for tint in (1.0, 0.85, 0.7)], axis=-1), 0, 1)
            saved = sitk.GetImageFromArray((255 * colours).astype(np.uint8), isVector=True)
        else:
            saved = sitk.GetImageFromArray(array)
        sitk.WriteImage(saved, str(folder / f"{case}{'_0000' if image_file else ''}{self.file_ending}"))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Array:
    """White noise smoothed over `scale` of the extent, to mean 0 and standard deviation 1."""
    noise = gaussian_filter(rng.standard_normal(shape), [scale * n for n in shape], mode="wrap")
    field: Array = (noise - noise.mean()) / noise.std()
    return field


def _inside(position: Array, centre: npt.ArrayLike, radius: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    shape = (-1,) + (1,) * (position.ndim - 1)
    scaled = (position - np.reshape(centre, shape)) / np.reshape(radius, shape)
    inside: npt.NDArray[np.bool_] = (scaled**2).sum(axis=0) < 1
    return inside
