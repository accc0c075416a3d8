"""Synthetic pairs, and what every pair goes through last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.masks import MaskChange
from nnunetv2_genseg.synthesis.spatial import identity_grid, per_patch, warp_labels


@dataclass(frozen=True)
class Pairs:
    """Synthetic images with their masks, each made from one real patch."""

    image: Tensor
    """(B, C, *spatial), in nnU-Net's normalised intensities."""
    labels: Tensor
    """(B, *spatial) int64 class maps."""
    grid: Tensor
    """(B, *spatial, dims) sampling positions of the deformation, for further maps of the same patch."""
    accepted: Tensor
    """(B,) booleans: whether the mask is new; a rejected one is the real mask."""

    @staticmethod
    def joined(parts: list[Pairs]) -> Pairs:
        """The pairs of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        return Pairs(*(torch.cat([getattr(part, name) for part in parts]) for name in ("image", "labels", "grid", "accepted")))


def slot_index(slots: list[int], device: torch.device) -> Tensor:
    """Slots as an index on the device. A list as an index would make the host wait for a GPU."""
    return torch.tensor(slots).to(device, non_blocking=True)


def constant_channels(image: Tensor) -> Tensor:
    """(B, C, 1, ...) booleans for (B, C, *spatial) images: channels of one value, such as a modality that a case lacks."""
    low, high = image.flatten(2).aminmax(dim=2)
    return (low == high).view(*low.shape, *(1,) * (image.ndim - 2))


def blank_as_before(drawn: Tensor, image: Tensor, change: MaskChange, masked: Tensor | None) -> Tensor:
    """Keeps blank what is blank in the real patch.

    Args:
        drawn: (B, C, *spatial) synthetic images.
        image: (B, C, *spatial) real images.
        change: how their masks changed.
        masked: (C,) booleans: channels that are 0 outside of the subject (nnU-Net's `use_mask_for_norm`); None: no channel.

    Returns:
        `drawn` with 0 outside of the subject in masked channels, and the real patch's value where its channel is constant.
    """
    if masked is not None:
        channel = masked.view(-1, *(1,) * (image.ndim - 2))
        empty = ((image == 0) | ~channel).all(dim=1)  # to index with `masked` would wait for the device
        drawn = drawn.masked_fill(warp_labels(empty.long(), change.grid).bool()[:, None] & channel, 0)
    return torch.where(constant_channels(image), image, drawn)


def replaced_where(good: Tensor, pairs: Pairs, others: Pairs) -> Pairs:
    """Pairs of which those that are not `good`, (B,) booleans, are others."""

    def chosen(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(per_patch(good, one), one, other)

    return Pairs(*(chosen(getattr(pairs, name), getattr(others, name)) for name in ("image", "labels", "grid", "accepted")))


def not_changed(image: Tensor, labels: Tensor) -> Pairs:
    """Real patches, (B, C, *spatial) and (B, *spatial), in the form of pairs."""
    grid = identity_grid(labels.shape[1:], labels.device).expand(*labels.shape, labels.ndim - 1)
    return Pairs(image, labels, grid, torch.zeros(len(labels), dtype=torch.bool, device=labels.device))
