"""New masks out of the few real ones: recombination, growth and shrinkage, affine and elastic deformation.

All on the device of the class maps, batched, seeded, dimension-agnostic. Maps are deformed by nearest neighbour, so
integers stay integers and no class appears that was not there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.config import MaskConfig

COVERED = 0.9
"""A transplant replaces a patch's own structures if it covers this fraction of their voxels."""


@dataclass(frozen=True)
class MaskChange:
    """What `draw_change` decided for a batch; nothing is deformed yet."""

    labels: Tensor
    """(B, *spatial) int64: the class maps after recombination and growth, in the geometry of the real image."""
    grid: Tensor
    """(B, *spatial, dims): sampling positions of the deformation, for `warp`."""
    donors: Tensor
    """(B,) int64: the patch of the batch that each transplant comes from; its own index without recombination."""
    exchanged: Tensor
    """(B, *spatial) booleans: voxels of the transplant, in the geometry of the real image."""
    to_donor: Tensor
    """(B, dims, dims + 1): `affine` from positions in a patch to those in its donor's."""
    kept: Tensor
    """(B,) booleans: False where the new mask was discarded for the real one."""


def draw_change(
    labels: Tensor,
    classes: int,
    config: MaskConfig,
    largest: Tensor,
    rng: torch.Generator,
    amount: Tensor | float = 1.0,
    movable_axes: Sequence[bool] | None = None,
    frozen_class: int | None = None,
    start: Tensor | None = None,
) -> MaskChange:
    """Draws a new mask for every patch.

    A patch keeps its real mask where the new one would lose a class that the real one has, shrink it below
    `config.smallest` of its size, or make it larger than anything seen in the dataset. A class that the patch's border cuts may
    shrink or leave, if `config.smallest` of all classes together stays: else patches of many structures would keep their masks.

    Args:
        labels: (B, *spatial) int64 class maps, values in [0, classes).
        classes: number of classes, background and ignore label included.
        config: how far masks are changed.
        largest: (classes,) most voxels of every class seen in one real patch.
        rng: on the device of `labels`.
        amount: factor on the elastic displacement.
        movable_axes: False for an axis along which nothing is deformed (anisotropic 3D); all by default. A transplant may be
            moved along it, by whole voxels.
        frozen_class: the last class, which neither grows nor moves between patches and may be of any size (the ignore label).
        start: (B, *spatial) int64, what is changed instead of the real masks (`shapes`).
    """
    count, spatial = len(labels), labels.shape[1:]
    movable = [True] * len(spatial) if movable_axes is None else list(movable_axes)
    edited, donors, exchanged, to_donor = recombine(
        labels if start is None else start, config, movable, rng, frozen_class
    )
    grown = grow(edited, classes, config.growth, rng, frozen_class)
    unbounded = torch.full_like(largest, math.inf)
    survives = per_patch(within_sizes(edited, grown, config.smallest, unbounded, frozen_class), edited)
    edited = torch.where(survives, grown, edited)
    identity = identity_grid(spatial, labels.device).expand(count, *spatial, len(spatial))
    grid = affine(identity, random_affine(count, spatial, config, movable, rng)) + amount * elastic_field(
        count, spatial, config.elastic, config.control_points, movable, rng
    )

    new = warp(edited, grid)
    cut = at_border(labels, classes)
    kept = within_sizes(labels, new, config.smallest, largest, frozen_class, cut)
    chosen = per_patch(kept, labels)
    own = torch.arange(count, device=labels.device)
    return MaskChange(
        torch.where(chosen, edited, labels),
        torch.where(chosen[..., None], grid, identity),
        torch.where(kept, donors, own),
        exchanged & chosen,
        to_donor,
        kept,
    )


def within_sizes(
    labels: Tensor,
    new: Tensor,
    smallest: float,
    largest: Tensor,
    frozen_class: int | None = None,
    may_leave: Tensor | None = None,
) -> Tensor:
    """Whether new masks lose no class, shrink none too far and show none larger than any seen.

    Args:
        labels: (B, *spatial) int64, the real masks.
        new: (B, *spatial) int64.
        smallest: fraction of its voxels that every class keeps.
        largest: (classes,) most voxels of every class seen in one real patch.
        frozen_class: the last class, whose size does not matter (the ignore label).
        may_leave: (B, classes) booleans, of which it is enough that `smallest` of all classes together stays; none by default.

    Returns:
        (B,) booleans.
    """
    counted = slice(1, frozen_class)
    real, size = (class_sizes(maps, len(largest))[:, counted] for maps in (labels, new))

    def stays(now: Tensor, before: Tensor) -> Tensor:
        return (now >= (smallest * before).clamp(min=1)) | (before == 0)

    keeps = stays(size, real)
    if may_leave is not None:
        keeps |= may_leave[:, counted]
    bounded = (keeps & (size <= torch.maximum(largest[counted], real))).all(dim=1)
    return bounded & stays(size.sum(dim=1), real.sum(dim=1))


def at_border(labels: Tensor, classes: int) -> Tensor:
    """(B, classes) whether a class touches the border of the patch, for (B, *spatial) class maps."""
    faces = [labels.select(axis, end).flatten(1) for axis in range(1, labels.ndim) for end in (0, -1)]
    return class_sizes(torch.cat(faces, dim=1), classes) > 0


def per_patch(values: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B, 1, ...), to be broadcast against `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def class_sizes(labels: Tensor, classes: int) -> Tensor:
    """(B, classes) number of voxels of every class, for (B, *spatial) class maps."""
    sizes = torch.zeros(len(labels), classes, device=labels.device)
    flat = labels.flatten(1)
    return sizes.scatter_add_(1, flat, torch.ones_like(flat, dtype=sizes.dtype))


def recombine(
    labels: Tensor, config: MaskConfig, movable: Sequence[bool], rng: torch.Generator, frozen_class: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transplants structures, turned and resized, with a margin of their surroundings, between the patches of a batch.

    The donor is any patch of the batch that shows a structure, the receiver itself included. The transplant lies on the
    centroid of the receiver's own structures if it covers them, or else where it lay in the donor if it is clear of them;
    or else there is none.

    Args:
        labels: (B, *spatial) int64.
        config: `recombination`, `margin`, `rotation` and `scaling` are used.
        movable: per spatial axis.
        rng: on the device of `labels`.
        frozen_class: neither transplanted nor covered (the ignore label).

    Returns:
        labels: (B, *spatial) int64, the new maps.
        donors: (B,) int64, the patch that each transplant comes from.
        exchanged: (B, *spatial) booleans, the voxels of the transplant.
        to_donor: (B, dims, dims + 1), `affine` from positions in a patch to those in its donor's.
    """
    count, spatial = len(labels), labels.shape[1:]
    own = torch.arange(count, device=labels.device)
    partner = torch.randint(count, (count,), generator=rng, device=rng.device)
    wanted = torch.rand(count, generator=rng, device=rng.device) < config.recombination
    margin = config.margin * max(spatial) * torch.rand(count, generator=rng, device=rng.device)
    to_donor = random_affine(count, spatial, config, movable, rng)

    frozen = torch.zeros_like(labels, dtype=torch.bool) if frozen_class is None else labels == frozen_class
    structures = (labels > 0) & ~frozen
    shows = structures.flatten(1).any(dim=1)
    taken = wanted & shows[partner]
    if not taken.any():
        return labels, own, torch.zeros_like(frozen), to_donor
    centre = centroids(structures)
    extent = torch.tensor(spatial[::-1], device=labels.device)
    # whole voxels: nearest sampling keeps shapes
    offset = ((centre[partner] - centre) * extent / 2).round() * 2 / extent
    identity = identity_grid(spatial, labels.device).expand(count, *spatial, len(spatial))

    def transplant(theta: Tensor) -> tuple[Tensor, Tensor]:
        positions = affine(identity, theta)
        moved = warp(labels[partner], positions)
        there = (positions.abs() <= 1).all(dim=-1) & ~frozen & ~warp(frozen[partner].long(), positions).bool()
        return moved, _dilate((moved > 0) & there, margin, movable) & there & per_patch(taken, labels)

    replacing = _about(to_donor, centre, offset)
    moved, region = transplant(replacing)
    covered = (structures & region).flatten(1).sum(dim=1) >= COVERED * structures.flatten(1).sum(dim=1)
    adding = _about(to_donor, centre[partner], torch.zeros_like(offset))
    moved_there, region_there = transplant(adding)
    clear = ~(structures & region_there).flatten(1).any(dim=1)
    replaces = covered & shows
    region = torch.where(per_patch(replaces, labels), region, region_there & per_patch(clear, labels))
    moved = torch.where(per_patch(replaces, labels), moved, moved_there)
    return (
        torch.where(region, moved, labels),
        torch.where(taken & (replaces | clear), partner, own),
        region,
        torch.where(replaces[:, None, None], replacing, adding),
    )


def _about(theta: Tensor, pivot: Tensor, offset: Tensor) -> Tensor:
    """The affine map `theta` about (B, dims) points instead of the centre, and an offset after it."""
    matrix = theta[..., :-1]
    return torch.cat([matrix, (pivot + offset - (matrix @ pivot[..., None])[..., 0])[..., None]], dim=2)


def _dilate(region: Tensor, margin: Tensor, movable: Sequence[bool]) -> Tensor:
    """Grows (B, *spatial) regions by (B,) voxels along the movable axes, a box a step."""
    pool = functional.max_pool2d if region.ndim == 3 else functional.max_pool3d
    kernel = [3 if free and n > 1 else 1 for free, n in zip(movable, region.shape[1:], strict=True)]
    for step in range(int(margin.max())):
        wider = pool(region[:, None].float(), kernel, stride=1, padding=[n // 2 for n in kernel])[:, 0] > 0
        region = torch.where(per_patch(step < margin.floor(), region), wider, region)
    return region


def grow(labels: Tensor, classes: int, amount: float, rng: torch.Generator, frozen_class: int | None = None) -> Tensor:
    """Moves the boundaries of every foreground class outward or inward by up to about a voxel.

    Every voxel takes the class with the largest share of its 3-voxel neighbourhood after a bias for or against each
    class, uniform in [-amount, amount]. Voxels whose neighbourhood is of one class never change.

    Args:
        labels: (B, *spatial) int64 class maps, values in [0, classes).
        classes: number of classes.
        amount: largest bias, in [0, 0.5).
        rng: on the device of `labels`.
        frozen_class: neither grows nor shrinks.
    """
    if amount == 0:
        return labels
    dims = labels.ndim - 1
    bias = amount * (2 * torch.rand(len(labels), classes, generator=rng, device=rng.device) - 1)
    bias[:, 0] = 0
    share = neighbourhood_mean(one_hot(labels, classes))
    present = share > 0
    scores = share + bias.view(*bias.shape, *(1,) * dims)
    grown = scores.masked_fill(~present, -math.inf).argmax(dim=1)
    if frozen_class is not None:
        frozen = labels == frozen_class
        grown = torch.where(frozen | (grown == frozen_class), labels, grown)
    return grown


def neighbourhood_mean(maps: Tensor) -> Tensor:
    """Mean of the 3-voxel neighbourhood of every voxel of (B, C, *spatial), of what lies within the patch."""
    pool = functional.avg_pool2d if maps.ndim == 4 else functional.avg_pool3d
    kernel = [min(3, n - 1 + n % 2) for n in maps.shape[2:]]  # avg_pool3d takes no kernel larger than the patch
    return pool(maps, kernel, stride=1, padding=[n // 2 for n in kernel], count_include_pad=False)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, *spatial) int64 to (B, classes, *spatial) float32."""
    maps = torch.zeros(len(labels), classes, *labels.shape[1:], device=labels.device)
    return maps.scatter_(1, labels[:, None], 1.0)


def centroids(mask: Tensor) -> Tensor:
    """(B, *spatial) booleans to (B, dims) mean positions in `grid_sample`'s coordinates (x first); 0 if empty."""
    grid = identity_grid(mask.shape[1:], mask.device)
    weight = mask.float()[..., None]
    axes = tuple(range(1, mask.ndim))
    return (weight * grid).sum(dim=axes) / weight.sum(dim=axes).clamp(min=1)


def identity_grid(spatial: Sequence[int], device: torch.device) -> Tensor:
    """(1, *spatial, dims) sampling positions that change nothing, in [-1, 1], last axis first (`grid_sample`)."""
    axes = [(torch.arange(n, device=device) * 2 + 1) / n - 1 for n in spatial]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]


def random_affine(
    count: int, spatial: Sequence[int], config: MaskConfig, movable: Sequence[bool], rng: torch.Generator
) -> Tensor:
    """Draws rotations and changes of size about the centre of the patch, in voxel units so that shapes are kept.

    Args:
        count: B.
        spatial: extent of the patch, voxels.
        config: `rotation` and `scaling` are used.
        movable: per spatial axis; an axis that is not movable is neither rotated nor scaled.
        rng: its device is where the result lies.

    Returns:
        (B, dims, dims + 1) for `affine`.
    """
    dims, device = len(spatial), rng.device
    extent = torch.tensor(spatial[::-1], device=device, dtype=torch.float32)
    free = list(movable)[::-1]
    matrix = torch.eye(dims, device=device).repeat(count, 1, 1)
    for first in range(dims):
        for second in range(first + 1, dims):
            angle = (2 * torch.rand(count, generator=rng, device=device) - 1) * math.radians(config.rotation)
            if free[first] and free[second]:
                turn = torch.eye(dims, device=device).repeat(count, 1, 1)
                turn[:, first, first] = turn[:, second, second] = angle.cos()
                turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
                matrix = matrix @ turn
    exponent = 2 * torch.rand(count, generator=rng, device=device) - 1
    zoom = (exponent * -math.log(1 - config.scaling)).exp()
    matrix = matrix * torch.where(torch.tensor(free, device=device), zoom[:, None], 1.0)[:, None, :]
    matrix = matrix * extent / extent[:, None]
    return torch.cat([matrix, torch.zeros(count, dims, 1, device=device)], dim=2)


def affine(positions: Tensor, theta: Tensor) -> Tensor:
    """Maps (B, *spatial, dims) positions by (B, dims, dims + 1) matrices, in `grid_sample`'s coordinates."""
    moved = positions.flatten(1, -2) @ theta[..., :-1].transpose(1, 2) + theta[:, None, :, -1]
    return moved.view_as(positions)


def elastic_field(
    count: int, spatial: Sequence[int], deviation: float, points: int, movable: Sequence[bool], rng: torch.Generator
) -> Tensor:
    """A smooth random displacement: a cubic B-spline through Gaussian control points.

    Args:
        count: B.
        spatial: extent of the patch, voxels.
        deviation: standard deviation at a control point, as a fraction of the patch extent.
        points: control points along every axis, at least 4.
        movable: per spatial axis, whether there is any displacement along it.
        rng: its device is where the field is made.

    Returns:
        (B, *spatial, dims) in `grid_sample`'s coordinates.
    """
    dims, device = len(spatial), rng.device
    control = torch.randn(count, dims, *(points,) * dims, generator=rng, device=device) * 2 * deviation
    control = control * torch.tensor(list(movable)[::-1], device=device).view(1, dims, *(1,) * dims)
    for axis, extent in enumerate(spatial):
        basis = _bspline_basis(extent, points, device)
        control = torch.tensordot(control, basis, dims=([2], [1]))  # the axis done moves to the end: order is kept
        assert control.shape[-1] == spatial[axis]
    return control.movedim(1, -1)


def _bspline_basis(extent: int, points: int, device: torch.device) -> Tensor:
    """(extent, points): the uniform cubic B-splines' values at the voxel centres, rows summing to 1."""
    position = (torch.arange(extent, device=device) + 0.5) / extent * (points - 3)
    left = position.floor().clamp(max=points - 4).long()
    t = position - left
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=1) / 6
    basis = torch.zeros(extent, points, device=device)
    return basis.scatter_(1, left[:, None] + torch.arange(4, device=device), weights)


def warp(maps: Tensor, grid: Tensor) -> Tensor:
    """Samples integer maps at `grid`, nearest neighbour, mirrored at the border.

    Args:
        maps: (B, *spatial) integers below 2**24.
        grid: (B, *spatial, dims).
    """
    sampled = functional.grid_sample(maps[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return sampled[:, 0].to(maps.dtype)


def warp_image(image: Tensor, grid: Tensor) -> Tensor:
    """Samples (B, C, *spatial) images at (B, *spatial, dims) positions, linearly, mirrored at the border."""
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
