"""The held-out cases of a training at each moment, and micro-batches of them for the feedback."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_genseg.bilevel.feedback import HeldOutBatch
from nnunetv2_genseg.bilevel.schedule import rotation_at
from nnunetv2_genseg.trainers.holdout import HeldOut, hold_out


class HeldOutCases:
    """Holds other training cases out in each rotation.

    Args:
        trainer: a GenSeg trainer of nnU-Net.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.rotation: int | None = 0
        """Which part of the cases is held out; None if all of them train."""
        self.cases: HeldOut | None = None
        """The cases in two parts; None without feedback."""
        self._loader: nnUNetDataLoader | None = None

    def split(self, training: list[str]) -> list[str]:
        """The cases that train at this moment, of those of the fold.

        Raises:
            GenSegError: there are too few cases, or a named one is not among them.
        """
        config = self.trainer.genseg
        if not config.feedback.enabled:
            return training
        self.cases = hold_out(training, config.feedback.cases, config.seed, self.rotation or 0)
        return training if self.rotation is None else self.cases.training

    def move_to(self, progress: float) -> bool:
        """Goes to the rotation after a fraction of all iterations; whether that is another one."""
        rotation = rotation_at(progress, self.trainer.genseg)
        changed = rotation != self.rotation
        if changed:
            self.rotation, self._loader = rotation, None
        return changed

    def described(self) -> str:
        """The held-out cases, for the log."""
        return "none" if self.rotation is None or self.cases is None else ", ".join(self.cases.held_out)

    def next_batch(self) -> HeldOutBatch:
        """A micro-batch on the device: not augmented, with as much foreground as nnU-Net's training batches.

        nnU-Net's loader draws from the global random generators. It is given states of its own, so that those of the training
        stay as they are.
        """
        if self._loader is None:
            self._loader = self._build_loader()
        with self.trainer._own_random_state():
            batch = next(self._loader)
        parts = self.trainer._batches.parts(batch)
        return HeldOutBatch(parts.network_input, parts.labels)

    def _build_loader(self) -> nnUNetDataLoader:
        trainer, labels = self.trainer, self.trainer.label_manager
        assert self.cases is not None
        transforms = trainer.get_validation_transforms(
            None,
            is_cascaded=trainer.is_cascaded,
            foreground_labels=labels.foreground_labels,
            regions=labels.foreground_regions if labels.has_regions else None,
            ignore_label=labels.ignore_label,
        )
        dataset = trainer.dataset_class(
            trainer.preprocessed_dataset_folder,
            self.cases.held_out,
            folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
        )
        patch_size = trainer.configuration_manager.patch_size
        return nnUNetDataLoader(
            dataset,
            min(trainer.genseg.feedback.patches, trainer.batch_size),
            patch_size,
            patch_size,
            labels,
            oversample_foreground_percent=trainer.oversample_foreground_percent,
            transforms=transforms,
        )
