"""The donor's lesions at another place, turned and scaled, as in TumorCP (Yang et al., MICCAI 2021, arXiv 2107.09843)."""

from __future__ import annotations

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.pasting.base import PASTES, PasteContext
from nnunetv2_genseg.synthesis.pasting.carve import carved
from nnunetv2_genseg.synthesis.spatial import affine, identity_grid, random_affine, warp_image, warp_labels

BORDER = 0.2
"""The new centre keeps this distance from the patch's border, as a fraction of its extent."""


@PASTES.register("lesion")
class Lesion:
    """A structure of the free classes, turned and scaled about its centre, which moves to a random place.

    The place is uniform in the patch but for its rim; what lies there is not looked at. A structure that the patch's border cuts
    is not pasted, since the cut would show.
    """

    def __init__(self, context: PasteContext) -> None:
        self.context = context

    def __call__(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """See `Paste`."""
        count, spatial, dims = len(labels), labels.shape[1:], labels.ndim - 1
        config, axes = self.context.deformation, self.context.movable_axes
        structure = one_component(self.context.free(labels), rng)
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
        region = carved(moved, rng, axes) & within
        return warp_image(image, grid), labels, region


def one_component(structures: Tensor, rng: torch.Generator) -> Tensor:
    """A random connected component of each patch's structures that does not touch its border; found on the CPU.

    Args:
        structures: (B, *spatial) booleans.
        rng: of the choice.

    Returns:
        (B, *spatial) booleans; False all over where there is none.
    """
    drawn = torch.rand(len(structures), generator=rng, device=rng.device).tolist()
    chosen = [_component(patch, share) for patch, share in zip(structures.cpu().numpy(), drawn, strict=True)]
    return torch.from_numpy(np.stack(chosen)).to(structures.device)


def _component(structures: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """The component at a fraction, in [0, 1), of all that the border does not cut."""
    components = cc3d.connected_components(structures.astype(np.uint8), connectivity=8 if structures.ndim == 2 else 26)
    faces = [components.take(end, axis=axis) for axis in range(components.ndim) for end in (0, -1)]
    whole = np.setdiff1d(np.unique(components), [0, *(number for face in faces for number in np.unique(face))])
    return components == whole[int(share * len(whole))] if len(whole) else np.zeros_like(structures)
