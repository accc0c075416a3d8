"""The demo: phantoms, planning, stock nnU-Net beside GenSeg, prediction by stock nnU-Net, evaluation, a table, a report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, LENGTH, external_trainers
from nnunetv2_genseg.phantoms import PhantomDataset

EPOCHS = 10


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does."""

    folder: Path
    device: str = "cpu"
    datasets: tuple[tuple[PhantomDataset, str], ...] = field(
        default=(
            (PhantomDataset(901, dims=2, training_cases=10, test_cases=12), "2d"),
            (PhantomDataset(902, dims=3, training_cases=6, test_cases=6, extent=40), "3d_fullres"),
        )
    )
    """(dataset, nnU-Net configuration)."""

    iterations: int = 10
    """Of each epoch."""


def run_demo(settings: DemoSettings) -> list[dict[str, str | float]]:
    """Runs the demo and prints a table; returns its rows.

    Raises:
        GenSegError: a step failed; the message names its log.
    """
    folder = settings.folder.resolve()
    rows = [row for dataset, configuration in settings.datasets for row in _compared(folder, settings, dataset, configuration)]
    print(_table(rows))
    print("One run each on few cases: a demonstration, not a comparison. Open the reports in a browser:")
    print("\n".join(f"  {_report(folder, dataset)}" for dataset, _ in settings.datasets))
    return rows


def _compared(folder: Path, settings: DemoSettings, dataset: PhantomDataset, configuration: str) -> list[dict[str, str | float]]:
    """Writes and plans a dataset, then trains, predicts and evaluates with both trainers; a row for each."""
    shutil.rmtree(folder / "nnUNet_raw" / dataset.name, ignore_errors=True)
    raw = dataset.write(folder / "nnUNet_raw")
    of_dataset = ("-d", str(dataset.dataset_id), "-c", configuration)
    plan = ("nnUNetv2_plan_and_preprocess", *of_dataset, "-np", "2", "-npfp", "2", "--verify_dataset_integrity")
    _run(folder, f"{dataset.name}_plan", settings, *plan)
    rows: list[dict[str, str | float]] = []
    for trainer in ("nnUNetTrainerShort", "GenSegTrainerShort"):
        step, device = f"{dataset.name}_{trainer}", ("-device", settings.device)
        train = ("nnUNetv2_train", str(dataset.dataset_id), configuration, "all", "-tr", trainer, *device)
        seconds = _run(folder, step, settings, *train)
        predictions = folder / "predictions" / dataset.name / trainer
        model = folder / "nnUNet_results" / dataset.name / f"{trainer}__nnUNetPlans__{configuration}"
        predict = ("nnUNetv2_predict", *of_dataset, "-f", "all", "-tr", trainer, *device, "-npp", "1", "-nps", "1")
        _run(folder, f"{step}_predict", settings, *predict, "-i", str(raw / "imagesTs"), "-o", str(predictions))
        evaluate = ("nnUNetv2_evaluate_folder", str(raw / "labelsTs"), str(predictions), "-np", "2")
        files = ("-djfile", str(model / "dataset.json"), "-pfile", str(model / "plans.json"))
        _run(folder, f"{step}_evaluate", settings, *evaluate, *files)
        dice = json.loads((predictions / "summary.json").read_text(encoding="utf-8"))["foreground_mean"]["Dice"]
        rows.append({"dataset": dataset.name, "trainer": trainer.removesuffix("Short"), "dice": dice, "seconds": seconds})
    report = ("genseg", "report", str(dataset.dataset_id), configuration, "all", "-tr", "GenSegTrainerShort", *device)
    _run(folder, f"{dataset.name}_report", settings, *report, "-o", str(_report(folder, dataset)))
    return rows


def _report(folder: Path, dataset: PhantomDataset) -> Path:
    return folder / f"{dataset.name}.html"


def _run(folder: Path, step: str, settings: DemoSettings, program: str, *arguments: str) -> float:
    """Runs a program with a progress bar, in a terminal; returns how long it took, in seconds."""
    log = folder / "logs" / f"{step}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "nnUNet_raw": str(folder / "nnUNet_raw"),
        "nnUNet_preprocessed": str(folder / "nnUNet_preprocessed"),
        "nnUNet_results": str(folder / "nnUNet_results"),
        EXTERNAL_TRAINERS: external_trainers(),
        "nnUNet_n_proc_DA": "1" if settings.device == "cpu" else "4",
        "nnUNet_def_n_proc": "2",
        LENGTH: f"{EPOCHS},{settings.iterations},2,5,0",
    }
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    started, console = time.monotonic(), Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        open(log, "w", encoding="utf-8") as file,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        bar = progress.add_task(step, total=EPOCHS if program == "nnUNetv2_train" else None)
        while process.poll() is None:
            time.sleep(0.2)
            progress.update(bar, completed=log.read_text(encoding="utf-8", errors="replace").count("Epoch time:"))
    seconds = time.monotonic() - started
    if process.returncode:
        tail = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-5:])
        raise GenSegError(f"the demo's step {step} failed; its log is {log}. Last lines:\n{tail}")
    print(f"{step:48} {seconds:4.0f} s", flush=True)
    return seconds


def _table(rows: list[dict[str, str | float]]) -> str:
    lines = ["", f"{'dataset':22} {'trainer':16} {'test Dice':>9} {'training, s':>12}"]
    lines += [f"{row['dataset']:22} {row['trainer']:16} {row['dice']:9.3f} {row['seconds']:12.0f}" for row in rows]
    return "\n".join([*lines, ""])
