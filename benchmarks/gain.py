"""Measures what synthetic pairs are worth: one grid of trainings on real data at small label budgets, one JSON a cell.

    python benchmarks/gain.py --raw PATH/TO/nnUNet_raw --work FOLDER GRID [GRID ...] [--jobs 2] [--device cpu]

A cell is (dataset, label budget, configuration, arm, seed, iterations). The first N training cases by the rank in `cases.csv`
make a raw dataset of their own, on which planning, training (fold `all`; GenSeg holds its feedback cases aside out of the same
N) and nothing else happen. Prediction and evaluation are nnU-Net's own, without test-time mirroring, on the part that the grid
names: `validation` is carved out of the training pool (ranks from 40 on) and is what choices are made by; `test` is for final
figures. A finished cell is never run twice, a killed one starts again.

Scales: `mini` for CPU, 2D images resampled to a longer side of 64 pixels, 3D images as they are; `full` for a GPU, everything
as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cells import ARMS, GRIDS, Cell
from raw_datasets import budgeted_dataset, part_of, source_of
from surface import hausdorff95

from nnunetv2_genseg.cli import external_trainers

RESULTS = Path(__file__).parent / "results" / "gain"
EPOCHS = 20
EPOCHS_BETWEEN_CHECKPOINTS = 10


@dataclass(frozen=True)
class Place:
    """Where things are on this machine."""

    raw: Path
    work: Path
    device: str

    def dataset(self, cell: Cell) -> Path:
        """Folder of the raw and the preprocessed dataset of a cell, shared by its arms and seeds."""
        return self.work / cell.scale / f"{cell.dataset}_{cell.budget}"


def prepare(cell: Cell, place: Place) -> None:
    """Makes and plans the dataset of a cell, and the images that it is judged on, unless they are there."""
    folder = place.dataset(cell)
    for part in cell.parts:
        part_of(cell, part, place.raw, place.work / cell.scale / "parts")
    done = folder / f"planned_{cell.configuration}"
    if done.exists():
        return
    budgeted_dataset(source_of(cell.dataset, place.raw), cell.budget, cell.scale, folder / "raw")
    options = ("-d", cell.dataset, "-c", cell.configuration, "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    run_nnunet(folder, "nnUNetv2_plan_and_preprocess", *options)
    done.touch()


def run_nnunet(folder: Path, program: str, *options: str) -> None:
    """One of nnU-Net's programs on the dataset below `folder`; what it prints is kept there."""
    command = [str(Path(sys.executable).with_name(program)), *options]
    with open(folder / f"{program}.txt", "a") as log:
        subprocess.run(command, env=os.environ | nnunet_folders(folder, folder), stdout=log, stderr=log, check=True)


def nnunet_folders(dataset: Path, model: Path) -> dict[str, str]:
    return {
        "nnUNet_raw": str(dataset / "raw"),
        "nnUNet_preprocessed": str(dataset / "preprocessed"),
        "nnUNet_results": str(model),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
    }


def run_cell(cell: Cell, place: Place) -> None:
    """Trains, predicts and evaluates in a process of its own, which is given one core of `jobs`."""
    log = place.work / "logs" / f"{cell.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__)), "--raw", str(place.raw), "--work", str(place.work)]
    with open(log, "w") as file:
        started = time.monotonic()
        code = subprocess.run(
            [*command, "--device", place.device, "--cell", json.dumps(asdict(cell))], stdout=file, stderr=file, check=False
        ).returncode
    outcome = f"exit status {code}, see {log}"
    if not code:
        result = json.loads(cell.result(RESULTS).read_text())
        outcome = ", ".join(f"{part} {values['dice']:.4f}" for part, values in result["parts"].items())
    print(f"{cell.name}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)


def train_and_judge(cell: Cell, place: Place, command: str) -> None:
    """The cell itself; everything heavy is imported here, where the environment is set."""
    dataset, model = place.dataset(cell), place.work / "models" / cell.training
    os.environ.update(nnunet_folders(dataset, model))
    os.environ["nnUNet_n_proc_DA"] = "0" if place.device == "cpu" else os.environ.get("nnUNet_n_proc_DA", "12")
    arm = ARMS[cell.arm]
    iterations = cell.iterations // EPOCHS
    os.environ["nnUNet_genseg_short"] = f"{EPOCHS},{iterations},1,{EPOCHS_BETWEEN_CHECKPOINTS},{cell.seed}"
    settings = arm.settings | {"seed": cell.seed}
    model.mkdir(parents=True, exist_ok=True)
    (model / "settings.json").write_text(json.dumps(settings))
    os.environ["nnUNet_genseg_config"] = str(model / "settings.json")
    if arm.trainer.startswith("nnUNet"):
        os.environ["nnUNet_extTrainer"] = external_trainers()  # GenSeg's checkpoints are predicted without it

    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

    import nnunetv2_genseg.trainers as trainers

    torch.set_num_threads(1 if place.device == "cpu" else torch.get_num_threads())
    random.seed(cell.seed)
    np.random.seed(cell.seed)
    name = convert_id_to_dataset_name(int(cell.dataset))
    preprocessed = dataset / "preprocessed" / name
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    plans["configurations"][cell.configuration]["batch_size"] *= arm.batch_factor
    trainer = getattr(trainers, arm.trainer)(
        plans=plans,
        configuration=cell.configuration,
        fold="all",
        dataset_json=json.loads((preprocessed / "dataset.json").read_text()),
        device=torch.device(place.device),
    )
    trainer.initial_lr *= arm.rate_factor
    trained = model / "trained.json"
    resolved = trainer.genseg.to_json() if isinstance(trainer, trainers.GenSegTrainer) else None
    if not trained.is_file() or json.loads(trained.read_text()).get("resolved_settings") != resolved:
        shutil.rmtree(trainer.output_folder, ignore_errors=True)
        trained.write_text(json.dumps(measured_training(trainer, place) | {"resolved_settings": resolved}))
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device(place.device), perform_everything_on_device=place.device == "cuda"
    )
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",), "checkpoint_final.pth")
    parts = {}
    for part in cell.parts:
        images, labels = part_of(cell, part, place.raw, place.work / cell.scale / "parts")
        predictions = model / part
        shutil.rmtree(predictions, ignore_errors=True)
        predictions.mkdir()
        predictor.predict_from_files_sequential(str(images), str(predictions), save_probabilities=False)
        parts[part] = judged(predictor, predictions, labels)
    for picture in ("genseg_samples.png", "genseg_progress.png"):
        source = Path(trainer.output_folder) / picture
        if source.is_file():
            shutil.copy(source, model / picture)
    measured = {
        **{key: value for key, value in asdict(cell).items() if key != "parts"},
        "trainer": arm.trainer,
        "settings": arm.settings,
        "batch_factor": arm.batch_factor,
        "rate_factor": arm.rate_factor,
        "batch_size": int(plans["configurations"][cell.configuration]["batch_size"]),
        "patch_size": [int(n) for n in plans["configurations"][cell.configuration]["patch_size"]],
        "parts": parts,
        **json.loads(trained.read_text()),
        "chosen": chosen_by_feedback(Path(trainer.output_folder) / "checkpoint_final.pth"),
        "command": command,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, device {place.device}; one CPU thread, other jobs beside",
        "versions": {package: version(package) for package in ("nnunetv2-genseg", "nnunetv2", "torch")},
    }
    if "test" in parts:
        measured["dice"] = parts["test"]["dice"]
    path = cell.result(RESULTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(measured, indent=1) + "\n")
    temporary.replace(path)


def measured_training(trainer: Any, place: Place) -> dict[str, Any]:
    """Trains; returns wall and CPU seconds and the most memory in use, on a GPU the allocated memory."""
    import torch

    trainer.logger.plot_progress_png = lambda folder: None  # nnU-Net's own picture costs a second an epoch
    started, busy = time.monotonic(), time.process_time()
    trainer.run_training()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if place.device == "cuda" else memory,
    }


def chosen_by_feedback(checkpoint_file: Path) -> dict[str, float]:
    """What the feedback had moved at the end of a training, by name; empty without feedback."""
    import torch

    from nnunetv2_genseg.checkpoint import sibling
    from nnunetv2_genseg.pictures.progress import CHOSEN

    state = sibling(checkpoint_file, EPOCHS)
    if not state.is_file():
        return {}
    epochs = torch.load(state, weights_only=True)["state"]["progress"]
    moved = [{name: round(row[name], 4) for name in CHOSEN if name in row} for row in epochs]
    return next(filter(None, reversed(moved)), {})


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
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    place = Place(chosen.raw.resolve(), chosen.work.resolve(), chosen.device)
    if chosen.cell:
        cell = Cell.from_json(chosen.cell)
        train_and_judge(cell, place, f"python benchmarks/gain.py --device {place.device} --cell '{chosen.cell}'")
        return
    if not chosen.grids or any(name not in GRIDS for name in chosen.grids):
        parser.error(f"name one or more of the grids {', '.join(GRIDS)}; found {' '.join(chosen.grids) or 'none'}")
    todo = [cell for cell in wanted(chosen.grids) if not cell.result(RESULTS).is_file()]
    print(f"{len(todo)} cells to run", flush=True)
    for cell in todo:
        prepare(cell, place)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(lambda cell: run_cell(cell, place), todo))


if __name__ == "__main__":
    main()
