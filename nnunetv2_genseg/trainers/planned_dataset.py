"""What nnU-Net knows of the trainings of a planned dataset before they begin: names, folders, stages of a cascade, folds."""

from __future__ import annotations

import json
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.trainers.preflight import PREPROCESS, require_cases


class PlannedDataset:
    """A dataset in `nnUNet_preprocessed`.

    Args:
        dataset: name or number.
        plans: name of its plans.

    Raises:
        GenSegError: it was not planned, or its plans are not JSON.
        RuntimeError, ValueError: nnU-Net's, if there is no such dataset, or that is no name.
    """

    def __init__(self, dataset: str | int, plans: str) -> None:
        self.name: str = maybe_convert_to_dataset_name(dataset)
        self._plans = plans
        self._folder = Path(os.environ["nnUNet_preprocessed"]) / self.name
        path = self._folder / f"{plans}.json"
        if not path.is_file():
            raise GenSegError(f"{path} is missing; first run: {PREPROCESS}")
        self._manager = PlansManager(read_json(path, dict[str, Any], "a mapping"))

    def previous_stage(self, configuration: str) -> str | None:
        """The configuration that is trained before, in a cascade.

        Raises:
            ValueError: nnU-Net's, if the plans have no such configuration.
        """
        stage: str | None = self._manager.get_configuration(configuration).previous_stage_name
        return stage

    def fold_folder(self, results: Path, trainer: str, configuration: str, fold: int | str) -> Path:
        """Where a training writes to."""
        identifier: str = convert_trainer_plans_config_to_identifier(trainer, self._plans, configuration)
        return results / self.name / identifier / f"fold_{fold}"

    def make_folds(self, configuration: str) -> None:
        """Writes nnU-Net's splits_final.json, unless it is there: trainings that begin at once would write and read it at once.

        Raises:
            GenSegError: there are too few cases.
        """
        path = self._folder / "splits_final.json"
        if path.is_file():
            return
        cases = self._folder / self._manager.get_configuration(configuration).data_identifier
        names = sorted(infer_dataset_class(str(cases)).get_identifiers(str(cases)))
        require_cases(self._folder, names)
        folds = [{part: list(map(str, fold[part])) for part in ("train", "val")} for fold in generate_crossval_split(names)]
        write_text_atomically(json.dumps(folds, indent=4) + "\n", path)


def require_trainer(name: str) -> None:
    """Looks a trainer up as `nnUNetv2_train` does.

    Raises:
        RuntimeError: nnU-Net's, if there is none of that name.
    """
    with redirect_stdout(StringIO()):
        recursive_find_trainer_class_by_name(name)
