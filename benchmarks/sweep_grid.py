"""A real grid of `genseg sweep`, killed on the way: results/sweep_grid.json.

    python benchmarks/sweep_grid.py --raw PATH/TO/nnUNet_raw --work FOLDER

Twelve short trainings and two comparisons on ten cases of Dataset101 at 64 pixels: two trainers, two lists of settings, three
folds. The sweep gets SIGKILL once four trainings are finished, one training gets it in the second sweep, and a third sweep finds
all of them done. Two more trainings run on Ray, where the worker of one is killed. The file says for each training which epochs
each attempt began, as its log tells, and in which epoch its final checkpoint was written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from building import nnunet_folders
from cells import MINI
from provenance import provenance
from raw_datasets import budgeted_dataset, source_of

RESULT = Path(__file__).parent / "results" / "sweep_grid.json"
NUMBER, CASES = "101", 10
EPOCHS, BETWEEN_CHECKPOINTS = 4, 2
LENGTH = f"{EPOCHS},5,1,{BETWEEN_CHECKPOINTS},0"
GRID: dict[str, Any] = {
    "datasets": [int(NUMBER)],
    "configurations": ["2d"],
    "folds": [0, 1, 2],
    "trainers": ["nnUNetTrainerShort", "GenSegTrainerShort"],
    "settings": {"default": [], "turned": ["deformation.rotation=45"]},
    "device": "cpu",
    "find_best": True,
    "jobs": 2,
}
ON_RAY = GRID | {"folds": [3], "settings": {"default": []}, "find_best": False, "engine": "ray"}
PROGRAMS = Path(sys.executable).parent


class Grid:
    """Sweeps in one folder.

    Args:
        work: the folder.
        raw: nnU-Net's raw datasets.
    """

    def __init__(self, work: Path, raw: Path) -> None:
        self.work = work
        self.environment = os.environ | nnunet_folders(work, work / "results") | {"nnUNet_genseg_short": LENGTH}
        if not (work / "preprocessed").is_dir():
            self._plan(raw)
        self.environment |= {"nnUNet_n_proc_DA": "0"}

    def _plan(self, raw: Path) -> None:
        budgeted_dataset(source_of(NUMBER, raw), CASES, MINI, self.work / "raw")
        options = ("-d", NUMBER, "-c", "2d", "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
        with open(self.work / "planning.txt", "w") as log:
            command = [str(PROGRAMS / "nnUNetv2_plan_and_preprocess"), *options]
            subprocess.run(command, env=self.environment, stdout=log, stderr=log, check=True)

    def start(self, name: str, plan: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Begins a sweep."""
        path = self.work / f"{name}.yaml"
        path.write_text(json.dumps(plan))
        return subprocess.Popen([str(PROGRAMS / "genseg"), "sweep", str(path)], env=self.environment)

    def tasks(self, name: str) -> list[dict[str, Any]]:
        """What the latest sweep of a plan wrote down."""
        found: list[dict[str, Any]] = json.loads((self.work / "results" / "genseg_sweep" / f"{name}.json").read_text())["tasks"]
        return found

    def finals(self) -> dict[str, int]:
        """When each final checkpoint was written, ns."""
        found = sorted((self.work / "results").rglob("checkpoint_final.pth"))
        return {str(path.relative_to(self.work)): path.stat().st_mtime_ns for path in found}

    def summaries(self) -> int:
        """Trainings that are finished."""
        return len(list((self.work / "results").rglob("fold_*/validation/summary.json")))

    def half_done(self) -> list[tuple[int, int]]:
        """Processes of trainings that have a checkpoint, but not the last one, and the process that waits for each."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().decode().split("\0")
                variables = (path / "environ").read_bytes().decode().split("\0")
                parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            root = next((Path(line.split("=", 1)[1]) for line in variables if line.startswith("nnUNet_results=")), None)
            if "train" not in words or root is None or not root.is_relative_to(self.work):
                continue
            _, dataset, configuration, fold = words[words.index("train") :][:4]
            folder = root / dataset / f"{words[words.index('-tr') + 1]}__nnUNetPlans__{configuration}" / f"fold_{fold}"
            if (folder / "checkpoint_latest.pth").exists() and not (folder / "checkpoint_final.pth").exists():
                found.append((int(path.name), parent))
        return found


def when(happened: Callable[[], Any], sweep: subprocess.Popen[bytes]) -> Any:
    """What `happened` returns once it is true."""
    while not (found := happened()):
        if sweep.poll() is not None:
            raise RuntimeError("the sweep ended before it could be disturbed")
        time.sleep(0.1)
    return found


def epochs_by_attempt(log: Path) -> list[dict[str, Any]]:
    """By the logs of all attempts at a training: the epochs that each began, and whether it was told to go on."""
    found = []
    k = 1
    while (path := log.with_name(f"{log.name.rsplit('-', 1)[0]}-{k}.txt")).is_file():
        text = path.read_text()
        epochs = [int(epoch) for epoch in re.findall(r"Epoch (\d+) *$", text, re.MULTILINE)]
        found.append({"resumed": text.splitlines()[0].endswith(" --c"), "epochs": epochs})
        k += 1
    return found


def told(grid: Grid, name: str) -> list[dict[str, Any]]:
    """The tasks of a plan after its last sweep, with what the logs and checkpoints say."""
    import torch

    rows = []
    for task in grid.tasks(name):
        row = {key: task[key] for key in ("name", "state")}
        stem = grid.work / "results" / "genseg_sweep" / "logs" / f"{task['name'].replace(' ', '_')}-1.txt"
        row["attempts"] = epochs_by_attempt(stem)
        if "find_best" not in task["name"]:
            dataset, _, configuration, trainer, fold = task["name"].split()
            results = Path(task["environment"]["nnUNet_results"])
            folder = results / dataset / f"{trainer}__nnUNetPlans__{configuration}" / f"fold_{fold}"
            row["final_epoch"] = torch.load(folder / "checkpoint_final.pth", weights_only=False)["current_epoch"]
            row["repeated_epochs"] = sum(len(a["epochs"]) for a in row["attempts"]) - EPOCHS
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder without results; planning is done once")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    grid = Grid(chosen.work.resolve(), chosen.raw)

    first = grid.start("grid", GRID)
    when(lambda: grid.summaries() >= 4 and grid.half_done(), first)
    first.kill()
    first.wait()
    time.sleep(5)  # the trainings end with the sweep
    left = len(grid.half_done())
    finished = grid.finals()

    started = time.monotonic()
    second = grid.start("grid", GRID)
    os.kill(when(grid.half_done, second)[0][0], signal.SIGKILL)
    statuses = [second.wait()]
    seconds = time.monotonic() - started
    tasks = grid.tasks("grid")
    after = grid.finals()

    statuses.append(grid.start("grid", GRID).wait())
    again = grid.tasks("grid")

    on_ray = grid.start("on_ray", ON_RAY)
    os.kill(when(grid.half_done, on_ray)[0][1], signal.SIGKILL)
    statuses.append(on_ray.wait())

    content = {
        "plan": GRID,
        "length": LENGTH,
        "first_sweep": {"ended_by": "SIGKILL", "finished": len(finished), "processes_left": left},
        "second_sweep": {
            "exit_status": statuses[0],
            "seconds": round(seconds, 1),
            "done_before": sum(task["state"] == "done" and not task["attempts"] for task in tasks),
            "killed_trainings": [task["name"] for task in tasks if task["attempts"] > 1],
            "finals_unchanged": all(after[path] == time for path, time in finished.items()),
        },
        "third_sweep": {
            "exit_status": statuses[1],
            "begun": [task["name"] for task in again if task["attempts"]],
            "finals_unchanged": all(grid.finals()[path] == time for path, time in after.items()),
        },
        "ray": {
            "exit_status": statuses[2],
            "workers_killed": [task["name"] for task in grid.tasks("on_ray") if task["attempts"] > 1],
        },
        "tasks": told(grid, "grid"),
        "tasks_on_ray": told(grid, "on_ray"),
        "command": "python benchmarks/sweep_grid.py --raw nnUNet_raw --work FOLDER",
        **provenance("cpu"),
    }
    chosen.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
