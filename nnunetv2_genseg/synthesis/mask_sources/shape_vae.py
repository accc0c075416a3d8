"""New shapes of the structures in a mask: a small variational autoencoder of signed distances, trained beside the generator.

A structure is seen in its own frame, the box around all structures of a patch, on a coarse grid: position and size are
the patch's, the shape alone is learnt, so that few cases are enough. Every class is a map of signed distances
(DeepSDF, Park et al., CVPR 2019): between two shapes' distances lies a shape, between two label maps lies none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunetv2_genseg.generators.divergence import divergence
from nnunetv2_genseg.generators.optimisation import adam, load_optimiser, optimiser_step
from nnunetv2_genseg.synthesis.bounds import ComponentBounds, class_sizes
from nnunetv2_genseg.synthesis.distance import distance_to
from nnunetv2_genseg.synthesis.mask_sources.base import MASK_SOURCES
from nnunetv2_genseg.synthesis.spatial import affine, identity_grid, one_hot, per_patch

GRID = {2: 32, 3: 24}
"""Most points of the grid that shapes are learnt on along an axis, by the number of axes."""
FILL = 0.75
"""Share of its frame's extent that a structure takes: a new one may be larger."""
REACH = 0.25
"""Distances are clipped to this fraction of the frame: what is farther from a boundary says nothing of the shape."""
LATENTS = 16
FEATURES = (16, 32, 64)
LEARNING_RATE = 2e-3
PRECISION = 5000.0
"""Weight of the squared error (distances in units of their reach) beside the divergence in nats."""
AVERAGING = 0.98
"""Decay of the moving average of the weights that shapes are drawn with, lower in the first steps: with single steps on a patch
or two a small structure of all patches comes and goes."""
SPREAD = 0.5
"""How much of a drawn latent is noise, if `amount` is 1; the rest is the real mask's."""
OBSERVING = 10
"""Components and holes of the real masks are counted, on the CPU, in every so many-th step."""


def signed_distance(inside: Tensor, reach: float) -> Tensor:
    """Euclidean distances from the boundary of a region, exact.

    The boundary lies half-way between voxels, so that no distance is 0 and every sign tells the region.

    Args:
        inside: (B, *spatial) booleans.
        reach: distances are clipped to [-reach, reach], in voxels; a region without a boundary is that far from it.

    Returns:
        (B, *spatial) float32, positive inside.
    """
    farthest = math.ceil(reach) + 1
    distance = torch.where(inside, distance_to(~inside, farthest) - 0.5, 0.5 - distance_to(inside, farthest))
    return distance.clamp(-reach, reach)


def frames(structures: Tensor) -> Tensor:
    """The frame of every patch: the box around its structures and some space, or the whole patch if it has none.

    Args:
        structures: (B, *spatial) booleans.

    Returns:
        (B, dims, dims + 1) for `affine`, from positions in the frame to those in the patch.
    """
    dims, middle, half = structures.ndim - 1, [], []
    for axis in range(dims, 0, -1):  # `grid_sample` has the last axis first
        size = structures.shape[axis]
        shown = structures.movedim(axis, 1).flatten(2).any(dim=2).long()
        first, behind = shown.argmax(dim=1), size - shown.flip(1).argmax(dim=1)
        empty = ~shown.any(dim=1)
        middle.append(((first + behind) / size - 1).masked_fill(empty, 0.0))
        half.append(((behind - first) / size / FILL).masked_fill(empty, 1.0))
    return torch.cat([torch.diag_embed(torch.stack(half, dim=1)), torch.stack(middle, dim=1)[..., None]], dim=2)


def _inverse(frame: Tensor) -> Tensor:
    scale = frame[..., :-1].diagonal(dim1=1, dim2=2).reciprocal()
    return torch.cat([torch.diag_embed(scale), -(scale * frame[..., -1])[..., None]], dim=2)


def _sample(maps: Tensor, theta: Tensor, spatial: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(B, C, *spatial) maps seen through `theta` on a grid, continued beyond their border; and the positions."""
    positions = affine(identity_grid(spatial, maps.device), theta)
    return functional.grid_sample(maps, positions, padding_mode="border", align_corners=False), positions


class ShapeNetwork(nn.Module):
    """Encoder and decoder of signed distances; the decoder is told which classes there are.

    Args:
        classes: background and foreground classes.
        grid: extent of the maps, 2D or 3D; any, also of one voxel along an axis.
    """

    def __init__(self, classes: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.sizes = [tuple(-(-n // 2**level) for n in grid) for level in range(len(FEATURES) + 1)]
        convolution = nn.Conv2d if len(grid) == 2 else nn.Conv3d
        self.mode = "bilinear" if len(grid) == 2 else "trilinear"

        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.Sequential(convolution(inputs, outputs, 3, stride, 1), nn.GroupNorm(1, outputs), nn.SiLU())

        widths = (classes, *FEATURES)
        self.encoder = nn.Sequential(*(block(widths[i], widths[i + 1], 2) for i in range(len(FEATURES))))
        coarsest = FEATURES[-1] * math.prod(self.sizes[-1])
        self.head = nn.Linear(coarsest, 2 * LATENTS)
        self.foot = nn.Linear(LATENTS + classes - 1, coarsest)
        self.decoder = nn.ModuleList(block(FEATURES[i], FEATURES[max(i - 1, 0)], 1) for i in reversed(range(len(FEATURES))))
        self.out = convolution(FEATURES[0], classes, 3, padding=1)

    def encode(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """(B, classes, *grid) to mean and log variance of the latents, (B, LATENTS) each."""
        mean, log_variance = self.head(self.encoder(distances).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor, present: Tensor) -> Tensor:
        """(B, LATENTS) and (B, classes - 1) booleans to distances, (B, classes, *grid)."""
        x = self.foot(torch.cat([latents, present.float()], dim=1)).view(len(latents), FEATURES[-1], *self.sizes[-1])
        for size, block in zip(reversed(self.sizes[:-1]), self.decoder, strict=True):
            x = block(functional.interpolate(x, size, mode=self.mode, align_corners=False))
        distances: Tensor = self.out(x)
        return distances


def balanced_error(found: Tensor, distances: Tensor) -> Tensor:
    """(B,) mean squared errors of (B, classes, *grid) distances; inside and outside of a class weigh the same.

    Else a small structure would be learnt last: it is a few grid points, which could be outside at little cost.
    """
    spatial = tuple(range(2, distances.ndim))
    inside = distances > 0
    share = inside.float().mean(dim=spatial, keepdim=True)
    weight = torch.where(inside, 0.5 / share, 0.5 / (1 - share)).masked_fill((share == 0) | (share == 1), 1.0)
    return (weight * (found - distances).square()).flatten(1).mean(dim=1)


@MASK_SOURCES.register("shape_vae")
class ShapeVAE:
    """Learns shapes from real masks and draws new ones; the process's random state is left as it was.

    Args: as in `MaskSourceFactory`.
    """

    new_shapes = True

    def __init__(
        self,
        foreground: int,
        patch_size: Sequence[int],
        *,
        seed: int,
        device: torch.device,
        synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
    ) -> None:
        self.foreground = foreground
        self.synchronise = synchronise
        self.grid = tuple(min(GRID[len(patch_size)], n) for n in patch_size)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(seed)
            self.network = ShapeNetwork(1 + foreground, self.grid)
        self.average = deepcopy(self.network).requires_grad_(False)
        self.steps = 0
        self.optimizer = adam(list(self.network.parameters()), LEARNING_RATE)
        self.bounds = ComponentBounds(foreground, device)

    def training_step(self, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """One optimisation step on the masks of real patches, (B, *spatial) int64.

        Patches that hold the ignore label are left out: it hides a part of their structures, or makes holes in them.

        Returns:
            0-d tensors: `shape_vae`, the error of the distances, `shape_vae_kl`, and `finite`, whether all gradients were.
        """
        whole = (labels <= self.foreground).flatten(1).all(dim=1)
        if self.steps % OBSERVING == 0:
            self.bounds.observe(labels * per_patch(whole, labels))  # a patch without structures is within any bounds
        _, present, distances = self._framed(labels)
        mean, log_variance = self.network.encode(distances)
        noise = torch.randn(mean.shape, generator=rng, device=rng.device)
        found = self.network.decode(mean + (0.5 * log_variance).exp() * noise, present)
        weight = whole / whole.sum().clamp(min=1)
        error = (weight * balanced_error(found, distances)).sum()
        nats = (weight * divergence(mean, log_variance)).sum()
        finite = optimiser_step(self.optimizer, PRECISION * error + nats, list(self.network.parameters()), self.synchronise)
        self._update_average()
        return {"shape_vae": error.detach(), "shape_vae_kl": nats.detach(), "finite": finite}

    @torch.no_grad()
    def _update_average(self) -> None:
        self.steps += 1
        decay = min(AVERAGING, self.steps / (self.steps + 10))
        for kept, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            kept.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def sample(self, labels: Tensor, rng: torch.Generator, amount: Tensor | float = 1.0) -> Tensor:
        """New shapes, each in the place of a real one and of its classes.

        A class keeps its real shape where the new one is lost, or has fewer or more components or holes than in the real masks
        seen in training. If a class still is out of bounds with these real shapes among the new ones, the whole mask stays real.

        Args:
            labels: (B, *spatial) int64 class maps.
            rng: on their device.
            amount: factor on how far shapes are from the real ones; from 2 on they are drawn from the prior.

        Returns:
            (B, *spatial) int64; the ignore label, and patches without any structure, as they were.
        """
        drawn = self.draw(labels, amount, rng)
        refused = ~self._admitted(labels, drawn)

        def of_refused(maps: Tensor) -> Tensor:
            return functional.pad(refused, (1, 1)).gather(1, maps.flatten(1)).view_as(maps)

        mixed = torch.where(of_refused(labels), labels, drawn.masked_fill(of_refused(drawn), 0))
        accepted = self._admitted(labels, mixed).all(dim=1)
        return torch.where(per_patch(accepted, labels), mixed, labels)

    def _admitted(self, labels: Tensor, new: Tensor) -> Tensor:
        """(B, foreground) booleans: whether a class is in a new mask if it is in the real one, and within the bounds there."""
        real, there = (class_sizes(maps, 2 + self.foreground)[:, 1:-1] > 0 for maps in (labels, new))
        return (real == there) & self.bounds.admit(new)

    @torch.no_grad()
    def draw(self, labels: Tensor, amount: Tensor | float, rng: torch.Generator) -> Tensor:
        """As `sample`, but nothing is promised of components, holes and small classes.

        With a spread s = min(SPREAD * amount, 1), a latent is sqrt(1 - s^2) of the real mask's and s of noise: with 0 the real
        shape as the network knows it, with 1 the prior. Between them latents stay as far from 0 as those that the decoder has
        learned from.
        """
        frame, present, distances = self._framed(labels)
        mean, _ = self.average.encode(distances)
        noise = torch.randn(mean.shape, generator=rng, device=rng.device)
        spread = (mean.new_full((), SPREAD) * amount).clamp(0, 1)
        found = self.average.decode((1 - spread.square()).sqrt() * mean + spread * noise, present)
        scores, positions = _sample(found, _inverse(frame), labels.shape[1:])
        absent = functional.pad(~present, (1, 0)).view(*scores.shape[:2], *(1,) * (labels.ndim - 1))
        drawn = scores.masked_fill(absent, -math.inf).argmax(dim=1) * (positions.abs() <= 1).all(dim=-1)
        return torch.where(labels > self.foreground, labels, drawn)

    def _framed(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, present classes (B, foreground) and the distances of background and classes, (B, classes, *grid)."""
        known = labels.masked_fill(labels > self.foreground, 0)
        present = class_sizes(known, 1 + self.foreground)[:, 1:] > 0
        frame = frames(known > 0)
        share, _ = _sample(one_hot(known, 1 + self.foreground), frame, self.grid)
        inside = one_hot(share.argmax(dim=1), 1 + self.foreground).bool()
        reach = REACH * max(self.grid)
        return frame, present, signed_distance(inside.flatten(0, 1), reach).view_as(share) / reach

    def state_dict(self) -> dict[str, Any]:
        """Network, its moving average, optimiser and bounds."""
        return {
            "steps": self.steps,
            "network": dict(self.network.state_dict()),
            "average": dict(self.average.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "bounds": self.bounds.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps = state["steps"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        load_optimiser(self.optimizer, state["optimizer"])
        self.bounds.load_state_dict(state["bounds"])
