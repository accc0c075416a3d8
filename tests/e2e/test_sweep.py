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
    "find_best": True,
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


def test_a_sweep_that_is_killed_goes_on_and_what_is_done_stays(small: Shell, tmp_path: Path):
    results = tmp_path / "results"
    variables = {"nnUNet_results": str(results), "nnUNet_genseg_short": LENGTH, "nnUNet_n_proc_DA": "0"}
    command = ("genseg", "sweep", write(tmp_path))
    ours, theirs = (results / NAME / f"{trainer}__nnUNetPlansTiny__2d" for trainer in PLAN["trainers"])
    finals = [folder / "fold_0" / "checkpoint_final.pth" for folder in (ours, theirs)]

    process = small.start(*command, **variables)
    wait_until(lambda: all(final.with_name("checkpoint_latest.pth").is_file() for final in finals), process)
    os.kill(process.pid, signal.SIGKILL)
    ended(process)
    assert not any(final.exists() for final in finals)
    latest = finals[1].with_name("checkpoint_latest.pth")
    latest.write_bytes(latest.read_bytes()[:1000])  # as if stock nnU-Net, which writes in place, had been killed while it wrote

    output = small.succeed(*command, **variables)
    assert output.count(": done\n") == 3
    *trainings, comparison = tasks_of(results)
    assert [(task["state"], task["attempts"]) for task in (*trainings, comparison)] == [("done", 1)] * 3
    ours_log, theirs_log = (Path(training["log"]).read_text() for training in trainings)
    assert ours_log.splitlines()[0].endswith(" --c")
    assert "\nEpoch 0\n" not in ours_log.replace(" \n", "\n"), "it went on from a checkpoint"
    assert f"now called checkpoint_latest.pth.damaged: {latest}" in theirs_log
    assert (results / NAME / "inference_instructions.txt").is_file()
    made = finals[1].stat().st_mtime_ns

    # each list of settings has results of its own: one is there already, one cannot be made, one lacks its validation
    shutil.copytree(theirs, results / "few" / NAME / theirs.name)
    (ours / "fold_0" / "validation" / "summary.json").unlink()
    write(tmp_path, settings={"default": [], "few": ["feedback.cases=[tr_000, tr_001, tr_002]"]})
    status, output = small.run(*command, **variables)
    assert status == 1, output
    assert {task["name"].removeprefix(NAME): (task["state"], task["attempts"]) for task in tasks_of(results)} == {
        " default 2d GenSegTrainerShort 0": ("done", 1),
        " default 2d nnUNetTrainerShort 0": ("done", 0),
        " default find_best": ("done", 1),
        " few 2d GenSegTrainerShort 0": ("failed", 1),
        " few 2d nnUNetTrainerShort 0": ("done", 0),
        " few find_best": ("left out", 0),
    }
    assert output.count("done before") == 2
    assert "exit status 2: genseg: feedback.cases" in output, "not tried again"
    assert (ours / "fold_0" / "validation" / "summary.json").is_file()
    assert finals[1].stat().st_mtime_ns == made
    assert (results / "few" / NAME / ours.name).is_dir()


def tasks_of(results: Path) -> list[dict[str, Any]]:
    """What the latest sweep tells of its tasks."""
    tasks: list[dict[str, Any]] = json.loads((results / "genseg_sweep" / "plan.json").read_text())["tasks"]
    return tasks


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
