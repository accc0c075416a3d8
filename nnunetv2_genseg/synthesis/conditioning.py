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
    return torch.cdist(voxels.transpose(1, 2), centres).argmin(dim=2).view_as(unlabelled)


def _kmeans(voxels: Tensor, weight: Tensor, clusters: int) -> Tensor:
    """(B, C, N) intensities of which (B, N) are used, to (B, clusters, C) centres."""
    brightness = voxels.mean(dim=1)
    order = torch.where(weight, brightness, torch.inf).argsort(dim=1)
    last = (weight.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    cluster = torch.arange(clusters, device=voxels.device)
    start = order.gather(1, ((cluster + 0.5) / clusters * last).long())
    points = voxels.transpose(1, 2)
    centres = points.gather(1, start[..., None].expand(-1, -1, points.shape[2]))
    for _ in range(KMEANS_STEPS):
        member = (torch.cdist(points, centres).argmin(dim=2, keepdim=True) == cluster) & weight[..., None]
        size = member.sum(dim=1)[..., None]
        mean = member.float().transpose(1, 2) @ points / size.clamp(min=1)
        centres = torch.where(size > 0, mean, centres)
    darkest_first = centres.mean(dim=2).argsort(dim=1)
    return centres.gather(1, darkest_first[..., None].expand_as(centres))


def spread(tissue: Tensor, known: Tensor, tissues: int) -> Tensor:
    """Continues the surrounding tissue under structures, for masks with new shapes that leave bare what was covered.

    Every voxel takes the most frequent known class of its neighbourhood, in rounds of growing neighbourhoods. How many
    rounds there are depends on the extent of the patch alone.

    Args:
        tissue: (B, *spatial) int64 in [0, tissues).
        known: (B, *spatial) booleans, what stays; a patch without any known voxel stays as it is.
        tissues: number of classes.

    Returns:
        (B, *spatial) int64.
    """
    filled, done, radius, reached = tissue, known, 1, 0
    while reached < max(tissue.shape[1:]) - 1:
        count = _box_sums(one_hot(filled, tissues) * done[:, None], radius)
        new = ~done & (count.sum(dim=1) > 0)
        filled, done = torch.where(new, count.argmax(dim=1), filled), done | new
        reached, radius = reached + radius, 2 * radius + 1
    return filled


def _box_sums(maps: Tensor, radius: int) -> Tensor:
    """Sums of (B, C, *spatial) over the boxes of `radius` voxels around every voxel, of what lies within the patch."""
    for axis in range(2, maps.ndim):
        position = torch.arange(maps.shape[axis], device=maps.device)
        total = functional.pad(maps.movedim(axis, -1).cumsum(dim=-1), (1, 0))
        upper, lower = (position + radius + 1).clamp(max=len(position)), (position - radius).clamp(min=0)
        maps = (total.index_select(-1, upper) - total.index_select(-1, lower)).movedim(-1, axis)
    return maps


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
        layout: which channels there are.

    Returns:
        (B, layout.channels, *spatial) float32, differentiable in `intensities`.
    """
    shown = scene[:, None]
    channels = torch.zeros(len(scene), layout.channels, *scene.shape[1:], device=scene.device)
    channels.scatter_(1, (shown - 1).clamp(min=0), (shown > 0).float())  # no channel for class 0
    if layout.tissues:
        index = scene.flatten(1)[:, None].expand(-1, layout.image_channels, -1)
        painted = intensities.transpose(1, 2).gather(2, index).view(len(scene), -1, *scene.shape[1:])
        # borders are a voxel wide, as in real images: a shifted class must not be told by a hard edge
        channels[:, layout.scene_classes - 1 :] = neighbourhood_mean(painted)
    return channels
