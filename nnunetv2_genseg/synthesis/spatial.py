"""Geometry of a batch: random affine and elastic deformations, and sampling of images and class maps at deformed positions.

Everything is batched, works in 2D and 3D and on the device of its inputs, and never waits for that device. Positions are those of
`torch.nn.functional.grid_sample` with `align_corners=False`: in [-1, 1] from border to border, the last axis first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

CONTROL_POINTS = 5
"""Control points of the elastic deformation along every axis; the outer ones lie beyond the border, knots half a patch apart."""
LARGEST_CONTROL_DISPLACEMENT = 0.4
"""Bound on a control point's displacement along every axis, in knot intervals. A cubic B-spline deformation whose control points
move by less than 0.48 (2D) or 0.40 (3D) of it does not fold (Choi and Lee, Graphical Models 2000, doi 10.1006/gmod.2000.0531)."""


def _lanczos(lobes: int) -> tuple[float, ...]:
    """Weights of the samples at 0.5, 1.5, ... on one side, for interpolation half-way between two samples."""

    def sinc(x: float) -> float:
        return math.sin(math.pi * x) / (math.pi * x)

    weights = [sinc(i + 0.5) * sinc((i + 0.5) / lobes) for i in range(lobes)]
    return tuple(weight / (2 * sum(weights)) for weight in weights)


LANCZOS = _lanczos(3)


def identity_grid(spatial: Sequence[int], device: torch.device) -> Tensor:
    """(1, *spatial, dims) sampling positions that change nothing."""
    axes = [(torch.arange(n, device=device) * 2 + 1) / n - 1 for n in spatial]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)[None]


def affine(positions: Tensor, theta: Tensor) -> Tensor:
    """Maps positions by affine matrices.

    Args:
        positions: (B or 1, *spatial, dims).
        theta: (B, dims, dims + 1), the last column is the translation.

    Returns:
        (B, *spatial, dims).
    """
    columns = theta.view(len(theta), *(1,) * (positions.ndim - 2), *theta.shape[1:]).unbind(dim=-1)
    moved = columns[-1]
    for axis, column in enumerate(columns[:-1]):  # no matrix product: it would lose precision under autocast or TF32
        moved = moved + positions[..., axis, None] * column
    return moved


def random_affine(
    count: int, spatial: Sequence[float], rotation: float, scaling: float, movable: Sequence[bool], rng: torch.Generator
) -> Tensor:
    """Draws rotations and changes of size about the centre of the patch, in units of `spatial` so that shapes are kept.

    Args:
        count: B.
        spatial: extent of the patch, voxels or mm.
        rotation: largest angle in every plane, degrees; angles are uniform.
        scaling: largest relative change of size, in [0, 1); the factor is log-uniform in [1 - scaling, 1 / (1 - scaling)].
        movable: per spatial axis; an axis that is not movable is neither rotated nor scaled.
        rng: its device is where the result lies.

    Returns:
        (B, dims, dims + 1) for `affine`.
    """
    dims, device = len(spatial), rng.device
    free = list(movable)[::-1]
    matrix = torch.eye(dims, device=device).repeat(count, 1, 1)
    for first in range(dims):
        for second in range(first + 1, dims):
            angle = (2 * torch.rand(count, generator=rng, device=device) - 1) * math.radians(rotation)
            if free[first] and free[second]:
                turn = torch.eye(dims, device=device).repeat(count, 1, 1)
                turn[:, first, first] = turn[:, second, second] = angle.cos()
                turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
                matrix = matrix @ turn
    exponent = 2 * torch.rand(count, generator=rng, device=device) - 1
    zoom = (exponent * -math.log(1 - scaling)).exp()[:, None] ** _constant(tuple(float(axis) for axis in free), device)
    extent = _constant(tuple(float(n) for n in spatial[::-1]), device)
    matrix = matrix * zoom[:, None, :] * extent / extent[:, None]
    return torch.cat([matrix, torch.zeros(count, dims, 1, device=device)], dim=2)


def displacement_field(
    count: int,
    spatial: Sequence[int],
    displacement: float,
    movable: Sequence[bool],
    rng: torch.Generator,
    amount: Tensor | float = 1.0,
) -> Tensor:
    """A smooth random displacement: a cubic B-spline with Gaussian coefficients at 5 control points along every axis.

    `identity_grid(...) + displacement_field(...)` never folds, as the coefficients are clamped; so the realised deviation falls
    short of a large `displacement`. To add an affine map without folding, apply it to that sum.

    Args:
        count: B.
        spatial: extent of the patch, voxels.
        displacement: standard deviation of the displacement along every axis, as a fraction of the patch extent; root mean
            square over the patch.
        movable: per spatial axis, whether there is any displacement along it.
        rng: its device is where the field is made.
        amount: factor on `displacement`, at least 0; the result is differentiable in it.

    Returns:
        (B, *spatial, dims) in `grid_sample`'s units: twice the fraction of the extent.
    """
    dims, device = len(spatial), rng.device
    bases = [_bspline_basis(n, CONTROL_POINTS, device) for n in spatial]
    gain = math.prod(_rms_gain(n, CONTROL_POINTS) for n in spatial)
    limit = LARGEST_CONTROL_DISPLACEMENT / (CONTROL_POINTS - 3)
    noise = torch.randn(count, dims, *(CONTROL_POINTS,) * dims, generator=rng, device=device)
    control = 2 * (noise * (displacement / gain) * amount).clamp(-limit, limit)
    control = control * _constant(tuple(float(axis) for axis in list(movable)[::-1]), device).view(1, dims, *(1,) * dims)
    for basis in bases:
        control = torch.tensordot(control, basis, dims=([2], [1]))  # the axis done moves to the end: order is kept
    return control.movedim(1, -1)


@lru_cache(maxsize=64)
def _bspline_basis(extent: int, points: int, device: torch.device) -> Tensor:
    """(extent, points): the uniform cubic B-splines' values at the voxel centres, rows summing to 1."""
    position = (torch.arange(extent, dtype=torch.float64) + 0.5) / extent * (points - 3)
    left = position.floor().clamp(max=points - 4).long()
    t = position - left
    weights = torch.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], dim=1) / 6
    basis = torch.zeros(extent, points, dtype=torch.float64)
    return basis.scatter_(1, left[:, None] + torch.arange(4), weights).float().to(device)


@lru_cache(maxsize=64)
def _rms_gain(extent: int, points: int) -> float:
    """Root mean square over the voxels of the standard deviation of a spline with coefficients of unit variance, per axis.

    It tends to sqrt(151 / 315) = 0.692 for many voxels.
    """
    return float(_bspline_basis(extent, points, torch.device("cpu")).square().sum(dim=1).mean().sqrt())


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A small float32 vector, copied to its device once."""
    return torch.tensor(values, device=device)


def warp_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Samples integer maps, nearest neighbour, mirrored at the border.

    Args:
        labels: (B, *spatial) integers below 2**24.
        grid: (B, *spatial, dims).

    Returns:
        (B, *spatial) of the same type.
    """
    maps = labels[:, None].float()
    sampled = functional.grid_sample(maps, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return sampled[:, 0].to(labels.dtype)


def warp_image(image: Tensor, grid: Tensor) -> Tensor:
    """Samples images, mirrored at the border: in 2D by a sharp cubic interpolation, in 3D linearly as nnU-Net itself does.

    In 2D the image is first upsampled twofold (Lanczos) and then sampled bicubically. Of white noise this keeps 0.74 of the
    energy above half of Nyquist, plain bicubic sampling 0.64 and bilinear sampling 0.34 (64 x 64 pixels, default deformation).
    Values stay within the range of their patch and channel, so overshoots at edges are bounded and constant channels stay so.

    Args:
        image: (B, C, *spatial) floating point; the result is differentiable in it.
        grid: (B, *spatial, dims).

    Returns:
        (B, C, *spatial).
    """
    flat = image.ndim == 4
    source = _upsampled(_upsampled(image, 2), 3) if flat else image
    mode = "bicubic" if flat else "bilinear"
    sampled = functional.grid_sample(source, grid, mode=mode, padding_mode="reflection", align_corners=flat)
    spatial = tuple(range(2, image.ndim))
    values = image.detach()
    return sampled.clamp(values.amin(dim=spatial, keepdim=True), values.amax(dim=spatial, keepdim=True))


def _upsampled(image: Tensor, axis: int) -> Tensor:
    """Adds samples half-way between those along an axis and at both borders: n to 2n + 1, for `align_corners=True`."""
    n, reach = image.shape[axis], len(LANCZOS)
    padded = image.index_select(axis, _mirrored(n, reach, image.device))
    halfway = torch.zeros((), device=image.device)
    for i, weight in enumerate(LANCZOS):
        halfway = halfway + weight * (padded.narrow(axis, reach + i, n + 1) + padded.narrow(axis, reach - 1 - i, n + 1))
    both = torch.stack([halfway, padded.narrow(axis, reach, n + 1)], dim=axis + 1)
    return both.flatten(axis, axis + 1).narrow(axis, 0, 2 * n + 1)


@lru_cache(maxsize=64)
def _mirrored(extent: int, margin: int, device: torch.device) -> Tensor:
    """Indices of the voxels of an axis with a margin on both sides, mirrored at the border however wide the margin."""
    index = torch.arange(-margin, extent + margin) % (2 * extent)
    return torch.minimum(index, 2 * extent - 1 - index).to(device)


def per_patch(values: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B, 1, ...), to be broadcast against `like`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, *spatial) int64 to (B, classes, *spatial) float32."""
    maps = torch.zeros(len(labels), classes, *labels.shape[1:], device=labels.device)
    return maps.scatter_(1, labels[:, None], 1.0)
