"""The donor's structures at their place in the patch, with a random margin.

CarveMix (Zhang et al., NeuroImage 2023, doi 10.1016/j.neuroimage.2023.120041).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.distance import distance_to
from nnunetv2_genseg.synthesis.pasting.base import PASTES, PasteContext
from nnunetv2_genseg.synthesis.spatial import per_patch


@PASTES.register("carve")
class Carve:
    """All structures of the donor, with d the signed distance to their surface: d < limit, which is at random between half of
    their depth inside and their whole depth outside."""

    def __init__(self, context: PasteContext) -> None:
        self.context = context

    def __call__(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See `Paste`."""
        return image, labels, carved(self.context.codec.is_foreground(labels), rng, self.context.movable_axes)


def carved(structure: Tensor, rng: torch.Generator, axes: Sequence[bool]) -> Tensor:
    """The structure, grown or shrunk by a random margin.

    With d the signed distance, negative inside, and c uniform in [-1, 1]: d < c / 2 * min d for c above 0, that is smaller than
    the structure, else d < c * min d, a margin at most as wide as the structure is deep.

    Args:
        structure: (B, *spatial) booleans.
        rng: on its device.
        axes: along which distances are measured; not across thick slices, where a structure on one or two is a voxel deep however
            wide it is, and no margin would reach a voxel.

    Returns:
        (B, *spatial) booleans; False all over where there is no structure.
    """
    reach = max(2, max(structure.shape[1:]) // 4)
    inside, outside = (distance_to(target, reach, axes) for target in (~structure, structure))
    depth = inside.flatten(1).amax(dim=1)
    margin = 2 * torch.rand(len(structure), generator=rng, device=rng.device) - 1
    limit = -depth * torch.where(margin > 0, margin / 2, margin)
    signed = torch.where(structure, -inside, outside)
    return (signed < per_patch(limit, signed)) & per_patch(depth > 0, signed)
