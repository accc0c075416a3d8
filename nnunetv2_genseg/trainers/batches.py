"""nnU-Net's batches: their parts on the device, and pairs in place of real patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.pairs import Pairs, slot_index
from nnunetv2_genseg.synthesis.sampler import Replacement
from nnunetv2_genseg.synthesis.spatial import warp_labels

Target = Tensor | list[Tensor]
"""(B, channels, *spatial); with deep supervision a list, full resolution first."""
Rule = Callable[[Tensor, Tensor], Tensor]
"""(B, channels, *spatial) maps and (B, *spatial, dims) sampling positions to the deformed maps."""


def nearest(maps: Tensor, grid: Tensor) -> Tensor:
    """Rule for label maps, skeletons and other integers."""
    return torch.stack([warp_labels(channel, grid) for channel in maps.unbind(dim=1)], dim=1)


def linear(maps: Tensor, grid: Tensor) -> Tensor:
    """Rule for weights, distances and other real numbers: no value beyond those of the neighbours."""
    return functional.grid_sample(maps.to(grid), grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def unchanged(maps: Tensor, grid: Tensor) -> Tensor:
    """Rule for what does not lie in the space of the patch; the entry may be of any type."""
    return maps


SPATIAL_ENTRIES: dict[str, Rule] = {}
"""How further entries of a batch follow the deformation of its image, by key. A trainer whose batches hold some adds its own."""
KNOWN = ("data", "target", "keys", "properties")


@dataclass(frozen=True)
class Parts:
    """A batch on the device."""

    network_input: Tensor
    """(B, channels, *spatial)."""
    target: Target
    image: Tensor
    """(B, C, *spatial): the channels of the input that are image; in a cascade others follow them."""
    labels: Tensor
    """(B, *spatial) int64 class maps."""
    cases: list[str] | None
    """The case of each patch; None if the batch does not tell, or holds further maps, which would have to be pasted as well."""


class BatchCodec:
    """Takes batches apart and puts pairs into them.

    Args:
        codec: the dataset's classes.
        pseudo: the classes of pairs: the same, with an ignore label where some are made from pseudo-labels.
        image_channels: channels of the network's input that are image.
        device: where the training runs.
        scales: nnU-Net's deep supervision scales, or None.
        target_dtype: of targets.
        previous_stage: (B, *spatial) class maps to further channels of the input, for masks that the previous stage of a cascade
            has not segmented; None without a cascade.
    """

    def __init__(
        self,
        codec: LabelCodec,
        pseudo: LabelCodec,
        image_channels: int,
        device: torch.device,
        scales: Any,
        target_dtype: torch.dtype,
        previous_stage: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.codec = codec
        self.pseudo = pseudo
        self.image_channels = image_channels
        self.device = device
        self.downsample = None if scales is None else DownsampleSegForDSTransform(scales)
        self.target_dtype = target_dtype
        self.previous_stage = previous_stage

    def parts(self, batch: dict[str, Any]) -> Parts:
        """A batch of nnU-Net's loader, on the device."""
        network_input = batch["data"].to(self.device, non_blocking=True)
        target = _mapped(batch["target"], lambda level: level.to(self.device, non_blocking=True))
        labels = self.codec.to_classes(target if isinstance(target, Tensor) else target[0])
        cases = [str(case) for case in batch.get("keys", ())]
        told = len(cases) == len(labels) and all(SPATIAL_ENTRIES.get(key) is unchanged for key in _further_maps(batch))
        return Parts(network_input, target, network_input[:, : self.image_channels], labels, cases if told else None)

    def to_input(self, image: Tensor, labels: Tensor) -> Tensor:
        """(B, C, *spatial) images to the network's input, in a cascade with a previous stage's segmentation of `labels`."""
        return image if self.previous_stage is None else torch.cat([image, self.previous_stage(labels)], dim=1)

    def to_target(self, labels: Tensor, codec: LabelCodec | None = None) -> Target:
        """(B, *spatial) class maps to targets, down-sampled for deep supervision by nnU-Net's own transform.

        Args:
            labels: the maps.
            codec: their classes; the dataset's if None.
        """
        target = (codec or self.codec).to_target(labels, self.target_dtype)
        if self.downsample is None:
            return target
        levels = self.downsample(segmentation=target.flatten(0, 1))["segmentation"]
        return [level.unflatten(0, target.shape[:2]) for level in levels]

    def replaced(self, batch: dict[str, Any], parts: Parts, replacement: Replacement | None) -> dict[str, Any]:
        """The batch with pairs in some of its slots; everything else as it was, on the device.

        With pairs, targets are those of the classes `pseudo`: region-based ones then have a channel more than the dataset's.
        """
        if replacement is None:
            return batch | {"data": parts.network_input, "target": parts.target}
        pairs, slots = replacement.pairs, slot_index(replacement.slots, self.device)
        inserted = {
            "data": _with(parts.network_input, slots, self._input_of(pairs, parts, slots)),
            "target": _with(self._with_ignore(parts.target), slots, self.to_target(pairs.labels, self.pseudo)),
        }
        for key in _further_maps(batch):
            rule = SPATIAL_ENTRIES[key]
            if rule is not unchanged:
                own = batch[key].to(self.device)
                inserted[key] = _with(own, slots, rule(own.index_select(0, slots), pairs.grid))
        return batch | inserted

    def _input_of(self, pairs: Pairs, parts: Parts, slots: Tensor) -> Tensor:
        """The network's input of pairs. In a cascade the previous stage's segmentation of the patch, with its errors, is deformed
        like the patch; where the mask is another one than the deformed, a segmentation of it is made up."""
        made_up = self.to_input(pairs.image, pairs.labels)
        if self.previous_stage is None:
            return made_up
        own = nearest(parts.network_input.index_select(0, slots)[:, self.image_channels :], pairs.grid)
        followed = warp_labels(parts.labels.index_select(0, slots), pairs.grid) == pairs.labels
        previous = torch.where(followed[:, None], own, made_up[:, self.image_channels :])
        return torch.cat([pairs.image, previous], dim=1)

    def _with_ignore(self, target: Target) -> Target:
        if self.codec.regions is None or self.codec.has_ignore == self.pseudo.has_ignore:
            return target
        return _mapped(target, lambda level: torch.cat([level, torch.zeros_like(level[:, :1])], dim=1))

    def require_known(self, batch: dict[str, Any], other_images: bool = False) -> None:
        """Whether every map of a batch can follow what happens to its image.

        Args:
            batch: nnU-Net's.
            other_images: whether patches of other images take the place of the batch's, without such maps.

        Raises:
            GenSegError: one cannot.
        """
        for key in _further_maps(batch):
            rule, value = SPATIAL_ENTRIES.get(key), batch[key]
            if other_images and rule is not unchanged:
                raise GenSegError(
                    f"this trainer's batches hold the map {key!r}, which unlabelled images do not have; leave unlabelled.images "
                    "out"
                )
            as_the_patch = isinstance(value, Tensor) and value.shape[2:] == batch["data"].shape[2:]
            if rule is None or (rule is not unchanged and not as_the_patch):
                raise GenSegError(
                    f"this trainer's batches hold the map {key!r}, and GenSeg does not know how it follows the deformation of "
                    f"its image; set nnunetv2_genseg.trainers.batches.SPATIAL_ENTRIES[{key!r}] to `nearest` or `linear` (for one "
                    "tensor of shape (B, channels, *spatial)), to `unchanged` if it does not lie in the space of the image, or "
                    "use another trainer"
                )


def _further_maps(batch: dict[str, Any]) -> list[str]:
    """Keys of entries beside image and target that may lie in the space of the patch, such as maps, points and boxes: those
    of three or more axes, one of which is that of the batch."""
    return [key for key, value in batch.items() if key not in KNOWN and _axes(value) > 2]


def _axes(value: Any) -> int:
    """Axes of a tensor or array; around them a list or mapping is another one."""
    if isinstance(value, (list, tuple, dict)):
        inner = max(map(_axes, value.values() if isinstance(value, dict) else value), default=0)
        return inner and inner + 1
    return int(getattr(value, "ndim", 0))


def _mapped(target: Any, function: Callable[[Tensor], Tensor]) -> Target:
    return [function(level) for level in target] if isinstance(target, list) else function(target)


def _with(values: Any, slots: Tensor, inserted: Any) -> Any:
    """A copy of a tensor, or of every tensor of a list, with other content in some slots."""
    if isinstance(values, list):
        return [_with(level, slots, new) for level, new in zip(values, inserted, strict=True)]
    rounded = inserted.round() if inserted.is_floating_point() and not values.is_floating_point() else inserted
    return values.index_copy(0, slots, rounded.to(values.dtype))
