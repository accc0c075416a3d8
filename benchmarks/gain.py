"""Measures what synthetic pairs are worth: one grid of trainings on real data at small label budgets, one JSON a cell.

    python benchmarks/gain.py --raw PATH/TO/nnUNet_raw --work FOLDER GRID [GRID ...] [--jobs 2] [--engine local] [--device cpu]

A cell is (dataset, label budget, configuration, arm, seed, iterations). The first N training cases by the rank in `cases.csv`
make a raw dataset of their own, on which planning, training (fold `all`; GenSeg's held-out cases belong to the same N) and
nothing else happen. Prediction and evaluation are nnU-Net's own, without test-time mirroring, on the part that the grid names:
`validation` is a part of the training pool (ranks from 40 on), and settings are chosen by it; `test` is for final figures. A
finished cell is never run again; one that was interrupted starts again.

Scales: `mini` and `small` for CPU, 2D images resampled to a longer side of 64 and 128 pixels, volumes as they are; `coarse` for
CPU, every second voxel of volumes along each axis; `full` for a GPU, everything as it is.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from building import build_trainer, deliver_average, without_pictures
from cells import ARMS, GRIDS, Cell
from choosing import choose_pairs
from mean_teacher import learn_to_agree
from nnunetv2_genseg.sweep.engines import ENGINES, Resources
from nnunetv2_genseg.sweep.report import Report
from nnunetv2_genseg.sweep.running import Record, State, run
from nnunetv2_genseg.sweep.task import Task
from preparing import RESULTS, Place, images_of, prepare
from provenance import provenance
from pseudo_labels import dataset_of, label_images
from raw_datasets import GROUPS, part_of
from surface import hausdorff95

ATTEMPTS = 2
"""At a cell: one that is lost with its machine is begun again."""
EPOCHS = 20
EPOCHS_BETWEEN_CHECKPOINTS = 10


def task_of(cell: Cell, place: Place) -> Task:
    """Training, prediction and evaluation as a command, which is given one core of `jobs`."""
    command = [sys.executable, str(Path(__file__).resolve()), "--raw", str(place.raw), "--work", str(place.work)]
    command += ["--results", str(place.results), "--device", place.device, "--cell", json.dumps(asdict(cell))]
    return Task(cell.name, tuple(command), Path.cwd(), products=(cell.result(place.results),))


def run_cells(cells: Sequence[Cell], place: Place, jobs: int, engine: str, collect: Callable[[], None] = lambda: None) -> None:
    """Runs cells that are not finished, on an engine of `genseg sweep`, and prints what each gave.

    `collect` is called whenever one may have finished.
    """

    def tell(records: Sequence[Record]) -> None:
        report.tell(records)
        collect()

    logs = place.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    report = Report(place.work / "cells.json", {"engine": engine})
    with closing(ENGINES[engine](Resources(jobs, logs, place.device == "cuda"))) as running, report.shown():
        records = run([task_of(cell, place) for cell in cells], running, jobs, ATTEMPTS, logs, tell)
    for record in records:
        if record.state is State.DONE:
            result = json.loads(record.task.products[0].read_text())
            dice = ", ".join(f"{part} {values['dice']:.4f}" for part, values in result["parts"].items())
            print(f"{record.task.name}: {dice} ({record.seconds:.0f} s)", flush=True)


def train_and_judge(cell: Cell, place: Place, command: str) -> None:
    """The cell itself: trains unless the same training is there, predicts, evaluates and writes the result."""
    model, before = place.model(cell), {}
    if ARMS[cell.arm].rival == "pseudo_labels":
        before = {"first_half": label_images(cell, place, run_apart)}
    trained = before | train(cell, place, model)
    parts, groups = judge(cell, place, model, trained.pop("folder"))
    measured = {
        **{key: value for key, value in asdict(cell).items() if key != "parts"},
        **asdict(ARMS[cell.arm]),
        "parts": parts,
        "groups": groups,
        **trained,
        "command": command,
    }
    if "test" in parts:
        measured["dice"] = parts["test"]["dice"]
    path = cell.result(place.results)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(measured, indent=1) + "\n")
    temporary.replace(path)


def run_apart(cell: Cell, place: Place) -> None:
    """`train_and_judge` in a process of its own, since nnU-Net takes its folders from the environment once."""
    subprocess.run(task_of(cell, place).command, check=True)


def build_cell(cell: Cell, place: Place, model: Path) -> Any:
    """The trainer of a cell, with its results in the folder `model`."""
    arm = ARMS[cell.arm]
    settings = dict(arm.settings)
    if arm.unlabelled:
        settings["unlabelled"] = settings.get("unlabelled", {}) | {"images": [str(images_of(cell, place))]}
    planned_for, iterations, dataset = cell.planned_for, cell.iterations, place.dataset(cell)
    if arm.rival == "pseudo_labels":
        planned_for, iterations, dataset = planned_for or cell.budget, iterations // 2, dataset_of(cell, place)
    trainer = build_trainer(
        arm.trainer,
        dataset,
        cell.dataset,
        cell.configuration,
        model,
        length=(EPOCHS, iterations // EPOCHS, 1, EPOCHS_BETWEEN_CHECKPOINTS),
        seed=cell.seed,
        device=place.device,
        settings=settings,
        batch_factor=arm.batch_factor,
        rate_factor=arm.rate_factor,
        planned_as=place.dataset(replace(cell, budget=planned_for)) if planned_for else None,
    )
    if arm.averaged:
        deliver_average(trainer, cell.iterations)
    if arm.chosen_by:
        choose_pairs(trainer, arm.chosen_by, cell, place)
    if arm.rival == "mean_teacher":
        learn_to_agree(trainer, [images_of(cell, place)], cell.iterations, cell.seed)
    return trainer


def train(cell: Cell, place: Place, model: Path) -> dict[str, Any]:
    """Trains, unless a finished training by the same code with the same settings is there; what was measured."""
    trainer = build_cell(cell, place, model)
    plan = trainer.configuration_manager
    made_of = {
        "folder": trainer.output_folder,
        "batch_size": int(plan.batch_size),
        "patch_size": [int(extent) for extent in plan.patch_size],
        "resolved_settings": trainer.genseg.to_json() if hasattr(trainer, "genseg") else None,
        **provenance(place.device),
    }
    record = model / "trained.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    changed = str(made_of["commit"]).endswith("-changed")  # by code that no commit holds
    if changed or any(known.get(key) != value for key, value in made_of.items()):
        shutil.rmtree(trainer.output_folder, ignore_errors=True)
        Path(trainer.output_folder).mkdir(parents=True)
        known = measured_training(trainer, place) | made_of
        record.write_text(json.dumps(known))
    return known


def judge(cell: Cell, place: Place, model: Path, folder: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Predicts the cell's parts by the checkpoint in the fold folder; what was measured, and the group of each case."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device(place.device)
    predictor = nnUNetPredictor(use_mirroring=False, device=device, perform_everything_on_device=place.device == "cuda")
    predictor.initialize_from_trained_model_folder(str(Path(folder).parent), ("all",), "checkpoint_final.pth")
    parts: dict[str, Any] = {}
    groups: dict[str, str] = {}
    for part in cell.parts:
        images, labels = part_of(cell, part, place.raw, place.work / cell.scale / "parts")
        predictions = model / part
        shutil.rmtree(predictions, ignore_errors=True)
        predictions.mkdir()
        predictor.predict_from_files_sequential(str(images), str(predictions), save_probabilities=False)
        parts[part] = judged(predictor, predictions, labels)
        recorded = labels.with_name(GROUPS)
        groups |= json.loads(recorded.read_text()) if recorded.is_file() else {}
    for picture in ("genseg_samples.png", "genseg_progress.png"):
        source = Path(folder) / picture
        if source.is_file():
            shutil.copy(source, model / picture)
    return parts, groups


def measured_training(trainer: Any, place: Place) -> dict[str, Any]:
    """Trains; returns wall and CPU seconds and the most memory in use, on a GPU the allocated memory."""
    import torch

    without_pictures(trainer)
    started, busy = time.monotonic(), time.process_time()
    trainer.run_training()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if place.device == "cuda" else memory,
        "progress": trainer.recorder.progress.rows if hasattr(trainer, "recorder") else [],
    }


def judged(predictor: Any, predictions: Path, labels: Path) -> dict[str, Any]:
    """nnU-Net's own metrics of every case, and their mean over the foreground, as `nnUNetv2_evaluate_folder` takes it.

    HD95, mm, where the spacing is real and neither mask is empty.
    """
    import numpy as np
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    manager = predictor.plans_manager.get_label_manager(predictor.dataset_json)
    reader = predictor.plans_manager.image_reader_writer_class()
    regions = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    metrics = ["Dice", "IoU"] if isinstance(reader, NaturalImage2DIO) else ["Dice", "IoU", "HD95"]
    cases: dict[str, Any] = {}
    for reference in sorted(labels.iterdir()):
        found = compute_metrics(str(reference), str(predictions / reference.name), reader, regions, manager.ignore_label)
        if "HD95" in metrics:
            (true, properties), (drawn, _) = reader.read_seg(str(reference)), reader.read_seg(str(predictions / reference.name))
            for region, values in found["metrics"].items():
                masks = (np.isin(labelled[0], region) for labelled in (true, drawn))
                values["HD95"] = hausdorff95(*masks, properties["spacing"])
        cases[reference.name.split(".")[0]] = {
            str(label): {metric: None if np.isnan(values[metric]) else round(float(values[metric]), 5) for metric in metrics}
            for label, values in found["metrics"].items()
        }

    def mean(metric: str, label: str) -> float | None:
        values = [case[label][metric] for case in cases.values() if case[label][metric] is not None]
        return float(np.mean(values)) if values else None

    classes = {str(label): {metric.lower(): mean(metric, str(label)) for metric in metrics} for label in regions}
    overall = {}
    for metric in metrics:
        means = [values[metric.lower()] for values in classes.values()]
        overall[metric.lower()] = None if None in means else float(np.mean(means))
    return {**overall, "classes": classes, "cases": cases}


def wanted(names: list[str]) -> Iterator[Cell]:
    """The cells of some grids, each once."""
    seen = set()
    for name in names:
        for cell in GRIDS[name]:
            if cell not in seen:
                seen.add(cell)
                yield cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="*", metavar="GRID", help=", ".join(GRIDS))
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--engine", default="local", help="where cells run, as in `genseg sweep`: local, ray or slurm")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    place = Place(chosen.raw.resolve(), chosen.work.resolve(), chosen.device, chosen.results.resolve())
    if chosen.cell:
        cell = Cell.from_json(chosen.cell)
        train_and_judge(cell, place, f"python benchmarks/gain.py --device {place.device} --cell '{chosen.cell}'")
        return
    if not chosen.grids or any(name not in GRIDS for name in chosen.grids):
        parser.error(f"name one or more of the grids {', '.join(GRIDS)}; found {' '.join(chosen.grids) or 'none'}")
    todo = [cell for cell in wanted(chosen.grids) if not cell.result(place.results).is_file()]
    print(f"{len(todo)} cells to run", flush=True)
    for cell in todo:
        prepare(cell, place)
    run_cells(todo, place, chosen.jobs, chosen.engine)


if __name__ == "__main__":
    main()
