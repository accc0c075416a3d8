"""Writes a page about a training: what was configured, how it went, and the pairs that its generator draws."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.plots.report import Content, Table, page_of
from nnunetv2_genseg.plots.slices import legend
from nnunetv2_genseg.quality.table import headline, remarks, tables
from nnunetv2_genseg.trainers import generating, judging, standalone
from nnunetv2_genseg.trainers.history import History, read_history
from nnunetv2_genseg.trainers.judged_cases import classes_of
from nnunetv2_genseg.trainers.pair_folder import PairFolder
from nnunetv2_genseg.trainers.previewing import changed
from nnunetv2_genseg.trainers.provenance import versions
from nnunetv2_genseg.trainers.raw_cases import RawCases
from nnunetv2_genseg.trainers.shown_pairs import ShownPairs


@dataclass(frozen=True)
class Reporting(standalone.Standalone):
    """What is reported."""

    name: str
    """Of the HTML file, in the folder `output`."""
    count: int
    """Pairs that are drawn and judged for the report, if no folder is named."""
    pairs: Path | None = None
    """A folder of pairs, and of their quality.json if they were judged; None: they are drawn now."""


def report(settings: Reporting, say: Callable[[str], None]) -> Path:
    """Writes the page; returns its path.

    Args:
        settings: what is reported.
        say: tells the user what is not as expected, a line each.

    Raises:
        GenSegError: the fold was not trained, or the pairs or their figures do not belong to it; nothing was written.
        GenSegFileError: the page cannot be written.
        FileNotFoundError: the dataset was not planned or preprocessed.
    """
    path = settings.output / settings.name
    if settings.count < 1:
        raise GenSegError(f"-n must be 1 or more, found {settings.count}")
    if path.is_dir():
        raise GenSegError(f"{path} is a folder; name a file, such as report.html")
    standalone.require_writable(settings.output)
    history = read_history(settings)
    with _pairs(settings, say) as (folder, missing):
        text = page_of(_content(settings, history, folder, missing))
    settings.output.mkdir(parents=True, exist_ok=True)
    write_text_atomically(text, path)
    return path


@contextmanager
def _pairs(settings: Reporting, say: Callable[[str], None]) -> Iterator[tuple[Path, str]]:
    """A folder of pairs, and why they are not judged if they are not."""
    if settings.pairs is not None:
        yield settings.pairs, f"These pairs were not judged. `genseg quality` with the folder {settings.pairs} does that."
        return
    asked = {key: getattr(settings, key) for key in ("dataset", "configuration", "fold", "trainer", "plans", "device")}
    with TemporaryDirectory(prefix="genseg_report_") as temporary:
        folder, missing = Path(temporary) / "pairs", ""
        generating.generate(generating.Generation(**asked, output=folder, pairs=settings.count), say)
        try:
            judging.judge(judging.Judgement(**asked, output=folder, folder=folder))
        except GenSegError as error:
            missing = f"These pairs could not be judged: {error}."
        yield folder, missing


def _content(settings: Reporting, history: History, pairs: Path, missing: str) -> Content:
    """All that the page shows."""
    training = history.folder.parent
    plans = PlansManager(read_json(training / "plans.json", dict[str, Any], "a mapping"))
    description = read_json(training / "dataset.json", dict[str, Any], "a mapping")
    configuration = plans.get_configuration(settings.configuration)
    classes = classes_of(description)
    folder = PairFolder.read(pairs, plans.dataset_name, settings.fold, None)
    figures = _figures(pairs / judging.FILE_NAME, folder)
    shown = ShownPairs(folder, figures)
    raw = Path(os.environ["nnUNet_raw"]) / plans.dataset_name
    real = RawCases(plans, configuration, description, raw, shown.cases)
    written = RawCases(plans, configuration, description, pairs, list(folder.sources))
    views, pictures, said = shown.drawn(real, written)
    validation = history.validation(classes)
    of_validation: list[Table] = [("Dice of the validation cases, final network", ("class", "mean"), validation)]
    return Content(
        title=f"{plans.dataset_name}, {settings.configuration}, fold {settings.fold}, {settings.trainer}",
        facts=_facts(settings, history, configuration, folder),
        settings=changed(history.config),
        curves=history.curves(list(classes)),
        views=views,
        pictures=pictures,
        labels=legend(description["labels"]),
        of_pairs=said,
        tables=[*of_validation[: len(validation)], *([] if figures is None else tables(figures))],
        of_quality=[missing] if figures is None else [headline(figures), *remarks(figures)],
        files={
            "settings.json": json.dumps(history.config.to_json(), indent=1),
            "pairs.csv": shown.as_csv(),
            **({} if figures is None else {judging.FILE_NAME: json.dumps(figures, indent=1)}),
        },
    )


def _figures(path: Path, folder: PairFolder) -> dict[str, Any] | None:
    """The content of quality.json; None if there is none.

    Raises:
        GenSegError: it has another form, or is of other pairs.
    """
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path, dict[str, Any], "a mapping")
    wrong = f"{path} is not what `genseg quality` of this version writes for these pairs"
    try:
        headline(content), remarks(content), tables(content)
        strangers = {*ShownPairs(folder, content).cases} - {*folder.cases}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise GenSegError(f"{wrong} ({type(error).__name__}: {error}); run `genseg quality` again") from error
    if strangers:
        raise GenSegError(f"{wrong}: it names the case {min(strangers)}; run `genseg quality` again")
    return content


def _facts(settings: Reporting, history: History, configuration: Any, folder: PairFolder) -> Mapping[str, str]:
    """What was used, by name."""
    config = history.config
    feedback = config.feedback.parameters if config.feedback.enabled else "none"
    return {
        "Trainer": settings.trainer,
        "Dataset": f"{settings.dataset}, configuration {settings.configuration}, fold {settings.fold}, {settings.plans}",
        "Training cases": str(len(folder.cases)),
        "Patch and batch": f"{' × '.join(map(str, configuration.patch_size))}, batch of {configuration.batch_size}",
        "Epochs": f"{history.epochs}, until {history.checkpoint.name}",
        "Pairs from": ", ".join(f"{name} {weight:g}" for name, weight in config.mixing.sources.items()),
        "Share of synthetic patches": f"{config.mixing.share:g}",
        "Generator": config.generator.name if "redraw" in config.mixing.sources else "none",
        "Feedback": feedback,
        "Pairs shown": f"{len(folder.sources)}, of which {sum(folder.new_masks.values())} have new masks",
        "Trained with": f"nnunetv2_genseg {history.version}",
        "Reported with": ", ".join(f"{name} {of}" for name, of in versions("nnunetv2", "torch", "numpy").items()),
    }
