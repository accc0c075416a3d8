"""Synthetic pairs on tensors: a trained generator, or one that learns in your loop, outside of nnU-Net's trainer."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegError, Settings, flattened, merged
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import CONFIG, ImageKind
from nnunetv2_genseg.synthesis.label_table import LabelTable
from nnunetv2_genseg.synthesis.pair_description import PairDescription, load_kept
from nnunetv2_genseg.synthesis.sampler import PairSampler

WITHOUT_EFFECT = (
    *("schedule", "mixing.share", "paste", "unlabelled", "review", "feedback"),
    *("generator.interval", "generator.pretrained"),
)
"""Settings of a training that no pair here depends on."""


class PairAugmentation:
    """Makes a synthetic pair of each real patch: `(image, label map)` to `(image, label map)`, in 2D and 3D.

    `load` takes a trained generator; `untrained` makes one that learns in your loop by `training_step`. Nothing is pasted from
    other cases and there is no feedback: both need a training of nnU-Net.

    Args:
        description: what the pairs are made with.
        sampler: makes them.
        normalise: see `normalised`; None: it is not known.
    """

    def __init__(
        self, description: PairDescription, sampler: PairSampler, normalise: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.description = description
        """Its `images` are what is expected: channels, their normalisation and the spacing (mm); its `plan` holds the extent of
        the patches of the training."""
        self.sampler = sampler
        self.device = sampler.deformer.largest.device
        self._normalise = normalise
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """For loaders' processes: networks with spectral normalisation cannot be pickled themselves."""
        description = replace(self.description, settings=self.sampler.config.to_json())
        return _rebuilt, (description, self.device, self.sampler.state_dict(), self._normalise)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", settings: Settings | None = None) -> PairAugmentation:
        """Pairs as a training made them.

        Args:
            folder: of a fold that GenSeg trained (`.../GenSegTrainer__nnUNetPlans__2d/fold_0`), whose newest checkpoint is
                taken. Or the folder that `genseg pretrain` wrote. The dataset is not needed.
            device: where pairs are made.
            settings: those that shall differ from the training's, such as `{"deformation": {"rotation": 10.0}}`.

        Raises:
            GenSegError: the folder is neither, or is damaged, or a setting does not fit or would have no effect.
        """
        place, on = Path(folder), torch.device(device)
        _require_effect(settings or {}, "seed")
        if (place / CONFIG).is_file():
            return cls(*load_kept(place, on, settings))
        from nnunetv2_genseg.trainers.fold_pairs import load_fold  # imports nnU-Net, which takes seconds

        _require_effect(settings or {}, "generator.learning_rate")  # the optimiser's state holds that of the training
        return cls(*load_fold(place, on, settings))

    @classmethod
    def untrained(
        cls, plan: NetworkPlan, classes: int, channels: int, device: str | torch.device = "cpu", settings: Settings | None = None
    ) -> PairAugmentation:
        """Pairs of a generator that learns in your loop. Images shall have a mean of about 0 and a standard deviation of about 1.

        Call `training_step` also where nothing learns (`{"mixing": {"sources": {"deformation": 1.0, "redraw": 0}}}`): a structure
        of a pair is no larger than the largest that it was shown, or than that of the pair's own patch.

        Args:
            plan: stages of your segmentation network; the generator has the same, with half of the channels.
            classes: foreground classes; label maps hold 0 for the background and 1 to `classes`.
            channels: of the image.
            device: where pairs are made.
            settings: those that differ from the defaults.

        Raises:
            GenSegError: a setting is not allowed, or would have no effect.
        """
        _require_effect(settings or {})
        labels = LabelTable({label: label for label in range(classes + 1)}, tuple(range(classes + 1)), False)
        images = ImageKind(tuple(map(str, range(channels))), (), (False,) * channels, ())
        own = merged(settings or {}, {"feedback": {"enabled": False}})
        description = PairDescription(own, plan, images, labels, tuple(range(plan.dims)))
        return cls(description, description.sampler(torch.device(device), None))

    def training_step(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """The generator takes a step on real patches; new masks may have sizes as in the patches so far.

        Arguments as in `__call__`. Returns the losses by name.
        """
        images, classes = self._taken(image, labels, rng)
        with self._undisturbed():
            self.sampler.observe(classes)
            return self.sampler.training_step(images, classes, rng)

    @torch.no_grad()
    def __call__(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A pair of each real patch; equal arguments give equal pairs.

        Args:
            image: (B, C, *spatial), normalised as in the training; see `normalised`. The axes are in the order of nnU-Net's
                plans. Each extent is a multiple of the product of the plan's strides, best that of the training's patches.
            labels: (B, *spatial) whole numbers: the labels of dataset.json.
            rng: on `device`.

        Returns:
            (B, C, *spatial) float32 and (B, *spatial) of the type of `labels`, where these were. A patch whose new mask is out of
            the bounds that real masks set keeps its mask, and one whose image is not finite stays real.

        Raises:
            GenSegError: shapes, labels or `rng` are others.
        """
        images, classes = self._taken(image, labels, rng)
        seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
        chosen = self.sampler.choose(len(images), 1.0, torch.Generator().manual_seed(seed))
        with self._undisturbed():
            new = self.sampler.replace(images, classes, chosen, rng)
        order = torch.tensor(new.slots).argsort().to(self.device)
        masks = self.description.labels.to_labels(new.pairs.labels[order])
        return new.pairs.image[order].to(image.device), masks.to(labels.device, labels.dtype)

    @property
    def extent_xyz(self) -> tuple[int, ...]:
        """Extent of the training's patches, its axes in the order x, y[, z] of MONAI and TorchIO."""
        axes = self.description.axes
        return tuple(self.description.plan.patch_size[axes.index(axis)] for axis in range(len(axes)))

    def of_xyz(self, image: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A pair of one patch whose axes are indexed (x, y[, z]), as MONAI and TorchIO load images.

        Args:
            image: (C, *spatial), as in `__call__`.
            labels: (1, *spatial) of any type, whole numbers.
            seed: of the draw.

        Returns:
            (C, *spatial) float32 and (1, *spatial) int64.

        Raises:
            GenSegError: as `__call__`, or a label is no whole number.
        """
        order = [1 + axis for axis in self.description.axes]
        if not image.ndim == labels.ndim == 1 + len(order):
            raise GenSegError(
                f"found an image of shape {tuple(image.shape)} and a label map of {tuple(labels.shape)}; give (C, ...) and "
                f"(1, ...) with {len(order)} axes more"
            )
        whole = labels.long()
        if not torch.equal(whole.to(labels.dtype), labels):
            raise GenSegError("the label map holds fractions; resample label maps by nearest neighbour")
        back = [0, *(1 + order.index(axis) for axis in sorted(order))]
        rng = torch.Generator(self.device).manual_seed(seed)
        drawn, masks = self(image.permute(0, *order)[None], whole.permute(0, *order), rng)
        return drawn[0].permute(back), masks.permute(back)

    def normalised(self, image: Tensor) -> Tensor:
        """A whole image, (C, *spatial), of raw intensities, as nnU-Net normalises it; patches are cut after that.

        Resampling to the training's spacing is not part of it.

        Raises:
            GenSegError: only the folder of a fold tells how.
        """
        if self._normalise is None:
            asked = ", ".join(self.description.images.normalization) or "mean 0 and standard deviation 1"
            raise GenSegError(f"only a fold folder tells the normalisation; load one, or normalise yourself, as by {asked}")
        return self._normalise(image)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """In float32 also within a loop's autocast, and one thread at a time: the networks change while they draw."""
        with self._lock, nullcontext() if self.device.type == "mps" else torch.autocast(self.device.type, enabled=False):
            yield

    def _taken(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images, float32, and class maps, int64, on the own device."""
        plan, channels = self.description.plan, len(self.description.images.channels)
        spatial = tuple(image.shape[2:])
        if len(spatial) != plan.dims or image.shape[1] != channels or tuple(labels.shape) != (len(image), *spatial):
            axes = ", ".join("yx" if plan.dims == 2 else "zyx")
            raise GenSegError(
                f"found images of shape {tuple(image.shape)} and label maps of {tuple(labels.shape)}; give "
                f"(B, {channels}, {axes}) and (B, {axes})"
            )
        steps = [math.prod(axis) for axis in zip(*plan.strides, strict=True)]
        if any(extent % step for extent, step in zip(spatial, steps, strict=True)):
            raise GenSegError(f"found patches of extent {spatial}; crop or pad them to multiples of {tuple(steps)}")
        if labels.is_floating_point():
            raise GenSegError(f"found label maps of {labels.dtype}; convert them to whole numbers (labels.long())")
        if rng.device.type != self.device.type:
            raise GenSegError(f"found a random generator on {rng.device}; make it by torch.Generator({str(self.device)!r})")
        return image.to(self.device).float(), self.description.labels.to_classes(labels.to(self.device))


def _require_effect(settings: Settings, *others: str) -> None:
    """Raises GenSegError if settings are among `WITHOUT_EFFECT` or the others."""
    idle = [name for name in flattened(settings) if f"{name}.".startswith(tuple(f"{key}." for key in [*WITHOUT_EFFECT, *others]))]
    if idle:
        raise GenSegError(f"PairAugmentation does not read {', '.join(idle)}; leave out what has no effect on its pairs")


def _rebuilt(
    description: PairDescription, device: torch.device, state: dict[str, Any], normalise: Callable[[Tensor], Tensor] | None
) -> PairAugmentation:
    sampler = description.sampler(device, None)
    sampler.load_state_dict(state)
    return PairAugmentation(description, sampler, normalise)
