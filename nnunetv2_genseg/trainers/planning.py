"""What nnU-Net planned, as the generator needs it."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import ImageKind
from nnunetv2_genseg.synthesis.labels import LabelCodec


def network_plan(configuration: ConfigurationManager) -> NetworkPlan:
    """Stages, strides and kernels of the segmentation network."""
    arguments = configuration.network_arch_init_kwargs
    dims = len(configuration.patch_size)

    def per_axis(values: Any) -> tuple[tuple[int, ...], ...]:
        return tuple((int(v),) * dims if isinstance(v, int) else tuple(int(n) for n in v) for v in values)

    return NetworkPlan(
        patch_size=tuple(int(n) for n in configuration.patch_size),
        features=tuple(int(n) for n in arguments["features_per_stage"]),
        strides=per_axis(arguments["strides"]),
        kernels=per_axis(arguments["kernel_sizes"]),
    )


def image_kind(description: dict[str, Any], configuration: ConfigurationManager) -> ImageKind:
    """Channels, normalisation and spacing of the images.

    Args:
        description: the content of dataset.json.
        configuration: nnU-Net's.
    """
    channels = description["modality" if "modality" in description else "channel_names"]
    return ImageKind(
        channels=tuple(channels.values()),
        normalization=tuple(configuration.normalization_schemes),
        masked=tuple(map(bool, configuration.use_mask_for_norm)),
        spacing=tuple(float(extent) for extent in configuration.spacing),
    )


def label_codec(labels: LabelManager) -> LabelCodec:
    """Classes of the dataset's labels or regions."""
    if labels.has_regions:
        return LabelCodec.from_regions(labels.foreground_regions, labels.has_ignore_label)
    return LabelCodec.from_labels(labels.foreground_labels, labels.ignore_label)
