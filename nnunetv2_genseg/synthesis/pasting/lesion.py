"""The donor's lesions at another place, turned and scaled, as in TumorCP (Yang et al., MICCAI 2021, arXiv 2107.09843)."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.bounds import at_border
from nnunetv2_genseg.synthesis.pasting.base import PASTES, PasteContext
from nnunetv2_genseg.synthesis.pasting.carve import carved
from nnunetv2_genseg.synthesis.spatial import affine, identity_grid, per_patch, random_affine, warp_image, warp_labels

BORDER = 0.2
"""The new centre keeps this distance from the patch's border, as a fraction of its extent."""


@PASTES.register("lesion")
class Lesion:
    """Structures of the free classes, turned and scaled about their centre, which moves to a random place.

    The place is uniform in the patch but for its rim. A donor whose structures the patch's border cuts gives nothing, since the
    cut would show.
    """

    def __init__(self, context: PasteContext) -> None:
        self.context = context

    def __call__(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See `Paste`."""
        count, spatial, dims = len(labels), labels.shape[1:], labels.ndim - 1
        config, axes = self.context.deformation, self.context.movable_axes
        structure = self.context.free(labels)
        cut = at_border(structure.long(), 2)[:, 1]
        positions = identity_grid(spatial, labels.device)
        weight = structure.flatten(1).float()
        centre = (weight @ positions.flatten(1, -2)[0]) / weight.sum(dim=1, keepdim=True).clamp(min=1)
        drawn = (2 * torch.rand(count, dims, generator=rng, device=rng.device) - 1) * (1 - 2 * BORDER)
        place = torch.stack([(drawn if free else centre)[:, axis] for axis, free in enumerate(axes[::-1])], dim=1)
        theta = random_affine(count, spatial, config.rotation, config.scaling, axes, rng)
        turned = (theta[..., :-1] * place[:, None]).sum(dim=2)
        grid = affine(positions, torch.cat([theta[..., :-1], (centre - turned)[..., None]], dim=2))
        labels = warp_labels(labels, grid)
        within = (grid.abs() <= 1).all(dim=-1)  # what is mirrored at the border would be there twice
        moved = warp_labels(structure.long(), grid).bool() & within
        region = carved(moved, rng) & within & per_patch(~cut, labels)
        return warp_image(image, grid), labels, region
