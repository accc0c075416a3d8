"""The networks of the generators, built from nnU-Net's own plan: a mixed-kernel U-Net and a patch discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from nnunetv2_genseg.generators.dilation import convolve

MIXED_KERNELS = ((1, 1), (3, 1), (3, 2))
"""(size, dilation) of the kernels that a cell mixes: receptive fields of 1, 3 and 5 voxels. Sizes rise within a dilation."""
MIXED_CHANNELS = 16
"""A condition of more than twice as many channels, from many classes, is mixed into so many before it is convolved, so that the
time hardly grows with the number of classes."""


@dataclass(frozen=True)
class NetworkPlan:
    """What nnU-Net planned for the segmentation network, and the generator follows: 2D and 3D alike."""

    patch_size: tuple[int, ...]
    """Spatial extent of a patch, voxels."""
    features: tuple[int, ...]
    """Channels of every stage."""
    strides: tuple[tuple[int, ...], ...]
    """Down-sampling at the entry of every stage, per axis."""
    kernels: tuple[tuple[int, ...], ...]
    """Kernel size of every stage, per axis; an axis with kernel 1 is not convolved over (anisotropic 3D)."""

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def movable_axes(self) -> tuple[bool, ...]:
        """Axes that the first stage convolves over; in anisotropic 3D not the one with thick slices."""
        return tuple(size > 1 for size in self.kernels[0])

    def scaled(self, width: float) -> tuple[int, ...]:
        """Channels of every stage times `width`, at least 4."""
        return tuple(max(4, round(features * width)) for features in self.features)

    def extents(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        """Spatial extent of every stage's maps, for patches of the extent `spatial`."""
        found, extent = [], tuple(spatial)
        for stride in self.strides:
            extent = tuple(-(-size // step) for size, step in zip(extent, stride, strict=True))
            found.append(extent)
        return found


def _convolution(dims: int) -> Callable[..., nn.Module]:
    return nn.Conv2d if dims == 2 else nn.Conv3d


def _entry(dims: int, channels: int) -> tuple[nn.Module, int]:
    """What a condition passes first, and its channels then: with many classes a learned vector for each of them."""
    if channels <= 2 * MIXED_CHANNELS:
        return nn.Identity(), channels
    return _convolution(dims)(channels, MIXED_CHANNELS, 1, bias=False), MIXED_CHANNELS


class MixedKernelCell(nn.Module):
    """A convolution whose kernel is a mixture: softmax(α) weighs kernels of several sizes, then norm and SiLU.

    α, an `nn.Parameter` of shape (len(MIXED_KERNELS),), is the architecture of GenSeg's generator. Mixing is linear, so the
    kernels are mixed instead of their outputs: those of the same dilation into one. A single dense kernel of extent 5 would
    be slower, in the coarse stages of 2D (many channels, few voxels) and everywhere in 3D. SiLU is smooth, so that
    hypergradients meet no kinks here.

    `GroupNorm(1)` normalises over the whole patch: what is drawn in one place depends slightly on the condition everywhere else.

    Shapes: (B, inputs, *spatial) to (B, outputs, *spatial / stride).

    Args:
        inputs: channels.
        outputs: channels.
        kernel: the plan's kernel size per axis; an axis with 1 is not convolved over.
        stride: per axis.
        noise_input: whether `forward` adds noise before the activation.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], noise_input: bool = False
    ) -> None:
        super().__init__()
        convolution = _convolution(len(kernel))
        self.candidates = nn.ModuleList()
        for size, dilation in MIXED_KERNELS:
            extent = tuple(min(size, planned) for planned in kernel)
            padding = tuple(dilation * (n // 2) for n in extent)
            self.candidates.append(convolution(inputs, outputs, extent, tuple(stride), padding, dilation=dilation, bias=False))
        self.alpha = nn.Parameter(torch.zeros(len(MIXED_KERNELS)))
        self.stride = tuple(stride)
        self.norm = nn.GroupNorm(1, outputs)
        self.noise = NoiseInput(outputs) if noise_input else None
        self.activation = nn.SiLU()

    def mixed_kernels(self) -> dict[int, Tensor]:
        """The mixed kernels by their dilation, (outputs, inputs, *extent) each."""
        groups: dict[int, list[Tensor]] = {}
        for share, candidate, (_, dilation) in zip(self.alpha.softmax(dim=0), self.candidates, MIXED_KERNELS, strict=True):
            groups.setdefault(dilation, []).append(share * cast(Tensor, candidate.weight))
        return {dilation: _centred_sum(kernels) for dilation, kernels in groups.items()}

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Convolves, normalises and activates; `noise`, (B, 1, *spatial / stride), is only for a cell with a noise input."""
        parts = [convolve(x, kernel, self.stride, dilation) for dilation, kernel in self.mixed_kernels().items()]
        normed: Tensor = self.norm(sum(parts[1:], parts[0]))
        if self.noise is not None and noise is not None:
            normed = self.noise(normed, noise)
        result: Tensor = self.activation(normed)
        return result


def _centred_sum(kernels: Sequence[Tensor]) -> Tensor:
    """The sum of kernels of several odd extents, each in the middle of the largest, which is the last one."""
    total = kernels[-1]
    for kernel in kernels[:-1]:
        margins = [(there - here) // 2 for there, here in zip(total.shape[2:], kernel.shape[2:], strict=True)]
        total = total + functional.pad(kernel, [margin for margin in reversed(margins) for _ in range(2)])
    return total


class NoiseInput(nn.Module):
    """Adds one map of noise to all channels, each with a learned factor that is 0 at the start.

    As in StyleGAN (Karras et al., CVPR 2019, arXiv 1812.04948): texture that the condition does not determine.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """(B, channels, *spatial) and (B, 1, *spatial) to (B, channels, *spatial)."""
        return torch.addcmul(x, noise, self.factor.view(-1, *(1,) * (x.ndim - 2)))


class StyleModulation(nn.Module):
    """Scales and shifts channels by a style vector (FiLM, Perez et al., AAAI 2018); identity for a zero style."""

    def __init__(self, style_channels: int, channels: int) -> None:
        super().__init__()
        self.affine = nn.Linear(style_channels, 2 * channels, bias=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(B, channels, *spatial) and (B, style_channels) to (B, channels, *spatial)."""
        scale, shift = self.affine(style).view(len(x), -1, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
        modulated: Tensor = x * (1 + scale) + shift
        return modulated


class Upsample(nn.Module):
    """Up-sampling by interpolation: a transposed convolution leaves a visible grid.

    Shapes: (B, inputs, *spatial) to (B, outputs, *spatial * stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.convolution = _convolution(len(stride))(inputs, outputs, 1)
        self.stride = tuple(float(step) for step in stride)
        self.mode = "bilinear" if len(stride) == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        """Mixes channels, then interpolates."""
        larger: Tensor = functional.interpolate(self.convolution(x), scale_factor=self.stride, mode=self.mode)
        return larger


class MixedKernelUNet(nn.Module):
    """Condition and style to image, with the stages, strides and kernels of nnU-Net's plan.

    The last layer sees the condition too, so that a class's intensity has a direct way to the image. The output is not
    bounded: images are relative to their standard deviation. If the condition changes in one place, the drawing changes
    slightly elsewhere too, because the cells' norms average over the whole patch. So the difference of two drawings, before
    and after a change, is small but not zero far from the change.

    Args:
        plan: the segmentation network's plan.
        condition_channels: channels of the condition.
        image_channels: channels of the image.
        style_channels: length of the style vector.
        width: channels relative to the plan's.
        noise_inputs: whether every stage of the decoder has a noise input.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        condition_channels: int,
        image_channels: int,
        style_channels: int,
        width: float,
        noise_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.plan = plan
        features = plan.scaled(width)
        self.entry, shown = _entry(plan.dims, condition_channels)
        inputs = (shown, *features)
        self.encoder = nn.ModuleList(
            MixedKernelCell(inputs[i], features[i], plan.kernels[i], plan.strides[i]) for i in range(len(features))
        )
        below = range(len(features) - 1, 0, -1)
        unstrided = (1,) * plan.dims
        self.upsample = nn.ModuleList(Upsample(features[i], features[i - 1], plan.strides[i]) for i in below)
        self.decoder = nn.ModuleList(
            MixedKernelCell(2 * features[i - 1], features[i - 1], plan.kernels[i - 1], unstrided, noise_inputs) for i in below
        )
        self.style = nn.ModuleList(StyleModulation(style_channels, features[i - 1]) for i in below)
        self.head = _convolution(plan.dims)(features[0] + shown, image_channels, 1)

    def noise_shapes(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes of one patch's noise maps, for patches of this extent, in the order of the decoder's stages."""
        return [(1, *extent) for extent in reversed(self.plan.extents(spatial)[:-1])]

    def noise_strides(self) -> list[tuple[int, ...]]:
        """Voxels per axis that a point of each of the noise maps takes."""
        strides, total = [], (1,) * self.plan.dims
        for stride in self.plan.strides[:-1]:
            total = tuple(before * step for before, step in zip(total, stride, strict=True))
            strides.append(total)
        return strides[::-1]

    def forward(self, condition: Tensor, style: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Draws images.

        Args:
            condition: (B, condition_channels, *spatial).
            style: (B, style_channels).
            noise: (B, *shape) for each of `noise_shapes`; None: no noise.

        Returns:
            (B, image_channels, *spatial).
        """
        condition = self.entry(condition)
        skips, x = [], condition
        for cell in self.encoder:
            x = cell(x)
            skips.append(x)
        skips.pop()
        maps = [None] * len(self.decoder) if noise is None else noise
        for upsample, cell, modulate, added in zip(self.upsample, self.decoder, self.style, maps, strict=True):
            x = modulate(cell(torch.cat([upsample(x), skips.pop()], dim=1), added), style)
        image: Tensor = self.head(torch.cat([x, condition], dim=1))
        return image

    def architecture(self) -> list[nn.Parameter]:
        """α of every cell."""
        return [module.alpha for module in self.modules() if isinstance(module, MixedKernelCell)]


class PatchDiscriminator(nn.Module):
    """Judges overlapping neighbourhoods of an image given its condition (Isola et al., CVPR 2017), spectrally normed.

    The condition passes `entry` first, voxel by voxel, so that this can be done once for several images.

    Shapes: what `entry` makes of (B, condition_channels, *spatial), and (B, image_channels, *spatial), to (B, 1, *coarser).
    """

    STAGES = 3

    def __init__(self, plan: NetworkPlan, condition_channels: int, image_channels: int, width: float) -> None:
        super().__init__()
        convolution = _convolution(plan.dims)
        features = plan.scaled(width)[: self.STAGES]
        layers: list[nn.Module] = []
        entry, shown = _entry(plan.dims, condition_channels)
        self.entry = spectral_norm(entry) if shown < condition_channels else entry
        inputs = shown + image_channels
        for outputs, kernel, stride in zip(features, plan.kernels, plan.strides[1:] or plan.strides, strict=False):
            padding = tuple(size // 2 for size in kernel)
            layers += [spectral_norm(convolution(inputs, outputs, kernel, stride, padding)), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers.append(spectral_norm(convolution(inputs, 1, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, condition: Tensor, image: Tensor) -> Tensor:
        """Scores; higher is more real."""
        scores: Tensor = self.layers(torch.cat([condition, image], dim=1))
        return scores
