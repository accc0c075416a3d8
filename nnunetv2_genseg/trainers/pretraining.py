"""Pretraining: a generator trained alone, on a dataset's cases and on unlabelled images, for trainings to start from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.atomic import PARTIAL, remove_partial
from nnunetv2_genseg.files.lock import FILE_NAME as LOCK
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.generators.pretrained import strangers_in
from nnunetv2_genseg.synthesis.modes import MODES
from nnunetv2_genseg.synthesis.pair_description import KeptPairs
from nnunetv2_genseg.trainers import standalone
from nnunetv2_genseg.trainers.building import start_from_pretrained
from nnunetv2_genseg.trainers.fold_pairs import describe_pairs
from nnunetv2_genseg.trainers.planning import image_kind
from nnunetv2_genseg.trainers.preflight import first_of
from nnunetv2_genseg.trainers.progress_bar import with_progress
from nnunetv2_genseg.trainers.recording import SAMPLES_FILE, draw_samples
from nnunetv2_genseg.trainers.unlabelled import preprocess_beside

REPORTS = 20
"""How many times the losses are logged and the generator is written."""


@dataclass(frozen=True)
class Pretraining(standalone.Standalone):
    """What is trained on what."""

    iterations: int
    """Steps of the generator, at the plan's batch size."""
    images: tuple[Path, ...] = ()
    """Folders of raw images without labels, in nnU-Net's naming, with the dataset's channels."""


def pretrain(settings: Pretraining) -> None:
    """Trains a generator and writes it as a folder that `generator.pretrained` can name.

    Raises:
        GenSegError: the dataset, the images or the settings do not allow it; nothing was written.
        FileNotFoundError: the dataset was not planned or preprocessed.
        FloatingPointError: the generator's numbers were NaN or infinite repeatedly.
    """
    if settings.iterations < 1:
        raise GenSegError(f"--iterations must be 1 or more, found {settings.iterations}")
    standalone.require_writable(settings.output)
    _require_own(settings.output)
    with TemporaryDirectory(prefix="genseg_pretrain_") as temporary, standalone.writing_to(temporary):
        trainer = standalone.build(settings, PretrainingMixin)
        trainer.pretrain(settings.iterations, settings.output, settings.images)


def _require_own(folder: Path) -> None:
    """Refuses a folder with files that this command did not write, which it might replace."""
    strangers = [name for name in strangers_in(folder) if name not in (SAMPLES_FILE, LOCK) and not name.endswith(PARTIAL)]
    if strangers:
        raise GenSegError(
            f"{folder} holds files that `genseg pretrain` did not write ({first_of(strangers)}); name a new folder, an empty "
            "one, or that of an earlier generator"
        )


class JoinedDataset:
    """Labelled and unlabelled cases as one of nnU-Net's datasets. nnU-Net's loader draws each identifier equally often.

    Labelled cases are listed several times, so that they are at least half of the identifiers: they alone show the classes,
    and the loader can oversample foreground only in cases that have it.

    Args:
        labelled: one of nnU-Net's datasets.
        unlabelled: another one, whose cases may have the same names.
    """

    def __init__(self, labelled: Any, unlabelled: Any) -> None:
        parts = {"labelled": labelled, "unlabelled": unlabelled}
        self._places = {f"{name}/{case}": (part, case) for name, part in parts.items() for case in part.identifiers}
        known, others = ([name for name in self._places if name.startswith(f"{part}/")] for part in parts)
        self.identifiers = known * max(1, math.ceil(len(others) / len(known))) + others

    def load_case(self, identifier: str) -> Any:
        """Image, segmentation, segmentation of the previous stage or None, and properties, as nnU-Net's loader takes them."""
        part, case = self._places[identifier]
        return part.load_case(case)


class PretrainingMixin(standalone.StandaloneMixin):
    """Makes a GenSeg trainer train the generator alone."""

    def pretrain(self, iterations: int, output: Path, image_folders: Sequence[Path]) -> None:
        """Trains the generator and writes it.

        Args:
            iterations: steps of the generator.
            output: its folder; written several times, the last time at the end.
            image_folders: of raw images that take part unlabelled.

        Raises:
            GenSegError: the images or the settings do not allow it; nothing was written to `output`.
            OSError: `output` cannot be written.
            FloatingPointError: the generator's numbers were NaN or infinite repeatedly.
        """
        mode = self.genseg.redraw.mode
        if image_folders and not MODES[mode]().uses_tissues:
            raise GenSegError(
                f"unlabelled images need tissue classes, which redraw.mode {mode!r} does not have; choose 'tissue' or "
                "'residual', or leave --images out"
            )
        self.prepare()
        self.loop.trainable_generator()
        self._generator_saw = start_from_pretrained(self)
        self._unlabelled = None
        if image_folders:
            folder, images = preprocess_beside(self, image_folders)
            self._unlabelled = infer_dataset_class(str(folder))(str(folder), sorted(images))
        try:
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
            output.mkdir(parents=True, exist_ok=True)
            bounds = [iterations * i // REPORTS for i in range(REPORTS + 1)]
            with alone_in(output):
                remove_partial(output)
                for first, end in pairwise(bounds):
                    if end > first:
                        self._train_generator(first, end, iterations)
                        self._keep_generator(output, end)
        finally:
            self._finish_loaders()

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's, with the unlabelled cases among the training cases; the validation cases are for the picture."""
        training, validation = super().get_tr_and_val_datasets()
        self._labelled = list(training.identifiers)
        if self._unlabelled is None:
            return training, validation
        self.print_to_log_file(
            f"GenSeg: {len(self._unlabelled.identifiers)} unlabelled images join {len(training.identifiers)} labelled cases"
        )
        return JoinedDataset(training, self._unlabelled), validation

    def _train_generator(self, first: int, end: int, iterations: int) -> None:
        steps = range(first, end)
        for self._iteration in with_progress(steps, f"iterations {first + 1} to {end} of {iterations}"):
            parts = self._batches.parts(next(self.dataloader_train))
            self._log(self.loop.check())  # of the step before this one, whose result is there by now
            self.loop.sampler.observe(parts.labels)
            self.loop.training_step(parts.image, parts.labels)
        self._log(self.loop.check())
        self._log(self.loop.end_epoch())
        losses = ", ".join(f"{name} {value:.4g}" for name, value in self.loop.means().items())
        self.print_to_log_file(f"GenSeg: iteration {end} of {iterations}: {losses}")

    def _keep_generator(self, output: Path, iteration: int) -> None:
        dataset = self.plans_manager.dataset_name
        seen = {*self._generator_saw.get(dataset, ()), *self._labelled}
        images = image_kind(self.dataset_json, self.configuration_manager)
        settings = self.genseg.to_json()
        pairs = describe_pairs(self.plans_manager, self.configuration_manager, self.dataset_json, settings)
        further = KeptPairs.of(pairs, self.loop.sampler).to_json()
        self.loop.keep_generator(output, images, {**self._generator_saw, dataset: sorted(seen)}, further)
        draw = self.recorder.by_product(SAMPLES_FILE, draw_samples)
        draw(output / SAMPLES_FILE, f"iteration {iteration}", *self._real_patches(), self.loop)
