"""The held-out cases of a training at each moment, and micro-batches of them for the feedback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_genseg.bilevel.feedback import HeldOutBatch
from nnunetv2_genseg.bilevel.schedule import rotation_at
from nnunetv2_genseg.trainers.holdout import HeldOut, hold_out
from nnunetv2_genseg.trainers.loading import unaugmented
from nnunetv2_genseg.trainers.preflight import shown_classes


def classes_in(trainer: Any, cases: Sequence[str]) -> dict[str, set[str]]:
    """Names of the foreground classes that each of a trainer's cases shows."""
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(cases))
    labels = {name: tuple(value) if isinstance(value, list) else value for name, value in trainer.dataset_json["labels"].items()}
    manager = trainer.label_manager
    foreground = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    return shown_classes(dataset, cases, {name: value for name, value in labels.items() if value in foreground})


class HeldOutCases:
    """Holds other training cases out in each rotation.

    Args:
        trainer: a GenSeg trainer of nnU-Net.
        look: gives the names of the classes that each of some cases shows.
    """

    def __init__(self, trainer: Any, look: Callable[[Any, Sequence[str]], dict[str, set[str]]] = classes_in) -> None:
        self.trainer = trainer
        self.rotation: int | None = 0
        """Which part of the cases is held out; None if all of them train."""
        self.cases: HeldOut | None = None
        """The cases in two parts; None without feedback."""
        self.of_fold: dict[str, list[str]] = {}
        """The fold's training and validation cases."""
        self._look = look
        self._shown: dict[str, set[str]] | None = None
        self._loader: nnUNetDataLoader | None = None

    def split(self, training: list[str], validation: list[str]) -> list[str]:
        """The cases that train at this moment, of those of the fold.

        Args:
            training: names of the fold's training cases; a name that is there twice counts once.
            validation: names of its validation cases.

        Raises:
            GenSegError: there are too few cases, or a named one is not among them, or a case cannot be read.
        """
        training = list(dict.fromkeys(str(case) for case in training))
        self.of_fold = {"training": sorted(training), "validation": sorted({str(case) for case in validation})}
        if not self.trainer.genseg.feedback.enabled:
            return training
        if self._shown is None:
            self._shown = self._look(self.trainer, training)
        self.cases = self._held_out(self.rotation or 0)
        return training if self.rotation is None else self.cases.training

    def _held_out(self, rotation: int) -> HeldOut:
        config, shown = self.trainer.genseg, self._shown or {}
        with_foreground = [case for case, classes in shown.items() if classes]
        return hold_out(self.of_fold["training"], config.feedback.cases, config.seed, rotation, with_foreground)

    def write(self, folder: Path) -> None:
        """Records in a folder which cases are held out, if any are; see `HeldOut.write`."""
        config = self.trainer.genseg
        if self.cases is not None:
            rotations = [self._held_out(rotation).held_out for rotation in range(config.feedback.parts)]
            self.cases.write(folder, config.seed, rotations)

    def move_to(self, progress: float) -> bool:
        """Goes to the rotation after a fraction of all iterations; whether that is another one."""
        rotation = rotation_at(progress, self.trainer.genseg)
        changed = rotation != self.rotation
        if changed:
            self.rotation, self._loader = rotation, None
        return changed

    def described(self) -> str:
        """The held-out cases, and the classes that none of them shows, for the log."""
        if self.rotation is None or self.cases is None:
            return "none"
        shown = self._shown or {}
        missing = set().union(*shown.values()).difference(*(shown[case] for case in self.cases.held_out))
        without = f"; none of them shows {', '.join(sorted(missing))}" if missing else ""
        return ", ".join(self.cases.held_out) + without

    @property
    def patches(self) -> int:
        """Patches of a micro-batch; see `FeedbackConfig.patches`."""
        volumes = len(self.trainer.configuration_manager.patch_size) == 3
        return min(self.trainer.genseg.feedback.patches or (1 if volumes else 2), int(self.trainer.batch_size))

    def next_batch(self) -> HeldOutBatch:
        """A micro-batch on the device: not augmented, with as much foreground as nnU-Net's training batches, at least one patch.

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
        trainer = self.trainer
        assert self.cases is not None
        dataset = trainer.dataset_class(
            trainer.preprocessed_dataset_folder,
            self.cases.held_out,
            folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
        )
        return unaugmented(trainer, dataset, self.patches, max(trainer.oversample_foreground_percent, 1 / self.patches))
