"""The trainings of a plan as tasks: commands, what each leaves behind, and which go before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.loading import overrides
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.sweep.plan import Plan
from nnunetv2_genseg.sweep.task import Task, nnunets_environment, program
from nnunetv2_genseg.trainers.exporting import SUMMARY
from nnunetv2_genseg.trainers.planned_dataset import PlannedDataset, require_trainer

RESULTS, THREADS = "nnUNet_results", "OMP_NUM_THREADS"
SETTINGS = "genseg_settings.json"
"""In a folder of results: the settings that all trainings there are of."""


@dataclass(frozen=True)
class Trainings:
    """The tasks of a plan.

    Raises:
        GenSegError, RuntimeError, ValueError: a dataset, a configuration or a trainer is not there.
    """

    plan: Plan

    def __post_init__(self) -> None:
        names = [dataset.name for dataset in self._datasets()]
        if twins := [name for name in names if names.count(name) > 1]:
            raise GenSegError(f"datasets: {twins[0]} is there twice, by number and by name; remove one of the two")
        for trainer in self.plan.trainers:
            require_trainer(trainer)
        for dataset, configuration in product(self._datasets(), self.plan.configurations):
            dataset.previous_stage(configuration)

    def keep_settings(self) -> None:
        """Notes in each folder of results the settings that it is of.

        Raises:
            GenSegError: a folder is of others. What was trained with them would count as done.
        """
        for name, lines in self.plan.settings.items():
            path = self._results(name) / SETTINGS
            if not lines:
                continue
            if path.is_file() and overrides(before := read_json(path, list[str], "a list of settings")) != overrides(lines):
                raise GenSegError(f"settings.{name}: {path.parent} holds results of {before}, found {lines}; choose another name")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(json.dumps(lines) + "\n", path)

    def make_folds(self) -> None:
        """Makes the folds of every dataset that has none."""
        if set(self.plan.folds) != {"all"}:
            for dataset in self._datasets():
                dataset.make_folds(self.plan.configurations[0])

    def tasks(self) -> list[Task]:
        """All trainings, and the comparisons after them."""
        tasks = []
        for dataset, settings in product(self._datasets(), self.plan.settings):
            of_dataset = list(self._of(dataset, settings))
            tasks += of_dataset
            if self.plan.find_best:
                tasks.append(self._comparison(dataset, settings, of_dataset))
        return tasks

    def _datasets(self) -> list[PlannedDataset]:
        return [PlannedDataset(dataset, self.plan.plans) for dataset in self.plan.datasets]

    def _of(self, dataset: PlannedDataset, settings: str) -> Iterator[Task]:
        """The trainings of a dataset with a list of settings."""
        plan, lines = self.plan, self.plan.settings[settings]
        for configuration, trainer, fold in product(plan.configurations, plan.trainers, plan.folds):
            folder = dataset.fold_folder(self._results(settings), trainer, configuration, fold)
            options = ["-tr", trainer, "-p", plan.plans, "-device", plan.device, *(["--npz"] if plan.find_best else [])]
            stage = dataset.previous_stage(configuration)
            yield Task(
                name=_name(dataset, settings, configuration, trainer, fold),
                command=(program("genseg"), "train", dataset.name, configuration, str(fold), *options, *_set(lines)),
                folder=Path.cwd(),
                environment=self._environment(settings),
                products=(folder / "checkpoint_final.pth", folder / SUMMARY),
                checkpoints=tuple(folder / f"checkpoint_{kind}.pth" for kind in ("final", "latest", "best")),
                needs=tuple(_name(dataset, settings, stage, trainer, other) for other in plan.folds)
                if stage in plan.configurations
                else (),
            )

    def _comparison(self, dataset: PlannedDataset, settings: str, trainings: list[Task]) -> Task:
        plan = self.plan
        options = ["-c", *plan.configurations, "-tr", *plan.trainers, "-p", plan.plans, "-f", *map(str, plan.folds)]
        return Task(
            name=f"{dataset.name} {settings} find_best",
            command=(program("nnUNetv2_find_best_configuration"), dataset.name, *options),
            folder=Path.cwd(),
            environment=self._environment(settings),
            needs=tuple(task.name for task in trainings),
        )

    def _results(self, settings: str) -> Path:
        """`nnUNet_results` of a list of settings."""
        root = Path(os.environ[RESULTS]).resolve()
        return root / settings if self.plan.settings[settings] else root

    def _environment(self, settings: str) -> dict[str, str]:
        return self._threads() | nnunets_environment() | {RESULTS: str(self._results(settings))}

    def _threads(self) -> dict[str, str]:
        """The cores of this machine divided among trainings on its CPU, each of which would take all."""
        if self.plan.device != "cpu" or self.plan.engine != "local" or THREADS in os.environ:
            return {}
        return {THREADS: str(max(1, (os.cpu_count() or 1) // self.plan.jobs))}


def _name(dataset: PlannedDataset, settings: str, configuration: str, trainer: str, fold: int | str) -> str:
    return f"{dataset.name} {settings} {configuration} {trainer} {fold}"


def _set(lines: list[str]) -> list[str]:
    return [word for line in lines for word in ("--set", line)]
