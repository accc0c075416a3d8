"""What a fold of a training made its pairs with: read from its folder alone, without the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_genseg import checkpoint
from nnunetv2_genseg.config import GenSegError, Settings
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.synthesis.pair_description import PairDescription
from nnunetv2_genseg.synthesis.sampler import PairSampler
from nnunetv2_genseg.trainers.planning import image_kind, label_table, network_plan
from nnunetv2_genseg.trainers.raw_cases import Line
from nnunetv2_genseg.trainers.trained_generator import identity_of_fold, newest_state, require_form, settings_of


def describe_pairs(plans: Any, configuration: Any, description: dict[str, Any], settings: dict[str, Any]) -> PairDescription:
    """What a training makes pairs with.

    Args:
        plans: nnU-Net's PlansManager.
        configuration: its ConfigurationManager.
        description: the content of dataset.json.
        settings: of the training.
    """
    plan = network_plan(configuration)
    backward = [2 - axis for axis in plans.transpose_forward][-plan.dims :]
    return PairDescription(
        settings=settings,
        plan=plan,
        images=image_kind(description, configuration),
        labels=label_table(plans.get_label_manager(description), bool(settings.get("unlabelled", {}).get("images"))),
        axes=tuple(sorted(backward).index(axis) for axis in backward),
    )


def load_fold(folder: Path, device: torch.device, changed: Settings | None) -> tuple[PairDescription, PairSampler, Normalisation]:
    """Description, sampler and normalisation of the newest state of a fold's training.

    Args:
        folder: of the fold, in that of its training (`TRAINER__PLANS__CONFIGURATION/fold_0`).
        device: where the sampler lives.
        changed: settings that differ from those of the training.

    Raises:
        GenSegError: the folder is not that of a GenSeg training, a file is damaged, or a setting does not fit.
    """
    folder = folder.resolve()
    settings, state, parts = settings_of(folder), newest_state(folder), folder.parent.name.split("__")
    if settings is None or state is None or len(parts) != 3 or not folder.name.startswith("fold_"):
        raise GenSegError(
            f"{folder} is neither a fold folder of a GenSeg training, with a checkpoint and genseg_config.json, nor that of a "
            "generator that `genseg pretrain` wrote; name one of these"
        )
    plans = PlansManager(read_json(folder.parent / "plans.json", dict[str, Any], "a mapping"))
    description = read_json(folder.parent / "dataset.json", dict[str, Any], "a mapping")
    configuration = plans.get_configuration(parts[2])
    described = describe_pairs(plans, configuration, description, settings)
    sampler = described.sampler(device, changed)
    path, epoch = state
    own = identity_of_fold(plans, parts[2], folder.name[len("fold_") :], description, settings)
    learned = checkpoint.load_sibling(own, path, epoch)
    with checkpoint.explained(checkpoint.sibling(path, epoch)):
        _restore(sampler, learned["loop"]["learned"]["sampler"])
    return described, sampler, Normalisation(plans, configuration)


def _restore(sampler: PairSampler, there: dict[str, Any]) -> None:
    """Gives a sampler what was learned; of sources that the sampler lacks nothing."""
    missing = sampler.sources.keys() - there["sources"].keys()
    if missing:
        raise ValueError(f"the training had no source {' and '.join(sorted(missing))}; leave it out of mixing.sources")
    chosen = {**there, "sources": {name: there["sources"][name] for name in sampler.sources}}
    require_form(sampler.state_dict(), chosen)
    sampler.load_state_dict(chosen)


class Normalisation:
    """nnU-Net's, for a whole image of raw intensities; resampling is not part of it.

    Args:
        plans: nnU-Net's PlansManager.
        configuration: its ConfigurationManager.
    """

    def __init__(self, plans: Any, configuration: Any) -> None:
        self._plans = plans
        self._configuration = configuration

    def __call__(self, image: Tensor) -> Tensor:
        """(C, *spatial) to the same, float32; what nnU-Net crops, since all channels are 0, is normalised alike."""
        flat = image.ndim == 3
        raw = image.detach().cpu().float().numpy()
        raw = raw[:, None] if flat else raw
        part, segmentation, box = crop_to_nonzero(raw, None)
        preprocessor = self._configuration.preprocessor_class(verbose=False)
        properties = self._plans.foreground_intensity_properties_per_channel
        inside = preprocessor._normalize(part.copy(), segmentation, self._configuration, properties)
        whole = np.zeros_like(raw)
        for c, masked in enumerate(self._configuration.use_mask_for_norm):
            if not masked:
                line = Line.measured(part[c].ravel(), inside[c].ravel())
                whole[c] = np.clip(-line.offset / line.scale, line.low, line.high)
        whole[(slice(None), *(slice(*ends) for ends in box))] = inside
        kept = torch.empty_like(image, dtype=torch.float32)  # of a subclass of Tensor it keeps the metadata
        return kept.copy_(torch.from_numpy(whole[:, 0] if flat else whole))
