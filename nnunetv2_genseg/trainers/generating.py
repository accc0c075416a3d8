"""Writes synthetic pairs of whole images as a raw dataset of nnU-Net, for any other training or program."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.files.atomic import remove_partial, write_text_atomically
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.synthesis.intensity_variation import PATCHES
from nnunetv2_genseg.synthesis.sources.redraw import RedrawSource
from nnunetv2_genseg.trainers import standalone
from nnunetv2_genseg.trainers.fold_network import FoldNetwork
from nnunetv2_genseg.trainers.gate import Gate
from nnunetv2_genseg.trainers.given_masks import GivenMasks
from nnunetv2_genseg.trainers.pair_files import NAME, PairFiles, case_of
from nnunetv2_genseg.trainers.preflight import require_labels
from nnunetv2_genseg.trainers.progress_bar import with_progress
from nnunetv2_genseg.trainers.provenance import DESCRIPTION, FILE_NAME, IMAGES, LABELS, SHARDS, Provenance, require_own, versions
from nnunetv2_genseg.trainers.raw_cases import RawCases
from nnunetv2_genseg.trainers.raw_formats import holds_whole_numbers, require_format
from nnunetv2_genseg.trainers.real_cases import copy_cases, require_other_names
from nnunetv2_genseg.trainers.trained_generator import (
    TRAIN_ONE,
    Origin,
    fold_folder,
    load_generator,
    require_trained,
    settings_of,
    warn_of_validation,
)
from nnunetv2_genseg.trainers.whole_pairs import WholePairs

MARGIN, MARGIN_OF_FLOATS = 1.3, 4.0
"""How much larger than a file of its source case one of a pair may be: what is interpolated is compressed less, above all whole
numbers that the source case stores as floats."""


@dataclass(frozen=True)
class Generation(standalone.Standalone):
    """What is drawn from what."""

    pairs: int
    """How many pairs the folder holds in the end."""
    seed: int = 0
    """Of all draws; pair k depends on it and on k alone."""
    with_real: bool = False
    """Whether the fold's training cases are copied beside the pairs."""
    masks: Path | None = None
    """A folder of masks for which images are drawn; None: masks are deformed real ones."""
    least_dice: float | None = None
    """Pairs of which the fold's network finds less are drawn again; None: none are."""
    redraws: int = 3
    """How often at most."""
    shard: tuple[int, int] | None = None
    """(i, n): only every n-th pair, from pair i on, is drawn, into a folder of its own; a later call without shard takes it."""


def generate(settings: Generation, say: Callable[[str], None]) -> int:
    """Fills a folder with pairs, or goes on filling it; returns how many it drew.

    Args:
        settings: what is drawn.
        say: tells the user what is not as expected, a line each.

    Raises:
        GenSegError: the dataset, the generator, the folder or the settings do not allow it; no pair was begun.
        GenSegFileError: a file cannot be written; complete pairs stay.
        FileNotFoundError: the dataset was not planned or preprocessed.
    """
    if settings.pairs < 1:
        raise GenSegError(f"-n must be 1 or more, found {settings.pairs}")
    if settings.seed < 0:
        raise GenSegError(f"--seed must be 0 or more, found {settings.seed}")
    if settings.least_dice is not None and not 0 < settings.least_dice <= 1:
        raise GenSegError(f"--least-dice must be above 0 and at most 1, found {settings.least_dice}")
    if settings.redraws < 1:
        raise GenSegError(f"--redraws must be 1 or more, found {settings.redraws}")
    standalone.require_writable(settings.output)
    require_own(settings.output)
    folder = fold_folder(settings)
    gate = None if settings.least_dice is None else Gate(FoldNetwork(settings), settings.least_dice, settings.redraws)
    with TemporaryDirectory(prefix="genseg_generate_") as temporary, standalone.writing_to(temporary, nnUNet_n_proc_DA="0"):
        trainer = standalone.build(settings, GeneratingMixin, settings_of(folder))
        count: int = trainer.generate(settings, folder, gate, say)
        return count


class GeneratingMixin(standalone.StandaloneMixin):
    """Makes a GenSeg trainer write pairs and nothing else."""

    def generate(self, settings: Generation, folder: Path | None, gate: Gate | None, say: Callable[[str], None]) -> int:
        """Writes the pairs; returns how many were drawn now. See the function `generate`.

        Args:
            settings: what is drawn.
            folder: of the fold's training; None: there was none.
            gate: which pairs are drawn again; None: none.
            say: tells the user.
        """
        asked = self.genseg
        nothing_pasted = asked.paste.model_copy(update={"probability": 0.0})
        self.genseg = standalone.without_training(asked).model_copy(update={"paste": nothing_pasted})
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        training, validation = self.do_split()
        names = sorted(training)
        raw = Path(os.environ["nnUNet_raw"]) / self.plans_manager.dataset_name
        cases = RawCases(self.plans_manager, self.configuration_manager, self.dataset_json, raw, names)
        require_format(cases.reader)
        whole = WholePairs(self, cases, self.genseg.model_copy(update={"feedback": asked.feedback}))
        generator = self._load(whole, folder, settings.masks is not None, say)
        warn_of_validation(folder, generator, set(validation) - set(training), self.plans_manager.dataset_name, say)
        masks = None if settings.masks is None else GivenMasks(settings.masks, cases)
        if masks is not None:
            whole.give_masks()
            if not whole.sources:
                raise GenSegError("--masks needs a generator, and there is none; " + TRAIN_ONE)
        elif asked.masks.source != "real" and generator is not None:
            say(f"masks.source {asked.masks.source} draws masks of patches; masks of whole images are deformed real ones")
        if asked.paste.probability > 0:
            say("nothing is pasted from other cases into whole images")
        origin = self._origin(settings, names, generator, masks) | {"gate": None if gate is None else gate.origin()}
        record = Provenance(settings.output, origin)
        if settings.shard is None:
            _take_shards(record)
        there = max((int(name.rpartition("_")[2]) + 1 for name in record.pairs), default=0)
        if there > settings.pairs:
            raise GenSegError(f"{settings.output} holds {there} pairs already; -n must be {there} or more")
        if settings.with_real:
            require_other_names(names, [NAME.format(k) for k in range(settings.pairs)])
        numbers = [k for k in range(settings.pairs) if NAME.format(k) not in record.pairs]
        if settings.shard is not None:
            i, n = settings.shard
            settings = replace(settings, output=settings.output / SHARDS / str(i), with_real=False)
            record = Provenance(settings.output, origin)
            numbers = [k for k in numbers if k % n == i and NAME.format(k) not in record.pairs]
        _require_space(settings, cases, [case_of(k, settings.seed, names) for k in numbers])
        self._look_at_cases(whole, names)
        if gate is not None:
            gate.look_at_cases(cases, names)
        whole.tile()
        self._write(settings, PairFiles(settings.output, settings.seed, whole, record, generator, say, masks, gate), numbers)
        if gate is not None and numbers:
            say(f"of {len(numbers)} pairs {gate.again} were drawn again, and {gate.failed} of these still fail (provenance.json)")
        return len(numbers)

    def _load(self, whole: WholePairs, folder: Path | None, with_masks: bool, say: Callable[[str], None]) -> Origin | None:
        """Loads the generator; without a trained one its source is left out."""
        source = whole.sources.get("redraw")
        if not isinstance(source, RedrawSource):
            return None
        found = load_generator(self, source, folder)
        if found is None:
            del whole.sources["redraw"]
            said = require_trained(list(whole.sources))
            if not with_masks:
                say(said)
        return found

    def _look_at_cases(self, whole: WholePairs, names: Sequence[str]) -> None:
        """Checks every preprocessed training case and records the size of its classes, and its intensities for a generator
        whose training did not."""
        redraw = whole.sources.get("redraw")
        unmeasured = isinstance(redraw, RedrawSource) and not bool(redraw.observed.any())
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(names))
        require_labels(dataset, list(names), self.label_manager)
        for name in with_progress(list(names), "looking at the training cases"):
            image, segmentation, _, properties = dataset.load_case(name)
            spacing = [properties["spacing"][axis] for axis in self.plans_manager.transpose_forward]
            planned = [float(step) for step in self.configuration_manager.spacing]
            labels = whole.cases.classes(name, np.asarray(segmentation[:])[0])
            whole.observe(labels, (*spacing[: 3 - len(planned)], *planned))
            if unmeasured:
                whole.measure(np.asarray(image[:]), labels, max(1, PATCHES // len(names)))

    def _origin(
        self, settings: Generation, names: Sequence[str], generator: Origin | None, masks: GivenMasks | None
    ) -> dict[str, Any]:
        """What all pairs have in common."""
        return {
            "dataset": self.plans_manager.dataset_name,
            "configuration": settings.configuration,
            "plans": settings.plans,
            "fold": settings.fold,
            "trainer": settings.trainer,
            "device": self.device.type,
            "seed": settings.seed,
            "cases": list(names),
            "with_real_cases": settings.with_real,
            "masks": None if masks is None else masks.origin(),
            "generator": None if generator is None else asdict(generator),
            "settings": self.genseg.flat(),
            "versions": versions("nnunetv2", "torch", "numpy", "SimpleITK"),
        }

    def _write(self, settings: Generation, writing: PairFiles, numbers: Sequence[int]) -> None:
        output = settings.output
        for part in (IMAGES, LABELS):
            (output / part).mkdir(parents=True, exist_ok=True)
        with alone_in(output):
            remove_partial(output)
            writing.record.save()
            writing.remove_others()
            if numbers:  # until all pairs are there, the folder is not to be taken for a dataset
                (output / DESCRIPTION).unlink(missing_ok=True)
            try:
                for k in with_progress(list(numbers), "pairs"):
                    writing.pair(k)
            except BaseException:
                with suppress(GenSegFileError):  # what ended the run is what is to be told
                    writing.record.save()
                raise
            writing.record.save()
            if settings.shard is not None:
                return
            if settings.with_real:
                copy_cases(writing.whole.cases.files, writing.whole.cases.ending, output)
            kept = {key: value for key, value in self.dataset_json.items() if key != "dataset"}
            real = len(writing.whole.cases.files) if settings.with_real else 0
            description = kept | {"numTraining": settings.pairs + real}
            write_text_atomically(json.dumps(description, indent=2) + "\n", output / DESCRIPTION)


def _take_shards(record: Provenance) -> None:
    """Takes the pairs that several processes have drawn into folders of their own."""
    shards = record.folder / SHARDS
    if shards.is_dir():
        with alone_in(record.folder):
            for folder in sorted(path for path in shards.iterdir() if (path / FILE_NAME).is_file()):
                record.take(Provenance(folder, record.origin))


def _require_space(settings: Generation, cases: RawCases, sources: Sequence[str]) -> None:
    """Raises GenSegError if the disk does not hold the pairs that are still to be made of some cases."""
    files = {name: [*images, label] for name, (images, label) in cases.files.items()}
    of_pairs = {
        name: sum((MARGIN if holds_whole_numbers(file) else MARGIN_OF_FLOATS) * file.stat().st_size for file in files[name])
        for name in {*sources}
    }
    real = sum(file.stat().st_size for of_case in files.values() for file in of_case)
    needed = sum(of_pairs[name] for name in sources) + settings.with_real * real
    place = next(path for path in (settings.output.resolve(), *settings.output.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise GenSegError(
            f"{len(sources)} pairs need about {needed / 1e9:.1f} GB in {settings.output}, but {free / 1e9:.1f} GB are free; "
            "free space, choose another folder or a smaller -n"
        )
