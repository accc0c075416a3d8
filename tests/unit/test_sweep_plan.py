"""What a plan may say, and the trainings that it makes, in the order of a cascade."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import pytest

from nnunetv2_genseg import cli
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, OVERRIDES
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.sweep.plan import Plan, read_plan
from nnunetv2_genseg.sweep.trainings import Trainings

NAME = "Dataset905_Cascade"
LEAST = "datasets: [905]\nconfigurations: [2d]\n"


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preprocessed dataset as far as names, stages and folds go."""
    folder = tmp_path / "preprocessed" / NAME
    (folder / "cases").mkdir(parents=True)
    for k in range(6):
        (folder / "cases" / f"c{k}.pkl").touch()
        (folder / "cases" / f"c{k}.b2nd").touch()
    network = {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []}
    one = {"data_identifier": "cases", "architecture": network}
    stages = {
        "2d": one,
        "3d_lowres": one | {"next_stage": "3d_cascade_fullres"},
        "3d_fullres": one,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps({"dataset_name": NAME, "configurations": stages}))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    for name in (EXTERNAL_TRAINERS, OVERRIDES):
        monkeypatch.setenv(name, "")
    return tmp_path


def plan(folder: Path, text: str) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(text)
    return read_plan(path)


def test_every_combination_is_a_training_with_a_folder_of_its_own(planned):
    settings = "settings: {usual: [], turned: [deformation.rotation=30, seed=1]}\n"
    asked = plan(planned, LEAST + "folds: [0, all]\ntrainers: [nnUNetTrainer, nnUNetTrainerDA5]\n" + settings)
    tasks = Trainings(asked).tasks()
    assert len(tasks) == len({task.name for task in tasks}) == len({task.products for task in tasks}) == 8
    last = tasks[-1]
    folder = planned / "results" / "turned" / NAME / "nnUNetTrainerDA5__nnUNetPlans__2d" / "fold_all"
    assert last.products == (folder / "checkpoint_final.pth", folder / "validation" / "summary.json")
    assert last.environment["nnUNet_results"] == str(planned / "results" / "turned")
    assert last.command[0] == str(Path(sys.executable).with_name("genseg"))
    options = "-tr nnUNetTrainerDA5 -p nnUNetPlans -device cuda --set deformation.rotation=30 --set seed=1"
    assert " ".join(last.command[1:]) == f"train {NAME} 2d all {options}"


def test_a_second_stage_waits_for_every_fold_of_the_first_by_the_same_trainer(planned):
    text = f"datasets: [{NAME}]\nconfigurations: [3d_cascade_fullres, 3d_lowres]\nfolds: [0, 1]\n"
    tasks = Trainings(plan(planned, text + "trainers: [nnUNetTrainer, nnUNetTrainerDA5]\nfind_best: true\n")).tasks()
    needs = {task.name: task.needs for task in tasks}
    one = f"{NAME} default"
    assert needs[f"{one} 3d_cascade_fullres nnUNetTrainer 1"] == tuple(f"{one} 3d_lowres nnUNetTrainer {k}" for k in (0, 1))
    assert needs[f"{one} 3d_lowres nnUNetTrainer 0"] == ()
    assert set(needs[f"{one} find_best"]) == set(needs) - {f"{one} find_best"}
    assert tasks[-1].command[1:] == (NAME, "-c", "3d_cascade_fullres", "3d_lowres", "-tr", "nnUNetTrainer", "nnUNetTrainerDA5",
                                     "-p", "nnUNetPlans", "-f", "0", "1")  # fmt: skip
    assert all("--npz" in task.command for task in tasks[:-1])


def test_without_its_first_stage_in_the_plan_a_second_stage_waits_for_nothing(planned):
    tasks = Trainings(plan(planned, "datasets: [905]\nconfigurations: [3d_cascade_fullres]\ntrainers: [nnUNetTrainer]\n")).tasks()
    assert [task.needs for task in tasks] == [()] * 5


def test_folds_are_made_once_and_are_nnunets(planned):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    trainings = Trainings(plan(planned, LEAST + "trainers: [nnUNetTrainer]"))
    trainings.make_folds()
    path = planned / "preprocessed" / NAME / "splits_final.json"
    assert json.loads(path.read_text()) == generate_crossval_split([f"c{k}" for k in range(6)])
    path.write_text("[]")
    trainings.make_folds()
    assert path.read_text() == "[]"


def test_fold_all_needs_no_folds(planned):
    Trainings(plan(planned, LEAST + "trainers: [nnUNetTrainer]\nfolds: [all]")).make_folds()
    assert not (planned / "preprocessed" / NAME / "splits_final.json").exists()


def test_results_of_other_settings_do_not_count_as_done(planned):
    text = LEAST + "trainers: [nnUNetTrainer]\n"
    Trainings(plan(planned, text + "settings: {default: [], turned: [deformation.rotation=30, seed=1]}")).keep_settings()
    Trainings(plan(planned, text + "settings: {turned: [seed=1, deformation.rotation=30.0]}")).keep_settings()
    with pytest.raises(GenSegError, match=r"settings.turned: .*/results/turned holds results of .*rotation=30"):
        Trainings(plan(planned, text + "settings: {turned: [deformation.rotation=60]}")).keep_settings()
    assert {path.name for path in (planned / "results").iterdir()} == {"turned"}


def test_options_of_slurm_may_be_lists_and_mappings(tmp_path):
    text = LEAST + "engine: slurm\nslurm: {slurm_setup: [module load cuda], slurm_additional_parameters: {constraint: a100}}"
    assert plan(tmp_path, text).slurm["slurm_additional_parameters"] == {"constraint": "a100"}


@pytest.mark.parametrize(("given", "threads"), [(None, "2"), ("3", "3")])
def test_trainings_on_the_cpu_divide_its_cores(planned, monkeypatch, given, threads):
    """Twice as many threads as cores make a training many times as slow, since they wait for each other."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    text = LEAST + "trainers: [nnUNetTrainer]\njobs: 4\nfolds: [0]\n"
    (task,) = Trainings(plan(planned, text + "device: cpu")).tasks()
    assert (os.environ | task.environment)["OMP_NUM_THREADS"] == threads
    (task,) = Trainings(plan(planned, text + "device: cuda")).tasks()
    assert "OMP_NUM_THREADS" not in task.environment


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `genseg sweep` says of a plan that is in order."""
    plan(folder, LEAST + "trainers: [nnUNetTrainer]\ndevice: cpu\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(folder / "plan.yaml")])
    assert ended.value.code == 2
    assert not (folder / "results" / "genseg_sweep" / "plan.json").exists()
    return capsys.readouterr().err


def test_a_second_sweep_on_the_same_results_is_refused(planned, capsys):
    (planned / "results" / "genseg_sweep").mkdir(parents=True)
    with alone_in(planned / "results" / "genseg_sweep"):
        assert f"{planned}/results/genseg_sweep is in use by" in refused(planned, capsys)


def test_a_full_disk_is_a_message_and_leaves_nothing_half_written(planned, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        said = refused(planned, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not write" in said
    assert not (planned / "preprocessed" / NAME / "splits_final.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "unknown key": (LEAST + "fold: [0]", "fold: unknown key; did you mean folds?"),
        "no datasets": ("configurations: [2d]", "datasets: Field required"),
        "a list that is empty": (LEAST + "folds: []", "folds: .*must be a list that is not empty"),
        "one dataset twice": ("datasets: [1, 1]\nconfigurations: [2d]", "datasets: .*1 is there twice"),
        "fold that is none": (LEAST + "folds: [first]", "found 'first'"),
        "fold below 0": (LEAST + "folds: [-1]", "fold numbers begin with 0"),
        "no worker": (LEAST + "jobs: 0", "jobs: Input should be greater than or equal to 1"),
        "a fold in no list": (LEAST + "folds: 3", "folds: .*must be a list that is not empty.* found 3"),
        "settings that are the same in other words": (
            LEAST + "settings: {a: [seed=1, masks.source=x], b: [masks.source = x, seed=1]}", "a and b are the same"
        ),
        "options of an engine that is not chosen": (LEAST + "slurm: {nodes: 1}", "options of SLURM, but engine local"),
        "settings that are the same": (LEAST + "settings: {a: [], b: []}", "a and b are the same"),
        "settings named like a folder of nnU-Net": (LEAST + "settings: {Dataset1: [seed=1]}", "Dataset1 cannot be a folder"),
        "settings outside of the folder": (LEAST + "settings: {../a: [seed=1]}", "../a cannot be a folder"),
        "unknown setting": (LEAST + "settings: {a: [deformation.rotaton=1]}", "settings.a.*\n.*did you mean rotation"),
        "comparison of no folds": (LEAST + "folds: [all]\nfind_best: true", "compares numbered folds"),
        "no mapping": ("[1]", "must hold a mapping"),
        "no YAML": ("datasets: [1", "not valid YAML"),
    }.values(),
)  # fmt: skip
def test_a_plan_that_is_wrong_is_refused(tmp_path, text, message):
    with pytest.raises(GenSegError, match=message):
        plan(tmp_path, text)
