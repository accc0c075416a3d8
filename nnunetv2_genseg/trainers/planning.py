"""What nnU-Net planned, as the generator needs it."""

from __future__ import annotations

import math
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import ImageKind
from nnunetv2_genseg.synthesis.label_table import LabelTable
from nnunetv2_genseg.synthesis.labels import LabelCodec

WIDEST = {2: 512, 3: 320}
"""Most channels of a stage in nnU-Net's default plans, by the number of axes."""
SMALLEST_EXTENT = 4
"""Fewest voxels of the coarsest stage along an axis that is down-sampled, as in nnU-Net's planner."""


def network_plan(configuration: ConfigurationManager) -> NetworkPlan:
    """Stages, strides and kernels for the generator: those of the segmentation network, if the plans hold them.

    Networks that are no U-Nets have none. The generator then has the stages that nnU-Net's planner gives to a U-Net for
    the same patch size and spacing.
    """
    patch_size = tuple(int(n) for n in configuration.patch_size)
    return _planned_stages(configuration.network_arch_init_kwargs, patch_size) or _default_stages(
        tuple(float(n) for n in configuration.spacing), patch_size
    )


def _planned_stages(arguments: dict[str, Any], patch_size: tuple[int, ...]) -> NetworkPlan | None:
    """The segmentation network's stages; None if its arguments hold none that a generator can follow."""
    stages: list[Any] = [arguments.get(key) for key in ("features_per_stage", "strides", "kernel_sizes")]
    if not all(isinstance(values, (list, tuple)) and values for values in stages):
        return None

    def per_axis(values: Any) -> tuple[tuple[int, ...], ...]:
        return tuple((int(v),) * len(patch_size) if isinstance(v, int) else tuple(int(n) for n in v) for v in values)

    features, strides, kernels = stages
    plan = NetworkPlan(patch_size, tuple(int(n) for n in features), per_axis(strides), per_axis(kernels))
    one_each = len(plan.features) == len(plan.strides) == len(plan.kernels)
    of_axes = all(len(sizes) == len(patch_size) for sizes in plan.strides + plan.kernels)
    if not (one_each and of_axes) or set(plan.strides[0]) != {1}:
        return None
    whole = all(size % math.prod(stage[i] for stage in plan.strides) == 0 for i, size in enumerate(patch_size))
    return plan if whole else None


def _default_stages(spacing: tuple[float, ...], patch_size: tuple[int, ...]) -> NetworkPlan:
    """nnU-Net's default stages, without the strides by which the patch cannot be divided."""
    _, planned, kernels, _, _ = get_pool_and_conv_props(spacing, patch_size, SMALLEST_EXTENT, math.inf)
    strides, extent = [], patch_size
    for stage in planned:
        strides.append(tuple(step if size % step == 0 else 1 for size, step in zip(extent, stage, strict=True)))
        extent = tuple(size // step for size, step in zip(extent, strides[-1], strict=True))
    useful = [i for i, stage in enumerate(strides) if i == 0 or max(stage) > 1]
    return NetworkPlan(
        patch_size,
        tuple(min(32 * 2**i, WIDEST[len(patch_size)]) for i in range(len(useful))),
        tuple(strides[i] for i in useful),
        tuple(tuple(kernels[i]) for i in useful),
    )


def channel_names(description: dict[str, Any]) -> list[str]:
    """Names of the image channels in dataset.json, in their order; nnU-Net takes the older key `modality` too."""
    return list(description["modality" if "modality" in description else "channel_names"].values())


def image_kind(description: dict[str, Any], configuration: ConfigurationManager) -> ImageKind:
    """Channels, normalisation and spacing of the images.

    Args:
        description: the content of dataset.json.
        configuration: nnU-Net's.
    """
    return ImageKind(
        channels=tuple(channel_names(description)),
        normalization=tuple(configuration.normalization_schemes),
        masked=tuple(map(bool, configuration.use_mask_for_norm)),
        spacing=tuple(float(extent) for extent in configuration.spacing),
    )


def label_codec(labels: LabelManager) -> LabelCodec:
    """Classes of the dataset's labels or regions."""
    if labels.has_regions:
        return LabelCodec.from_regions(labels.foreground_regions, labels.has_ignore_label)
    return LabelCodec.from_labels(labels.foreground_labels, labels.ignore_label)


def label_table(manager: LabelManager, unsure: bool = False) -> LabelTable:
    """The classes of the dataset's labels; `unsure`: pseudo-labels have an ignore label, also if the dataset has none."""
    codec = label_codec(manager)
    ignored = [int(manager.ignore_label)] if manager.has_ignore_label else []
    labels = [int(label) for label in [0, *manager.all_labels] if int(label) not in ignored]
    if manager.has_regions:
        regions = [region if isinstance(region, (list, tuple)) else [region] for region in manager.foreground_regions]
        target = torch.tensor([[label in region for region in regions] + [False] * len(ignored) for label in labels])
        classes = codec.to_classes(target).tolist()
    else:
        classes = labels
    class_of = dict(zip(labels, classes, strict=True)) | dict.fromkeys(ignored, codec.classes - 1)
    label_of = (*map(int, codec.labels[: codec.foreground + 1]), *ignored)
    if unsure and not ignored:
        return LabelTable(class_of, (*label_of, 0), True)
    return LabelTable(class_of, label_of, bool(ignored))
