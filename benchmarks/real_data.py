"""Trains and tests on real datasets in nnU-Net's raw format, stock nnU-Net beside GenSeg, at equal iterations.

    python benchmarks/real_data.py --raw PATH/TO/nnUNet_raw --work FOLDER [--only 104_2d] [--arm genseg] [--device cpu]

A cell is a dataset, a label budget, a configuration and an arm. The first N training cases by the rank in `cases.csv` make
a raw dataset of their own, on which planning, training (fold `all`) and nothing else happen. A GenSeg training is killed
(SIGKILL) after its first checkpoint and goes on with `--c`. The test part is predicted by stock nnU-Net; for GenSeg's
checkpoints without `nnUNet_extTrainer`. One JSON a cell; a finished cell is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunetv2_genseg.cli import external_trainers
from provenance import provenance
from raw_datasets import budgeted_dataset

RESULTS = Path(__file__).parent / "results" / "real_data"


@dataclass(frozen=True)
class Task:
    """A dataset with a label budget, a configuration and a length that fits the machine."""

    dataset: str
    budget: int
    configuration: str
    length: str
    """epochs, iterations, validation iterations, epochs between checkpoints, seed."""
    arms: tuple[str, ...] = ("genseg", "stock")


TASKS = {
    "104_2d": Task("Dataset104_Hippocampus", 10, "2d", "20,25,2,5,0", ("genseg", "stock", "genseg_tissue")),
    "104_3d_fullres": Task("Dataset104_Hippocampus", 10, "3d_fullres", "12,5,1,3,0"),
    "101_2d": Task("Dataset101_FootUlcer", 20, "2d", "12,8,2,3,0"),
}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "genseg": ("GenSegTrainerShort", {}),
    "stock": ("nnUNetTrainerShort", {}),
    "genseg_tissue": ("GenSegTrainerShort", {"redraw": {"mode": "tissue"}, "mixing": {"sources": {"redraw": 1.0}}}),
}


def run(arguments: list[str], environment: dict[str, str], log: Path, kill_at: Path | None = None) -> float:
    """Runs a program of this environment to its end, or kills it when `kill_at` appears; returns the seconds."""
    started = time.monotonic()
    command = [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]]
    with open(log, "a") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        while process.poll() is None:
            if kill_at is not None and kill_at.is_file():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return time.monotonic() - started
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    return time.monotonic() - started


def cell(name: str, arm: str, raw: Path, work: Path, device: str) -> dict[str, Any]:
    """Plans, trains, predicts and evaluates; returns the result."""
    task = TASKS[name]
    trainer, settings = ARMS[arm]
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "nnUNet_raw": str(folder / "raw"),
        "nnUNet_preprocessed": str(folder / "preprocessed"),
        "nnUNet_results": str(folder / "results" / arm),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_genseg_short": task.length,
    }
    number = str(int(task.dataset[7:10]))
    if not (folder / "planned").exists():
        budgeted_dataset(raw / task.dataset, task.budget, "full", folder / "raw")
        planning = ["-d", number, "-c", task.configuration, "-np", "1", "-npfp", "1", "--verify_dataset_integrity"]
        run(["nnUNetv2_plan_and_preprocess", *planning], environment, folder / "plan.txt")
        (folder / "planned").touch()
    if settings:
        (folder / f"{arm}.json").write_text(json.dumps(settings))
        environment["nnUNet_genseg_config"] = str(folder / f"{arm}.json")

    found = environment | {"nnUNet_extTrainer": external_trainers()}
    model = folder / "results" / arm / task.dataset / f"{trainer}__nnUNetPlans__{task.configuration}"
    shutil.rmtree(model, ignore_errors=True)
    train = ["nnUNetv2_train", number, task.configuration, "all", "-tr", trainer, "-device", device]
    seconds, killed = 0.0, arm != "stock"
    if killed:
        seconds = run(train, found, folder / f"{arm}.txt", kill_at=model / "fold_all" / "checkpoint_latest.pth")
    seconds += run([*train, "--c"] if killed else train, found, folder / f"{arm}.txt")

    predictions = folder / "predictions" / arm
    shutil.rmtree(predictions, ignore_errors=True)
    test = raw / task.dataset
    predict = ["-i", str(test / "imagesTs"), "-o", str(predictions), "-m", str(model), "-f", "all", "-device", device]
    predict += ["--disable_tta"]  # a quarter of the time in 2D, an eighth in 3D; for every arm alike
    stock = found if arm == "stock" else environment
    run(["nnUNetv2_predict_from_modelfolder", *predict, "-npp", "1", "-nps", "1"], stock, folder / f"{arm}_predict.txt")
    files = ["-djfile", str(model / "dataset.json"), "-pfile", str(model / "plans.json"), "-np", "1"]
    run(["nnUNetv2_evaluate_folder", str(test / "labelsTs"), str(predictions), *files], environment, folder / "evaluate.txt")
    summary = json.loads((predictions / "summary.json").read_text())
    for picture in ("genseg_samples.png", "genseg_progress.png"):
        if (model / "fold_all" / picture).is_file():
            shutil.copy(model / "fold_all" / picture, folder / f"{arm}_{picture}")
    epochs, iterations, _, _, seed = map(int, task.length.split(","))
    return {
        **{key: value for key, value in asdict(task).items() if key != "arms"},
        "arm": arm,
        "trainer": trainer,
        "settings": settings,
        "seed": seed,
        "iterations": epochs * iterations,
        "dice": summary["foreground_mean"]["Dice"],
        "dice_per_class": {label: values["Dice"] for label, values in summary["mean"].items()},
        "test_cases": len(summary["metric_per_case"]),
        "killed_and_resumed": killed,
        "training_seconds_with_validation": round(seconds, 1),
        "command": f"python benchmarks/real_data.py --only {name} --arm {arm} --device {device}",
        **provenance(device, "other jobs beside"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=TASKS, nargs="*", default=list(TASKS))
    parser.add_argument("--arm", choices=ARMS, nargs="*", default=list(ARMS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    chosen = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, arm in itertools.product(chosen.only, chosen.arm):
        if arm in TASKS[name].arms:
            result = RESULTS / f"{name}__{arm}.json"
            if not result.is_file():
                found = cell(name, arm, chosen.raw.resolve(), chosen.work.resolve(), chosen.device)
                result.write_text(json.dumps(found, indent=2) + "\n")
                print(f"{result.name}: Dice {found['dice']:.3f}", flush=True)


if __name__ == "__main__":
    main()
