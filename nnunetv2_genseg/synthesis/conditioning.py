"""What the generator is told: class channels, tissue classes of the unlabelled part, and every class's intensity.

A mask alone says nothing about the unlabelled part of a picture. So its voxels are clustered by intensity into tissue
classes, as SynthSeg-style generators do for the background (Billot et al., Medical Image Analysis 2023,
doi 10.1016/j.media.2023.102789), and these are deformed together with the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_genseg.synthesis.masks import neighbourhood_mean, one_hot, warp

KMEANS_STEPS = 5
KMEANS_VOXELS = 32768
"""The cluster centres of a patch are fitted on at most about this many of its voxels."""


@dataclass(frozen=True)
class ConditionLayout:
    """Which channels a condition has.

    A scene is a (B, *spatial) int64 map of `scene_classes` classes: 0 is unlabelled background that has no tissue
    class (mode `mask`), then the foreground classes, then the tissue classes.
    """

    foreground: int
    """Number of foreground classes."""
    tissues: int
    """Number of tissue classes; 0 for conditions that hold the mask alone."""
    image_channels: int
    """Channels of the image."""

    @property
    def scene_classes(self) -> int:
        """Background, foreground and tissue classes."""
        return 1 + self.foreground + self.tissues

    @property
    def channels(self) -> int:
        """Channels of a condition: one a class but the background, and with tissues the classes' intensities."""
        return self.scene_classes - 1 + (self.image_channels if self.tissues else 0)


def tissue_map(image: Tensor, unlabelled: Tensor, tissues: int) -> Tensor:
    """Clusters the intensities of the unlabelled voxels of every patch, and spreads the clusters under the labels.

    Lloyd's k-means from quantiles of the channel mean, so that classes are ordered from dark to bright alike in every
    patch; below a structure the surrounding tissue is continued, so that a structure can shrink or move away.

    Args:
        image: (B, C, *spatial), nnU-Net's normalised intensities.
        unlabelled: (B, *spatial) booleans; where nothing is unlabelled all voxels are used.
        tissues: number of classes.

    Returns:
        (B, *spatial) int64 in [0, tissues).
    """
    used = torch.where(unlabelled.flatten(1).any(dim=1).view(-1, *(1,) * (unlabelled.ndim - 1)), unlabelled, True)
    voxels, weight = image.flatten(2), used.flatten(1)
    step = -(-voxels.shape[2] // KMEANS_VOXELS)
    centres = _kmeans(voxels[:, :, ::step], weight[:, ::step], tissues)
    nearest = torch.cdist(voxels.transpose(1, 2), centres).argmin(dim=2).view_as(unlabelled)
    return _spread(nearest, used, tissues)


def _kmeans(voxels: Tensor, weight: Tensor, clusters: int) -> Tensor:
    """(B, C, N) intensities of which (B, N) are used, to (B, clusters, C) centres."""
    brightness = voxels.mean(dim=1)
    order = torch.where(weight, brightness, torch.inf).argsort(dim=1)
    last = (weight.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    quantile = (torch.arange(clusters, device=voxels.device) + 0.5) / clusters
    start = order.gather(1, (quantile * last).long())
    points = voxels.transpose(1, 2)
    centres = points.gather(1, start[..., None].expand(-1, -1, points.shape[2]))
    for _ in range(KMEANS_STEPS):
        member = functional.one_hot(torch.cdist(points, centres).argmin(dim=2), clusters) * weight[..., None]
        size = member.sum(dim=1)[..., None]
        mean = member.float().transpose(1, 2) @ points / size.clamp(min=1)
        centres = torch.where(size > 0, mean, centres)
    darkest_first = centres.mean(dim=2).argsort(dim=1)
    return centres.gather(1, darkest_first[..., None].expand_as(centres))


def _spread(tissue: Tensor, known: Tensor, tissues: int) -> Tensor:
    """Fills the voxels that are not `known` with the most frequent known class around, in growing neighbourhoods."""
    filled, done, size = tissue, known, 3
    while not done.all():
        count = _box_sums(one_hot(filled, tissues) * done[:, None], size)
        reached = ~done & (count.sum(dim=1) > 0)
        if not reached.any():
            break  # a patch without any known voxel keeps its nearest clusters
        filled = torch.where(reached, count.argmax(dim=1), filled)
        done = done | reached
        size = 2 * size + 1
    return filled


def _box_sums(maps: Tensor, size: int) -> Tensor:
    """Sums of (B, C, *spatial) over boxes of an odd size around every voxel, one axis after the other."""
    pool = functional.avg_pool2d if maps.ndim == 4 else functional.avg_pool3d
    for axis, extent in enumerate(maps.shape[2:]):
        kernel = [1] * (maps.ndim - 2)
        kernel[axis] = min(size, extent - 1 + extent % 2)  # avg_pool3d takes no kernel larger than the patch
        maps = pool(maps, kernel, stride=1, padding=[n // 2 for n in kernel], divisor_override=1)
    return maps


def compose_scene(labels: Tensor, tissue: Tensor | None, layout: ConditionLayout) -> Tensor:
    """(B, *spatial) class maps and tissue maps to one scene; the ignore label counts as unlabelled."""
    labelled = (labels > 0) & (labels <= layout.foreground)
    background = torch.zeros_like(labels) if tissue is None else tissue + 1 + layout.foreground
    return torch.where(labelled, labels, background)


def class_intensities(image: Tensor, scene: Tensor, layout: ConditionLayout) -> Tensor:
    """(B, scene_classes, C) mean intensity of every class in its patch; of a class that a patch lacks, the batch's."""
    member = one_hot(scene, layout.scene_classes).flatten(2)
    total, size = member @ image.flatten(2).transpose(1, 2), member.sum(dim=2)[..., None]
    mean = total / size.clamp(min=1)
    everywhere = total.sum(dim=0) / size.sum(dim=0).clamp(min=1)
    return torch.where(size > 0, mean, everywhere[None])


def condition(scene: Tensor, intensities: Tensor, layout: ConditionLayout, grid: Tensor | None = None) -> Tensor:
    """The generator's input.

    Args:
        scene: (B, *spatial) int64.
        intensities: (B, scene_classes, C), from `class_intensities`, shifted or not.
        layout: which channels there are.
        grid: (B, *spatial, dims) deformation of the scene; none if omitted.

    Returns:
        (B, layout.channels, *spatial) float32, differentiable in `intensities`.
    """
    channels = one_hot(scene if grid is None else warp(scene, grid), layout.scene_classes)
    if not layout.tissues:
        return channels[:, 1:]
    # borders are a voxel wide, as in real images: a shifted class must not be told by a hard edge
    painted = (intensities.transpose(1, 2) @ neighbourhood_mean(channels).flatten(2)).view(len(scene), -1, *scene.shape[1:])
    return torch.cat([channels[:, 1:], painted], dim=1)
