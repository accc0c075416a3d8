"""Time and memory of a training iteration, stock nnU-Net and GenSeg side by side: results/speed.json.

    python benchmarks/speed.py --raw PATH/TO/nnUNet_raw --work FOLDER [--dataset 102] [--device cpu]

Measures the plans `2d` and `3d_fullres` of the hippocampus (N = 10), or with `--dataset` the 2D plan of another dataset. In one
process a stock trainer and a GenSeg trainer take turns: a block of stock iterations, then a block in each stage of GenSeg's
schedule. On the CPU one thread, CPU time, and loading and augmentation happen in the process; on a GPU wall time, and batches are
loaded before. Memory is that of processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import BUDGET, Cell
from iterations import KINDS, Subject, memory, times
from preparing import Place, prepare
from provenance import provenance

RESULT = Path(__file__).parent / "results" / "speed.json"
FIGURES = (
    "iteration_ratio",
    "overhead_ratio",
    "step_ratio",
    "memory_ratio",
    "feedback_iterations",
    "host_syncs",
    "feedback_host_syncs",
)
PLANS = (("104", "2d"), ("104", "3d_fullres"))


def measured(subject: Subject) -> dict[str, Any]:
    """Times and memory, each in a process of its own."""
    given = json.dumps(asdict(subject))
    found = {}
    for part in ("times", *KINDS):
        command = [sys.executable, __file__, "--part", part, "--subject", given]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[part] = json.loads(done.stdout.splitlines()[-1])
    return {
        "dataset": subject.number,
        "configuration": subject.configuration,
        **found["times"],
        "memory_ratio": round(found["genseg"] / found["stock"], 3),
        "memory_bytes": {kind: found[kind] for kind in KINDS},
    }


def show(plan: dict[str, Any]) -> None:
    """Prints a plan's figures side by side."""
    print(f"\n{plan['dataset']} {plan['configuration']}, patch {plan['patch_size']}, batch {plan['batch_size']}")
    rows = {"stock": plan["stock_seconds"], **plan["stage_seconds"]}
    for name, values in rows.items():
        median, least, most = (1000 * values[key] for key in ("median", "least", "most"))
        print(f"  {name:20} {median:8.1f} ms ({least:.1f} to {most:.1f}) {plan['stage_ratios'].get(name, 1.0):6.2f}")
    for key in FIGURES:
        print(f"  {key:20} {plan[key]}", flush=True)


def record(plans: list[dict[str, Any]], path: Path, device: str, command: str) -> None:
    """Writes the result; at its top level the largest figures of all plans, and what `feedback.py` found."""
    content = {key: max(plan[key] for plan in plans) for key in FIGURES}
    told = path.with_name("feedback.json")
    if told.is_file():
        content["feedback_correlation"] = json.loads(told.read_text())["feedback_correlation"]
    content |= {"device": device, "command": command, **provenance(device), "plans": plans}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Measures all plans, or, as a process of its own, one part of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--dataset", choices=BUDGET, help="the 2D plan of this dataset instead")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, default=5, help="of stock and GenSeg, in every stage")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--part", choices=("times", *KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        subject = Subject(**json.loads(chosen.subject))
        print(json.dumps(times(subject) if chosen.part == "times" else memory(chosen.part, subject)))
        return
    if chosen.raw is None or chosen.work is None:
        parser.error("--raw and --work are needed")
    place = Place(chosen.raw.resolve(), chosen.work.resolve(), chosen.device)
    plans = []
    for number, configuration in ((chosen.dataset, "2d"),) if chosen.dataset else PLANS:
        cell = Cell(number, BUDGET[number], configuration, "genseg", 0, 0, ())
        prepare(cell, place)
        model = place.work / "models" / f"speed_{number}_{configuration}"
        subject = Subject(str(place.dataset(cell)), number, configuration, place.device, str(model), chosen.turns)
        plans.append(measured(subject))
        show(plans[-1])
    dataset = f" --dataset {chosen.dataset}" if chosen.dataset else ""
    command = f"python benchmarks/speed.py --raw PATH/TO/nnUNet_raw --work FOLDER --device {place.device}{dataset}"
    command += f" --turns {chosen.turns}"
    record(plans, chosen.out, place.device, command)


if __name__ == "__main__":
    main()
