"""What limits 1, 8, 64 and 1,000 GPUs, computed from figures of one machine: results/scaling.json.

    python benchmarks/scaling.py FOLD [FOLD ...]

FOLD is the fold folder of a finished GenSeg training of the plans that `speed.py` has timed (hippocampus, 2d and 3d_fullres).
From it come the number of weights, the size of a checkpoint with its generator state, and the time that writing as many bytes
takes. Times of iterations are from results/speed.json, and what the sweep adds from results/sweep.json. Everything for more
than one GPU is computed, nothing of it was run. `faster` is how many times as fast as that CPU a GPU is taken to be.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from provenance import provenance

FOLDER = Path(__file__).parent / "results"
RESULT = FOLDER / "scaling.json"
GPUS = (1, 8, 64, 1000)
FASTER = (1, 100)
ITERATIONS, EPOCHS, EPOCHS_BETWEEN = 250, 1000, 50
"""nnU-Net's: iterations an epoch, epochs of a training and between two checkpoints."""
BYTES = 4
"""Of a gradient."""


def measured(fold: Path) -> dict[str, Any]:
    """Weights and bytes of a training, and the seconds that writing its checkpoint takes, flushed to the disk."""
    checkpoint = fold / "checkpoint_final.pth"
    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["network_weights"]
    siblings = list(fold.glob("checkpoint_final.genseg-*.pt"))
    size = sum(path.stat().st_size for path in [checkpoint, *siblings])
    content = os.urandom(size)
    with tempfile.NamedTemporaryFile(dir=fold) as file:
        started = time.monotonic()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.monotonic() - started
    configuration = fold.parent.name.split("__")[2]
    distinct = {value.data_ptr(): value.numel() for value in weights.values()}  # decoder and encoder name some weights twice
    return {
        "configuration": configuration,
        "parameters": sum(distinct.values()),
        "checkpoint_bytes": size,
        "write_seconds": round(seconds, 3),
    }


def timed(configuration: str) -> dict[str, Any]:
    """Batch, and seconds of an iteration and of loading its batch, from results/speed.json."""
    plans = json.loads((FOLDER / "speed.json").read_text())["plans"]
    plan = next(plan for plan in plans if plan["configuration"] == configuration)
    stock, step = plan["stock_seconds"]["median"], plan["stock_step_seconds"]["median"]
    return {
        "batch_size": plan["batch_size"],
        "iteration_seconds": round(stock * plan["iteration_ratio"], 4),
        "loading_seconds": round(stock - step, 4),
    }


def computed(subject: dict[str, Any], gpus: int, faster: float, overhead: float) -> dict[str, Any]:
    """Loads of a machine room in which every GPU trains, and of one training on all its GPUs."""
    iteration = subject["iteration_seconds"] / faster
    between = EPOCHS_BETWEEN * ITERATIONS * iteration
    training = EPOCHS * ITERATIONS * iteration
    used = min(gpus, subject["batch_size"])
    return {
        "gpus": gpus,
        "faster": faster,
        "training_hours": round(training / 3600, 2),
        "loading_cores": round(gpus * subject["loading_seconds"] / iteration, 2),
        "checkpoint_megabytes_per_second": round(gpus * subject["checkpoint_bytes"] / between / 1e6, 3),
        "sweep_share": round(gpus * overhead / training, 7),
        "one_training_gpus": used,
        "one_training_gradient_megabytes_per_second": round(
            2 * (used - 1) / used * BYTES * subject["parameters"] / (iteration / used) / 1e6, 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path, metavar="FOLD")
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    overhead = json.loads((FOLDER / "sweep.json").read_text())["engines"]["ray"]["overhead_seconds"]
    subjects = [found | timed(found["configuration"]) for found in map(measured, chosen.folds)]
    rows = [
        {"configuration": subject["configuration"], **computed(subject, gpus, faster, overhead)}
        for subject in subjects
        for faster in FASTER
        for gpus in GPUS
    ]
    content = {"measured": subjects, "sweep_overhead_seconds": overhead, "computed": rows}
    content |= {"command": "python benchmarks/scaling.py FOLD [FOLD ...]", **provenance("cpu")}
    chosen.out.write_text(json.dumps(content, indent=1) + "\n")
    for row in subjects + rows:
        print(row)


if __name__ == "__main__":
    main()
