"""The plan of a sweep: a YAML file that says which trainings are run, and where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from nnunetv2_genseg.config import GenSegConfig, GenSegError, checked
from nnunetv2_genseg.config.loading import overrides
from nnunetv2_genseg.config.reading import parse_yaml, read_text
from nnunetv2_genseg.config.schema import Section

T = TypeVar("T")
NAME = re.compile(r"(?!genseg|Dataset)[A-Za-z0-9][A-Za-z0-9_-]*")
"""Of a list of settings: a folder beside those of datasets and of this package."""


def _listed(found: Any) -> Any:
    if not isinstance(found, (list, tuple)) or not found:
        raise ValueError("must be a list that is not empty, in brackets, such as [0, 1]")
    return found


def _without_twins(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twins = [value for k, value in enumerate(values) if value in values[:k]]
    if twins:
        raise ValueError(f"{twins[0]} is there twice")
    return values


Listed = Annotated[tuple[T, ...], Field(strict=False), BeforeValidator(_listed), AfterValidator(_without_twins)]
"""A list, not empty, nothing in it twice."""


class Plan(Section):
    """Every combination of datasets, configurations, folds, trainers and settings is a training."""

    datasets: Listed[str | int]
    """Names or numbers of datasets that nnU-Net has planned and preprocessed."""
    configurations: Listed[str]
    """nnU-Net's, such as `3d_fullres`. The second stage of a cascade waits for every fold of the first."""
    folds: Listed[int | Literal["all"]] = (0, 1, 2, 3, 4)
    """Numbers of folds, or `all`."""
    trainers: Listed[str] = ("GenSegTrainer",)
    """Their names, nnU-Net's own trainers among them."""
    settings: dict[str, list[str]] = Field(default={"default": []}, min_length=1)
    """Lists of `SECTION.SETTING=VALUE` as for `--set`, each under a name. A list that is not empty has its results in a folder of
    that name in `nnUNet_results`."""
    plans: str = "nnUNetPlans"
    """Name of nnU-Net's plans."""
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    """Where each training runs; `cuda`: on one GPU of its own."""
    find_best: bool = False
    """Whether nnUNetv2_find_best_configuration compares configurations and trainers once all folds are trained. The trainings
    then write their probabilities (`--npz`)."""
    engine: str = "local"
    """`local`: this machine; `ray`: the Ray cluster at RAY_ADDRESS; `slurm`: jobs of SLURM."""
    jobs: int = Field(1, ge=1)
    """Trainings at once."""
    attempts: int = Field(3, ge=1)
    """How often a training is begun or resumed at most."""
    slurm: dict[str, Any] = Field(default={})
    """Options of submitit's AutoExecutor, such as `slurm_partition` and `timeout_min`; for engine `slurm`."""

    @field_validator("folds")
    @classmethod
    def _are_folds(cls, folds: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if any(isinstance(fold, int) and fold < 0 for fold in folds):
            raise ValueError("fold numbers begin with 0")
        return folds

    @field_validator("settings")
    @classmethod
    def _differ(cls, settings: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, lines in settings.items():
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"{name} cannot be a folder; use letters, digits, - and _, and begin with neither genseg nor Dataset"
                )
            same = [other for other in settings if other != name and overrides(settings[other]) == overrides(lines)]
            if same:
                raise ValueError(f"{name} and {same[0]} are the same; remove one of the two")
        return settings


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file.

    Raises:
        GenSegError: the file is missing, not YAML, or not a plan.
    """
    if not path.is_file():
        raise GenSegError(f"{path} is not a file; name the plan of the sweep")
    try:
        content = parse_yaml(read_text(path))
    except ValueError as error:
        raise GenSegError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise GenSegError(f"{path} must hold a mapping with at least `datasets` and `configurations`")
    plan = checked(Plan, content, str(path))
    for name, lines in plan.settings.items():
        checked(GenSegConfig, overrides(lines), f"{path}, settings.{name}")
    if plan.slurm and plan.engine != "slurm":
        raise GenSegError(f"{path}: options of SLURM, but engine {plan.engine}; write engine: slurm, or remove `slurm`")
    if plan.find_best and "all" in plan.folds:
        raise GenSegError(f"{path}: find_best compares numbered folds, found fold `all`; remove one of the two")
    return plan
