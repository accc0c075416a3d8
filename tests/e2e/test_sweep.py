"""`genseg sweep` as a user calls it: killed in the middle, started again, and started once more."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Shell, ended, wait_until
from tests.integration.conftest import Workspace

NAME = "Dataset903_Phantom2D"
LENGTH = "5,2,1,1,0"
PLAN = {
    "datasets": [903],
    "configurations": ["2d"],
    "folds": [0],
    "trainers": ["GenSegTrainerShort", "nnUNetTrainerShort"],
    "plans": "nnUNetPlansTiny",
    "device": "cpu",
    "jobs": 2,
}


def write(folder: Path, **changed: Any) -> str:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN | changed))
    return str(path)


@pytest.fixture
def small(shell: Shell) -> Shell:
    Workspace(shell.folder).shrink(NAME, "2d")
    return shell


def test_a_sweep_that_is_killed_goes_on_and_then_has_nothing_to_do(small: Shell, tmp_path: Path):
    results = tmp_path / "results"
    told = results / "genseg_sweep" / "plan.json"
    variables = {"nnUNet_results": str(results), "nnUNet_genseg_short": LENGTH, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    command = ("genseg", "sweep", write(tmp_path))
    folders = [results / NAME / f"{trainer}__nnUNetPlansTiny__2d" / "fold_0" for trainer in PLAN["trainers"]]

    process = small.start(*command, **variables)
    wait_until(lambda: all((folder / "checkpoint_latest.pth").is_file() for folder in folders), process)
    os.kill(process.pid, signal.SIGKILL)
    ended(process)
    assert not any((folder / "checkpoint_final.pth").exists() for folder in folders)

    output = small.succeed(*command, **variables)
    assert output.count(": done\n") == 2
    records = json.loads(told.read_text())["tasks"]
    assert [(record["state"], record["attempts"]) for record in records] == [("done", 1)] * 2
    for record in records:
        log = Path(record["log"]).read_text()
        assert log.splitlines()[0].endswith(" --c")
        assert "\nEpoch 0\n" not in log.replace(" \n", "\n"), "it went on from a checkpoint"
    made = {folder: (folder / "checkpoint_final.pth").stat().st_mtime_ns for folder in folders}

    (folders[1] / "validation" / "summary.json").unlink()
    output = small.succeed(*command, **variables)
    assert output.count("done before") == 1
    assert (folders[1] / "validation" / "summary.json").is_file()
    assert (folders[0] / "checkpoint_final.pth").stat().st_mtime_ns == made[folders[0]]


def test_settings_have_their_own_results_and_a_failure_is_the_exit_status(small: Shell, tmp_path: Path):
    results = tmp_path / "results"
    settings: dict[str, list[str]] = {"default": [], "few": ["feedback.cases=[tr_000, tr_001, tr_002]"]}
    plan = write(tmp_path, trainers=["GenSegTrainerShort"], settings=settings, find_best=True)
    variables = {
        "nnUNet_results": str(results),
        "nnUNet_genseg_short": "2,1,1,2,0",
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
    }
    status, output = small.run("genseg", "sweep", plan, **variables)
    assert status == 1, output
    assert {
        record["name"]: record["state"] for record in json.loads((results / "genseg_sweep" / "plan.json").read_text())["tasks"]
    } == {
        f"{NAME} default 2d GenSegTrainerShort 0": "done",
        f"{NAME} default find_best": "done",
        f"{NAME} few 2d GenSegTrainerShort 0": "failed",
        f"{NAME} few find_best": "left out",
    }
    assert "exit status 2: genseg: feedback.cases" in output, "not tried again"
    assert (results / NAME / "inference_instructions.txt").is_file()
    assert (results / "few" / NAME / "GenSegTrainerShort__nnUNetPlansTiny__2d").is_dir()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pairs_do_not_depend_on_the_number_of_shards(small: Shell, tmp_path: Path):
    """Nor on which were there before, drawn by one process."""
    options = ("-tr", "GenSegTrainerNoGenerator", "-p", "nnUNetPlansTiny", "-device", "cpu", "--seed", "3")
    one, several = tmp_path / "one", tmp_path / "several"
    command = ("genseg", "generate", NAME, "2d", "0", *options)
    small.succeed(*command, "-n", "7", "-o", str(one))
    shutil.copytree(one, several)
    for k in range(6):
        (several / "labelsTr" / f"synthetic_{k:05d}.png").unlink()
    output = small.succeed(*command, "-n", "7", "-o", str(several), "--shards", "2")
    assert output.splitlines()[-1] == f"7 pairs are in {several}"
    assert files_of(one) == files_of(several)
    assert len(files_of(one)) == 7 * 2 + 2
