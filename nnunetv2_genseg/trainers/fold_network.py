"""The trained segmentation network of a fold: what it segments in a raw image, and its features of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn import functional

from nnunetv2_genseg.checkpoint import UNREADABLE
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.quality.features import SMALLEST_DEVIATION, encoder_features
from nnunetv2_genseg.trainers.raw_cases import Array
from nnunetv2_genseg.trainers.resuming import CONFIG_FILE
from nnunetv2_genseg.trainers.standalone import Standalone
from nnunetv2_genseg.trainers.trained_generator import fold_folder

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
"""In the order in which they are taken."""
PATCHES = 16
"""Patches, or slices' patches, that features are computed of in one image, at most; evenly spread."""
AT_ONCE = 4
"""Patches that the network is given at once for features."""
ACROSS, THROUGH = 32, 16
"""Extent of the small copy of an image, within slices and, of volumes, along the first axis."""


class FoldNetwork:
    """The segmentation network of a fold's training, and nnU-Net's own preprocessing and prediction, without mirroring.

    Args:
        settings: which fold.

    Raises:
        GenSegError: the fold has no finished or best checkpoint, it cannot be loaded, or it needs a previous stage.
    """

    def __init__(self, settings: Standalone) -> None:
        self.checkpoint = _trained(settings)
        """The file of the network's weights."""
        fold = self.checkpoint.parent
        _require_single_stage(fold.parent, settings.configuration)
        device = torch.device(settings.device)
        self._predictor = nnUNetPredictor(use_mirroring=False, device=device, allow_tqdm=False)
        try:
            self._predictor.initialize_from_trained_model_folder(str(fold.parent), (settings.fold,), self.checkpoint.name)
        except UNREADABLE as error:
            raise GenSegError(
                f"the network in {self.checkpoint} cannot be loaded ({type(error).__name__}: {error}); restore it, or train the "
                "fold again"
            ) from error
        self.plans: Any = self._predictor.plans_manager
        self.configuration: Any = self._predictor.configuration_manager
        self.description: dict[str, Any] = self._predictor.dataset_json
        self.manager: Any = self._predictor.label_manager
        self.learned_from_pairs = (fold / CONFIG_FILE).is_file()
        """Whether it comes from a training with synthetic pairs."""
        network: Any = self._predictor.network
        self._network: nn.Module = (network._orig_mod if isinstance(network, OptimizedModule) else network).to(device).eval()
        self._device = device
        self._preprocessor = self.configuration.preprocessor_class(verbose=False)

    @property
    def has_features(self) -> bool:
        """Whether the network has an encoder whose features can be taken."""
        return isinstance(getattr(self._network, "encoder", None), nn.Module)

    def prepared(self, raw: Array, properties: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """A raw image after nnU-Net's preprocessing.

        Args:
            raw: (C, slices, height, width), as nnU-Net's reader gives it.
            properties: the reader's.

        Returns:
            (C, *spatial) float32 with three axes, and the properties for `segmented`.
        """
        data, _, completed = self._preprocessor.run_case_npy(
            raw, None, dict(properties), self.plans, self.configuration, self.description
        )
        return torch.as_tensor(np.ascontiguousarray(data)), completed

    def segmented(self, data: Tensor, properties: dict[str, Any]) -> Array:
        """(slices, height, width) labels that the network gives an image, in its original form; arguments are of `prepared`."""
        logits = self._predictor.predict_logits_from_preprocessed_data(data)
        found: Array = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.cpu(), self.plans, self.configuration, self.manager, properties
        )
        return found

    def features(self, data: Tensor, own: Callable[[Tensor, int], Tensor] | None) -> Tensor:
        """(n, channels) float32 features of at most 16 patches of a preprocessed image, evenly spread.

        Args:
            data: (C, *spatial), from `prepared`.
            own: from `feature_function`; None: those of the network (see `encoder_features`).

        Patches are as large as in the training. They cover the image without overlap, but at its end. In 2D they lie in slices.
        """
        size = tuple(self.configuration.patch_size)
        flat = data.ndim - 1 - len(size)
        missing = [max(0, extent - n) for n, extent in zip(data.shape[1 + flat :], size, strict=True)]
        padded = functional.pad(data, [side for n in reversed(missing) for side in (n // 2, n - n // 2)])
        steps = compute_steps_for_sliding_window(tuple(padded.shape[1 + flat :]), size, 1.0)
        corners = list(product(*[range(n) for n in padded.shape[1 : 1 + flat]], *steps))
        chosen = np.unique(np.linspace(0, len(corners) - 1, min(len(corners), PATCHES)).round().astype(int))
        patches = []
        for corner in (corners[i] for i in chosen):
            window = [slice(start, start + extent) for start, extent in zip(corner[flat:], size, strict=True)]
            patches.append(padded[(slice(None), *corner[:flat], *window)])
        images = torch.stack(patches).to(self._device)
        return encoder_features(self._network, images, AT_ONCE).float() if own is None else own(images, AT_ONCE)


def _trained(settings: Standalone) -> Path:
    """The checkpoint of a fold.

    Raises:
        GenSegError: there is none.
    """
    folder = fold_folder(settings)
    for name in CHECKPOINTS if folder is not None else ():
        assert folder is not None
        if (folder / name).is_file():
            return folder / name
    raise GenSegError(
        f"nnUNet_results holds no trained network of fold {settings.fold} with trainer {settings.trainer}, plans "
        f"{settings.plans} and configuration {settings.configuration} ({' or '.join(CHECKPOINTS)}); train the fold, or name the "
        "trainer of a trained one (-tr)"
    )


def _require_single_stage(training: Path, configuration: str) -> None:
    """Raises GenSegError if the network of a training needs the segmentation of another one."""
    plans = PlansManager(read_json(training / "plans.json", dict[str, Any], "a mapping"))
    if plans.get_configuration(configuration).previous_stage_name is not None:
        raise GenSegError(
            f"{configuration} needs the segmentation of a previous stage, which pairs lack; choose another configuration than "
            "the second stage of a cascade"
        )


def small_copy(data: Tensor) -> Tensor:
    """A small copy of a preprocessed image with mean 0 and standard deviation 1 in every channel, for distances of pixels.

    Args:
        data: (C, *spatial), three axes; the first has extent 1 in photographs.

    Returns:
        (C·voxels,) float32; 32 × 32 voxels of a photograph, 16 × 32 × 32 of a volume. Divided by the root of its length, so that
        the Euclidean distance of two copies is the root of the mean squared difference.
    """
    grid = (1 if data.shape[1] == 1 else THROUGH, ACROSS, ACROSS)
    small: Tensor = functional.adaptive_avg_pool3d(data[None], grid)[0].flatten(1)
    deviation = small.std(dim=1, correction=0, keepdim=True).clamp(min=SMALLEST_DEVIATION)
    standard: Tensor = ((small - small.mean(dim=1, keepdim=True)) / deviation).flatten()
    return standard / math.sqrt(len(standard))
