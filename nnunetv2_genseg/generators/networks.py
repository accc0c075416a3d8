"""The networks of the generators, built from nnU-Net's own plan: a mixed-kernel U-Net and a patch discriminator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

MIXED_KERNELS = ((1, 1), (3, 1), (3, 2))
"""(size, dilation) of the kernels that a cell mixes: receptive fields of 1, 3 and 5 voxels."""


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


def _convolution(dims: int) -> Callable[..., nn.Module]:
    return nn.Conv2d if dims == 2 else nn.Conv3d


class MixedKernelCell(nn.Module):
    """A convolution whose kernel is a mixture: softmax(α) weighs kernels of several sizes, then norm and SiLU.

    α, an `nn.Parameter` of shape (len(MIXED_KERNELS),), is the architecture of GenSeg's generator. SiLU is smooth, so
    that hypergradients by difference quotients do not meet kinks here.

    Shapes: (B, inputs, *spatial) to (B, outputs, *spatial / stride).
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        convolution = _convolution(len(kernel))
        self.candidates = nn.ModuleList()
        for size, dilation in MIXED_KERNELS:
            extent = tuple(min(size, planned) for planned in kernel)
            padding = tuple(dilation * (n // 2) for n in extent)
            self.candidates.append(
                convolution(inputs, outputs, extent, tuple(stride), padding, dilation=dilation, bias=False)
            )
        self.alpha = nn.Parameter(torch.zeros(len(MIXED_KERNELS)))
        self.norm = nn.GroupNorm(1, outputs)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the candidates' outputs."""
        weights = self.alpha.softmax(dim=0)
        mixed: Tensor = sum(weight * candidate(x) for weight, candidate in zip(weights, self.candidates, strict=True))
        result: Tensor = self.activation(self.norm(mixed))
        return result


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


class Rise(nn.Module):
    """Up-sampling by interpolation: a transposed convolution leaves its grid where intensities were never seen.

    Shapes: (B, inputs, *spatial) to (B, outputs, *spatial * stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.convolution = _convolution(len(stride))(inputs, outputs, 1)
        self.stride = tuple(float(step) for step in stride)
        self.mode = "bilinear" if len(stride) == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        """Mixes channels, then interpolates."""
        raised: Tensor = functional.interpolate(self.convolution(x), scale_factor=self.stride, mode=self.mode)
        return raised


class MixedKernelUNet(nn.Module):
    """Condition and style to image, with the stages, strides and kernels of nnU-Net's plan.

    The last layer sees the condition too, so that a class's intensity has a straight way to the image. The output is
    not bounded: images are relative to their standard deviation.

    Args:
        plan: the segmentation network's plan.
        condition_channels: channels of the condition.
        image_channels: channels of the image.
        style_channels: length of the style vector.
        width: channels relative to the plan's.
    """

    def __init__(
        self, plan: NetworkPlan, condition_channels: int, image_channels: int, style_channels: int, width: float
    ) -> None:
        super().__init__()
        features = plan.scaled(width)
        convolution = _convolution(plan.dims)
        inputs = (condition_channels, *features)
        self.encoder = nn.ModuleList(
            MixedKernelCell(inputs[i], features[i], plan.kernels[i], plan.strides[i]) for i in range(len(features))
        )
        below = range(len(features) - 1, 0, -1)
        self.rise = nn.ModuleList(Rise(features[i], features[i - 1], plan.strides[i]) for i in below)
        self.decoder = nn.ModuleList(
            MixedKernelCell(2 * features[i - 1], features[i - 1], plan.kernels[i - 1], (1,) * plan.dims) for i in below
        )
        self.style = nn.ModuleList(StyleModulation(style_channels, features[i - 1]) for i in below)
        self.head = convolution(features[0] + condition_channels, image_channels, 1)

    def forward(self, condition: Tensor, style: Tensor) -> Tensor:
        """(B, condition_channels, *spatial) and (B, style_channels) to (B, image_channels, *spatial)."""
        skips, x = [], condition
        for cell in self.encoder:
            x = cell(x)
            skips.append(x)
        skips.pop()
        for rise, cell, modulate in zip(self.rise, self.decoder, self.style, strict=True):
            x = modulate(cell(torch.cat([rise(x), skips.pop()], dim=1)), style)
        image: Tensor = self.head(torch.cat([x, condition], dim=1))
        return image

    def architecture(self) -> list[nn.Parameter]:
        """α of every cell."""
        return [module.alpha for module in self.modules() if isinstance(module, MixedKernelCell)]


class PatchDiscriminator(nn.Module):
    """Judges overlapping neighbourhoods of an image given its condition (Isola et al., CVPR 2017), spectrally normed.

    Shapes: (B, condition_channels, *spatial) and (B, image_channels, *spatial) to (B, 1, *coarser) scores.
    """

    STAGES = 3

    def __init__(self, plan: NetworkPlan, condition_channels: int, image_channels: int, width: float) -> None:
        super().__init__()
        convolution = _convolution(plan.dims)
        features = plan.scaled(width)[: self.STAGES]
        layers: list[nn.Module] = []
        inputs = condition_channels + image_channels
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
