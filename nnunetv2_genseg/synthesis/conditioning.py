"""What the generator is told: class channels, tissue classes of the unlabelled part, and every class's intensity.

A mask alone says nothing about the unlabelled part of a picture. So its voxels are clustered by intensity into tissue
classes, as SynthSeg-style generators do for the background (Billot et al., Medical Image Analysis 2023,
doi 10.1016/j.media.2023.102789), and these are deformed together with the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.synthesis.spatial import one_hot
from nnunetv2_genseg.synthesis.statistics import class_sums, sample_voxels

KMEANS_STEPS = 5


def tissue_map(image: Tensor, unlabelled: Tensor, tissues: int) -> Tensor:
    """Clusters the intensities of the unlabelled voxels of every patch; the labelled ones get the nearest cluster.

    Lloyd's k-means from quantiles of the channel mean, so that classes are ordered from dark to bright alike in every
    patch. Only the unlabelled voxels are meant: under a structure that leaves bare what it covered, see `spread`.

    Args:
        image: (B, C, *spatial), nnU-Net's normalised intensities.
        unlabelled: (B, *spatial) booleans; where nothing is unlabelled all voxels are used.
        tissues: number of classes.

    Returns:
        (B, *spatial) int64 in [0, tissues).
    """
    voxels, weight = image.flatten(2), unlabelled.flatten(1)
    weight = weight | ~weight.any(dim=1, keepdim=True)
    centres = _kmeans(sample_voxels(voxels), sample_voxels(weight), tissues)
    return _nearest(voxels, centres).view_as(unlabelled)


def _nearest(voxels: Tensor, centres: Tensor) -> Tensor:
    """(B, N) index of the nearest of (B, K, C) centres for (B, C, N) intensities; no copy of the voxels for every centre."""
    smallest = torch.full_like(voxels[:, 0], torch.inf)
    index = torch.zeros_like(smallest, dtype=torch.long)
    for k, centre in enumerate(centres.unbind(dim=1)):
        distance = (voxels - centre[..., None]).square().sum(dim=1)
        nearer = distance < smallest
        smallest, index = torch.where(nearer, distance, smallest), index.masked_fill(nearer, k)
    return index


def _kmeans(voxels: Tensor, weight: Tensor, clusters: int) -> Tensor:
    """(B, C, N) intensities of which (B, N) are used, to (B, clusters, C) centres."""
    brightness = voxels.mean(dim=1)
    order = torch.where(weight, brightness, torch.inf).argsort(dim=1)
    last = (weight.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    quantile = (torch.arange(clusters, device=voxels.device) + 0.5) / clusters
    start = order.gather(1, (quantile * last).long())
    weighted = torch.cat([voxels, torch.ones_like(voxels[:, :1])], dim=1) * weight[:, None]
    centres = voxels.transpose(1, 2).gather(1, start[..., None].expand(-1, -1, voxels.shape[1]))
    for _ in range(KMEANS_STEPS):
        sums = class_sums(weighted, _nearest(voxels, centres), clusters)
        centres = torch.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:].clamp(min=1), centres)
    darkest_first = centres.mean(dim=2).argsort(dim=1)
    return centres.gather(1, darkest_first[..., None].expand_as(centres))


def spread(tissue: Tensor, known: Tensor, tissues: int) -> Tensor:
    """Continues the surrounding tissue under structures, for masks with new shapes that leave bare what was covered.

    Every voxel takes the most frequent class of its neighbourhood: of 3 voxels, or where nothing in it is known, of 3 cells of 2,
    4, 8, ... voxels along every axis. How many rounds there are depends on the extent of the patch alone.

    Args:
        tissue: (B, *spatial) int64 in [0, tissues).
        known: (B, *spatial) booleans, what stays; a patch without any known voxel stays as it is.
        tissues: number of classes.

    Returns:
        (B, *spatial) int64.
    """
    filled, done = tissue, known
    counts = one_hot(tissue, tissues) * known[:, None]
    for level in range(max(1, (max(tissue.shape[1:]) - 1).bit_length())):
        most, choice = _box_sums(counts).max(dim=1)
        found = choice.masked_fill(most == 0, -1)
        empty = (counts.amax(dim=1) == 0) & (most > 0)
        counts = _halved(counts + one_hot(choice, tissues) * empty[:, None])
        for axis, extent in enumerate(tissue.shape[1:], start=1):
            found = found.index_select(axis, torch.arange(extent, device=found.device) >> level)
        new = ~done & (found >= 0)
        filled, done = torch.where(new, found, filled), done | new
    return filled


def _box_sums(maps: Tensor) -> Tensor:
    """Sums of (B, C, *spatial) over the 3 voxels along every axis around every voxel."""
    for axis in range(2, maps.ndim):
        padded, n = _padded(maps, axis, 1, 1), maps.shape[axis]
        maps = padded.narrow(axis, 0, n) + padded.narrow(axis, 1, n) + padded.narrow(axis, 2, n)
    return maps


def _halved(maps: Tensor) -> Tensor:
    """Sums of (B, C, *spatial) over cells of 2 voxels along every axis; the last cell of an odd extent has one."""
    for axis in range(2, maps.ndim):
        padded = _padded(maps, axis, 0, maps.shape[axis] % 2)
        maps = padded.view(*padded.shape[:axis], -1, 2, *padded.shape[axis + 1 :]).sum(dim=axis + 1)
    return maps


def _padded(maps: Tensor, axis: int, before: int, after: int) -> Tensor:
    return functional.pad(maps, [0] * 2 * (maps.ndim - 1 - axis) + [before, after])


def compose_scene(labels: Tensor, tissue: Tensor | None, layout: ConditionLayout) -> Tensor:
    """(B, *spatial) class maps and tissue maps to one scene; the ignore label counts as unlabelled."""
    labelled = (labels > 0) & (labels <= layout.foreground)
    background = torch.zeros_like(labels) if tissue is None else tissue + 1 + layout.foreground
    return torch.where(labelled, labels, background)


def class_intensities(image: Tensor, scene: Tensor, layout: ConditionLayout) -> Tensor:
    """(B, scene_classes, C) mean intensity of every class in its patch; of a class that a patch lacks, the batch's."""
    counted = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    sums = class_sums(counted, scene, layout.scene_classes)
    total, size = sums[..., :-1], sums[..., -1:]
    everywhere = total.sum(dim=0) / size.sum(dim=0).clamp(min=1)
    return torch.where(size > 0, total / size.clamp(min=1), everywhere[None])


def condition(scene: Tensor, intensities: Tensor, layout: ConditionLayout) -> Tensor:
    """The generator's input.

    Args:
        scene: (B, *spatial) int64, in the geometry of the image to draw.
        intensities: (B, scene_classes, C), from `class_intensities`, shifted or not.
        layout: which channels there are, and along which axes intensities are blurred.

    Returns:
        (B, layout.channels, *spatial) float32, differentiable in `intensities`.
    """
    shown = scene[:, None]
    channels = torch.zeros(len(scene), layout.channels, *scene.shape[1:], device=scene.device)
    channels.scatter_(1, (shown - 1).clamp(min=0), (shown > 0).float())  # no channel for class 0
    if layout.tissues:
        index = scene.flatten(1)[:, None].expand(-1, layout.image_channels, -1)
        painted = intensities.transpose(1, 2).gather(2, index).view(len(scene), -1, *scene.shape[1:])
        # borders are a voxel wide, as in real images: a shifted class must not be told by a hard edge; between thick slices
        # they are hard
        channels[:, layout.scene_classes - 1 :] = neighbourhood_mean(painted, layout.movable_axes)
    return channels
