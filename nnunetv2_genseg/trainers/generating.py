"""Writes synthetic pairs of whole images as a raw dataset of nnU-Net, for any other training or program."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_genseg import __version__
from nnunetv2_genseg.checkpoint import PARTIAL, remove_partial, write_text_atomically
from nnunetv2_genseg.config import FeedbackConfig, GenSegError, GenSegFileError, MaskConfig, UnlabelledConfig
from nnunetv2_genseg.synthesis.sources.redraw import RedrawSource
from nnunetv2_genseg.trainers import standalone
from nnunetv2_genseg.trainers.folder_lock import alone_in
from nnunetv2_genseg.trainers.preflight import require_labels
from nnunetv2_genseg.trainers.progress_bar import with_progress
from nnunetv2_genseg.trainers.provenance import DESCRIPTION, IMAGES, LABELS, Provenance, require_own
from nnunetv2_genseg.trainers.raw_cases import RawCase, RawCases
from nnunetv2_genseg.trainers.raw_formats import require_format, write_images
from nnunetv2_genseg.trainers.real_cases import copy_cases, require_other_names
from nnunetv2_genseg.trainers.trained_generator import Origin, fold_folder, load_generator, require_trained, settings_of
from nnunetv2_genseg.trainers.whole_pairs import WholePairs

NAME = "synthetic_{:05d}"
"""Of a pair, with its number from 0 on."""
MARGIN = 1.3
"""How much larger than its source case a pair may be on the disk: what is interpolated is compressed less."""


@dataclass(frozen=True)
class Generation(standalone.Standalone):
    """What is drawn from what."""

    pairs: int
    """How many pairs the folder holds in the end."""
    seed: int = 0
    """Of all draws; pair k depends on it and on k alone."""
    with_real: bool = False
    """Whether the fold's training cases are copied beside the pairs."""


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
    standalone.require_writable(settings.output)
    require_own(settings.output)
    folder = fold_folder(settings)
    with TemporaryDirectory(prefix="genseg_generate_") as temporary, standalone.writing_to(temporary, nnUNet_n_proc_DA="0"):
        trainer = standalone.build(settings, GeneratingMixin, settings_of(folder))
        count: int = trainer.generate(settings, folder, say)
        return count


class GeneratingMixin(standalone.StandaloneMixin):
    """Makes a GenSeg trainer write pairs and nothing else."""

    def generate(self, settings: Generation, folder: Path | None, say: Callable[[str], None]) -> int:
        """Writes the pairs; returns how many were drawn now. See the function `generate`.

        Args:
            settings: what is drawn.
            folder: of the fold's training; None: there was none.
            say: tells the user.
        """
        asked = self.genseg
        unused: dict[str, Any] = {
            "feedback": FeedbackConfig(enabled=False),
            "masks": MaskConfig(),
            "unlabelled": UnlabelledConfig(),
        }
        unused["paste"] = asked.paste.model_copy(update={"probability": 0.0})
        self.genseg = asked.model_copy(update=unused)
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        names = sorted(self.do_split()[0])
        raw = Path(os.environ["nnUNet_raw"]) / self.plans_manager.dataset_name
        cases = RawCases(self.plans_manager, self.configuration_manager, self.dataset_json, raw, names)
        require_format(cases.reader)
        whole = WholePairs(self, cases)
        generator = self._load(whole, folder, say)
        if asked.masks.source != "real" and generator is not None:
            say(f"masks.source {asked.masks.source} draws masks of patches; masks of whole images are deformed real ones")
        if asked.paste.probability > 0:
            say("nothing is pasted from other cases into whole images")
        record = Provenance(settings.output, self._origin(settings, names, generator))
        if len(record.pairs) > settings.pairs:
            raise GenSegError(f"{settings.output} holds {len(record.pairs)} pairs already; -n must not be less")
        if settings.with_real:
            require_other_names(names, [NAME.format(k) for k in range(settings.pairs)])
        numbers = [k for k in range(settings.pairs) if NAME.format(k) not in record.pairs]
        _require_space(settings, cases, [_case_of(k, settings.seed, names) for k in numbers])
        self._look_at_cases(whole, names, measure=generator is not None and not generator.file.endswith(".pt"))
        whole.tile()
        self._write(settings, Writing(settings, whole, record, generator, say), numbers)
        return len(numbers)

    def _load(self, whole: WholePairs, folder: Path | None, say: Callable[[str], None]) -> Origin | None:
        """Loads the generator; without a trained one its source is left out."""
        source = whole.sources.get("redraw")
        if not isinstance(source, RedrawSource):
            return None
        found = load_generator(self, source, folder)
        if found is None:
            del whole.sources["redraw"]
            say(require_trained(list(whole.sources)))
        return found

    def _look_at_cases(self, whole: WholePairs, names: Sequence[str], measure: bool) -> None:
        """Checks every preprocessed training case and records the size of its classes; with `measure` its intensities, too."""
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(names))
        require_labels(dataset, list(names), self.label_manager)
        for name in with_progress(list(names), "looking at the training cases"):
            image, segmentation, _, properties = dataset.load_case(name)
            spacing = [properties["spacing"][axis] for axis in self.plans_manager.transpose_forward]
            planned = [float(step) for step in self.configuration_manager.spacing]
            whole.observe(whole.cases.classes(name, np.asarray(segmentation[:])[0]), (*spacing[: 3 - len(planned)], *planned))
            if measure:
                whole.measure(np.asarray(image[:]))

    def _origin(self, settings: Generation, names: Sequence[str], generator: Origin | None) -> dict[str, Any]:
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
            "generator": None if generator is None else asdict(generator),
            "settings": self.genseg.flat(),
            "versions": {
                "nnunetv2_genseg": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in ("nnunetv2", "torch", "numpy", "SimpleITK")},
            },
        }

    def _write(self, settings: Generation, writing: Writing, numbers: Sequence[int]) -> None:
        output = settings.output
        for part in (IMAGES, LABELS):
            (output / part).mkdir(parents=True, exist_ok=True)
        with alone_in(output):
            remove_partial(output)
            writing.record.save()
            try:
                for k in with_progress(list(numbers), "pairs"):
                    writing.pair(k)
            finally:
                writing.record.save()
            if settings.with_real:
                copy_cases(writing.whole.cases.files, writing.whole.cases.ending, output)
            kept = {key: value for key, value in self.dataset_json.items() if key != "dataset"}
            real = len(writing.whole.cases.files) if settings.with_real else 0
            description = kept | {"numTraining": settings.pairs + real}
            write_text_atomically(json.dumps(description, indent=2) + "\n", output / DESCRIPTION)


class Writing:
    """Draws pairs and puts their files in place.

    Args:
        settings: what is drawn.
        whole: draws.
        record: is told of each complete pair.
        generator: what draws for the source `redraw`.
        say: tells the user.
    """

    def __init__(
        self,
        settings: Generation,
        whole: WholePairs,
        record: Provenance,
        generator: Origin | None,
        say: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.whole = whole
        self.record = record
        self.generator = generator
        self.say = say
        self._read: RawCase | None = None
        self._told: set[int] = set()
        """Channels of which was said that their intensities are an approximation."""

    def pair(self, k: int) -> None:
        """Draws and writes pair number `k`.

        Raises:
            GenSegFileError: a file cannot be written; nothing of this pair is left.
        """
        name, cases = NAME.format(k), self.whole.cases
        chosen, source, seed = self._plan(k)
        if self._read is None or self._read.name != chosen:
            self._read = cases.read(chosen)
        image, labels, new = self.whole.sample(self._read, source, seed)
        partial = self.settings.output / f"{name}{PARTIAL}"
        try:
            files = self._files(partial, name, self._read, image, labels)
            for file in files:
                os.replace(partial / file, self.settings.output / file)
        except (OSError, RuntimeError) as error:
            raise GenSegFileError(
                f"could not write pair {name} into {self.settings.output}: {error}. Complete pairs stay; free space or correct "
                "the permissions and start the same command again"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        redrawn = self.whole.sources[source].generator is not None
        approximate = [c for c, line in enumerate(self._read.lines) if redrawn and not line.straight]
        self._tell(approximate)
        drawn_by = self.generator.sha256 if self.generator is not None and source == "redraw" else None
        pair: dict[str, Any] = {"cases": [chosen], "source": source, "seed": seed, "generator": drawn_by, "new_mask": new}
        self.record.add(name, pair | ({"approximate_channels": approximate} if approximate else {}), files)

    def _tell(self, approximate: Sequence[int]) -> None:
        for c in sorted(set(approximate) - self._told):
            scheme = self.whole.cases.configuration.normalization_schemes[c]
            self.say(
                f"{scheme} of channel {c} is no straight line; intensities that a generator draws are put on the nearest line"
            )
        self._told.update(approximate)

    def _plan(self, k: int) -> tuple[str, str, int]:
        """Source case, pair source and seed of pair number `k`."""
        names = sorted(self.whole.cases.files)
        weights = self.whole.weights()
        rng = np.random.default_rng([self.settings.seed, k])
        source = str(rng.choice(list(weights), p=list(weights.values())))
        return _case_of(k, self.settings.seed, names), source, int(rng.integers(2**62))

    def _files(self, folder: Path, name: str, case: RawCase, image: Any, labels: Any) -> list[str]:
        """Writes the files of a pair below a folder; their paths relative to it, the label file last."""
        cases = self.whole.cases
        for part in (IMAGES, LABELS):
            (folder / part).mkdir(parents=True)
        targets = [folder / IMAGES / f"{name}_{i:04d}{cases.ending}" for i in range(len(case.files))]
        write_images(image, targets, case.files, cases.reader, case.properties)
        cases.reader().write_seg(labels, str(folder / LABELS / f"{name}{cases.ending}"), case.properties)
        written = [part / path.name for part in (Path(IMAGES), Path(LABELS)) for path in sorted((folder / part).iterdir())]
        return [str(path) for path in written]


def _case_of(k: int, seed: int, names: Sequence[str]) -> str:
    """The source case of pair number `k`: all cases equally often, in another order in each round."""
    turn, place = divmod(k, len(names))
    return names[int(np.random.default_rng([seed, turn, len(names)]).permutation(len(names))[place])]


def _require_space(settings: Generation, cases: RawCases, sources: Sequence[str]) -> None:
    """Raises GenSegError if the disk does not hold the pairs that are still to be made of some cases."""
    sizes = {name: sum(file.stat().st_size for file in [*images, label]) for name, (images, label) in cases.files.items()}
    needed = MARGIN * sum(sizes[name] for name in sources) + settings.with_real * sum(sizes.values())
    place = next(path for path in (settings.output.resolve(), *settings.output.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise GenSegError(
            f"{len(sources)} pairs need about {needed / 1e9:.1f} GB in {settings.output}, but {free / 1e9:.1f} GB are free; "
            "free space, choose another folder or a smaller -n"
        )
