"""Unlabelled images as the ground of pairs: a teacher labels a patch, which then takes the place of a labelled one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.synthesis.pairs import slot_index
from nnunetv2_genseg.synthesis.pseudo_labels import PseudoLabels
from nnunetv2_genseg.trainers.batches import Parts
from nnunetv2_genseg.trainers.building import pair_codec
from nnunetv2_genseg.trainers.teacher import Teacher
from nnunetv2_genseg.trainers.teacher_quality import PATCHES, TeacherQuality
from nnunetv2_genseg.trainers.unlabelled_cases import UnlabelledCases


class PseudoLabelling:
    """Puts unlabelled patches with pseudo-labels into slots of a batch before pairs are made from them.

    Args:
        trainer: a GenSeg trainer of nnU-Net with `unlabelled.images`, initialised and its cases split.

    Raises:
        GenSegError: the images cannot be used.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.cases = UnlabelledCases(trainer)
        self.teacher = Teacher(trainer._plain_network(), trainer.num_epochs * trainer.num_iterations_per_epoch)
        self._loss = trainer._build_ignoring_loss(self.teacher.average)
        """For targets with an ignore label; None if the trainer's loss cannot ignore."""
        if self._loss is None:
            trainer._batches.pseudo = trainer._batches.codec
        confidence = trainer.genseg.unlabelled.confidence
        self.labels = PseudoLabels(pair_codec(trainer), confidence, self._loss is not None, trainer.device)
        self.quality = TeacherQuality(self.labels.codec.foreground, trainer.device, trainer.loop.synchronise)

    def announce(self) -> None:
        """Logs what is used, and how."""
        self.cases.announce(self.trainer.print_to_log_file)
        if self._loss is None:
            self.trainer.print_to_log_file(
                f"GenSeg: the loss of {type(self.trainer).__name__} cannot ignore voxels; pseudo-labels that are not sure "
                "nearly everywhere are left out as a whole"
            )
        if not self.trainer.inference_allowed_mirroring_axes:
            self.trainer.print_to_log_file(
                f"GenSeg: {type(self.trainer).__name__} trains without mirroring, so it is not measured how good the teacher is"
            )

    @property
    def trust(self) -> float:
        """Factor on the share of unlabelled patches; 1 where the teacher cannot be measured."""
        return self.quality.trust if self.trainer.inference_allowed_mirroring_axes else 1.0

    def ground(self, parts: Parts, chosen: dict[str, list[int]], probability: float) -> Parts:
        """A batch in which unlabelled patches with their pseudo-labels are in the place of some patches.

        Args:
            parts: the batch.
            chosen: slots that become synthetic, by pair source; no other slot changes.
            probability: of each of them to change if the teacher is good. A patch whose pseudo-label cannot be used changes
                nothing.
        """
        self.labels.observe(parts.labels)
        loop, slots = self.trainer.loop, sorted(slot for own in chosen.values() for slot in own)
        if probability > 0:
            probability *= self.trust
            loop.meter.add({"unlabelled_share": probability})
        drawn = (torch.rand(len(slots), generator=loop.slot_rng) < probability).tolist()
        slots = [slot for slot, taken in zip(slots, drawn, strict=True) if taken]
        if not slots:
            return parts
        patches, names = zip(*self.cases.patches(len(slots)), strict=True)
        image = torch.cat(patches)
        labels, usable, sure = self.labels.read(self.teacher(image))
        image, labels = mirrored(image, labels, self.trainer.inference_allowed_mirroring_axes or (), loop.slot_rng)
        loop.meter.add({"pseudo_labels_used": usable.float().mean(), "pseudo_labels_sure": sure})
        used = [i for i, good in enumerate(usable.tolist()) if good]
        if not used:
            return parts
        given = {slots[i]: names[i] for i in used}
        cases = [given.get(slot, case) for slot, case in enumerate(parts.cases)] if parts.cases else None
        slot, which = slot_index([slots[i] for i in used], image.device), slot_index(used, image.device)
        return replace(
            parts,
            image=parts.image.index_copy(0, slot, image.index_select(0, which).to(parts.image.dtype)),
            labels=parts.labels.index_copy(0, slot, labels.index_select(0, which)),
            cases=cases,
        )

    @contextmanager
    def loss_that_ignores(self) -> Iterator[None]:
        """Inside the block the trainer has the loss for targets with an ignore label."""
        kept = self.trainer.loss
        self.trainer.loss = self._loss or kept
        try:
            yield
        finally:
            self.trainer.loss = kept

    def step(self) -> None:
        """Takes the network's present weights into the teacher, and measures it at the end of the epoch."""
        self.teacher.update(self.trainer._plain_network())
        if self.trainer._iteration == self.trainer.num_iterations_per_epoch - 1:
            self._measure()

    def _measure(self) -> None:
        axes = self.trainer.inference_allowed_mirroring_axes
        if axes:
            patches = (patch for patch, _ in self.cases.patches(PATCHES))
            self.quality.measure(patches, lambda image: self.labels.classify(self.teacher(image))[0], axes)
            self.trainer.loop.meter.add({"teacher_agreement": self.quality.agreement})
        if self.trainer.local_rank == 0:
            self.write()

    def write(self) -> None:
        """Records in the fold folder the images, how good the teacher is, and the share of patches that it allows."""
        further = {"share": self.trust * self.trainer.genseg.unlabelled.share}
        if self.trainer.inference_allowed_mirroring_axes:
            further["teacher_agreement"] = self.quality.agreement
        self.cases.write(Path(self.trainer.output_folder), **further)

    def state_dict(self) -> dict[str, Any]:
        """Teacher, its quality, and bounds."""
        return {
            "teacher": self.teacher.state_dict(),
            "labels": self.labels.state_dict(),
            "quality": self.quality.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.teacher.load_state_dict(state["teacher"])
        self.labels.load_state_dict(state["labels"])
        self.quality.load_state_dict(state["quality"])


def mirrored(image: Tensor, labels: Tensor, axes: Sequence[int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches and their class maps, each patch mirrored along each of some axes with probability 0.5, as nnU-Net mirrors its own.

    Args:
        image: (B, C, *spatial).
        labels: (B, *spatial).
        axes: of the spatial ones.
        rng: on the CPU.
    """
    drawn = (torch.rand(len(image), len(axes), generator=rng) < 0.5).tolist()
    chosen = [[axis for axis, mirror in zip(axes, own, strict=True) if mirror] for own in drawn]
    images = [patch.flip([1 + axis for axis in own]) for patch, own in zip(image, chosen, strict=True)]
    return torch.stack(images), torch.stack([one.flip(own) for one, own in zip(labels, chosen, strict=True)])
