"""What GenSeg adds before the first iteration: results/startup.json.

    python benchmarks/startup.py --raw PATH/TO/nnUNet_raw --work FOLDER [--turns 5]

CPU seconds of processes of their own, stock nnU-Net and GenSeg in turns: the import, nnU-Net's search for the trainer by its
name, and everything up to the first batch of the hippocampus' 2D and 3D plans. Loading processes are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nnunetv2_genseg
from cells import BUDGET, Cell
from iterations import KINDS, Subject, spread, trainer_of
from preparing import Place, prepare
from provenance import provenance
from speed import PLANS

RESULT = Path(__file__).parent / "results" / "startup.json"
TIMED = "{}\nimport time\nprint(time.process_time())"
IMPORT = {"stock": "import nnunetv2.training.nnUNetTrainer.nnUNetTrainer", "genseg": "import nnunetv2_genseg.trainers"}
FIND = """
from contextlib import suppress
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
with suppress(RuntimeError):
    recursive_find_trainer_class_by_name("{}")
"""
SEARCHED = {"stock": FIND.format("NoSuchTrainer"), "genseg": FIND.format("GenSegTrainer")}
"""nnU-Net looks through all of its own modules before it looks elsewhere; a trainer that it does not have makes it do so."""
FOLDER = Path(nnunetv2_genseg.__file__).parent / "discovery"


def seconds(command: list[str], kind: str) -> float:
    """CPU seconds that a process prints in its last line."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"}
    if kind == "genseg":
        environment["nnUNet_extTrainer"] = str(FOLDER)
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return float(done.stdout.splitlines()[-1])


def compared(commands: dict[str, list[str]], turns: int) -> dict[str, Any]:
    """Of stock and GenSeg in turns, and what GenSeg adds."""
    for kind, command in commands.items():
        seconds(command, kind)  # files are in memory from now on
    found = [{kind: seconds(command, kind) for kind, command in commands.items()} for _ in range(turns)]
    added = statistics.median(one["genseg"] - one["stock"] for one in found)
    return {"added": round(added, 3), **{kind: spread([one[kind] for one in found]) for kind in KINDS}}


def main() -> None:
    """Measures all, or, as a process of its own, one start."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.start:
        import time

        kind, subject = chosen.start
        next(trainer_of(kind, Subject(**json.loads(subject))).dataloader_train)
        print(time.process_time())
        return
    if chosen.raw is None or chosen.work is None:
        parser.error("--raw and --work are needed")
    place = Place(chosen.raw.resolve(), chosen.work.resolve(), "cpu")
    result = {
        "import": compared({kind: ["-c", TIMED.format(code)] for kind, code in IMPORT.items()}, chosen.turns),
        "search": compared({kind: ["-c", TIMED.format(code)] for kind, code in SEARCHED.items()}, chosen.turns),
    }
    for number, configuration in PLANS:
        cell = Cell(number, BUDGET[number], configuration, "genseg", 0, 0, ())
        prepare(cell, place)
        model = place.work / "models" / f"startup_{number}_{configuration}"
        subject = json.dumps(asdict(Subject(str(place.dataset(cell)), number, configuration, "cpu", str(model))))
        result[f"start {configuration}"] = compared({kind: [__file__, "--start", kind, subject] for kind in KINDS}, chosen.turns)
    command = f"python benchmarks/startup.py --raw PATH/TO/nnUNet_raw --work FOLDER --turns {chosen.turns}"
    RESULT.write_text(
        json.dumps({"command": command, "turns": chosen.turns, **result, **provenance("cpu")}, indent=1) + "\n", encoding="utf-8"
    )
    for name, found in result.items():
        print(name, found)


if __name__ == "__main__":
    main()
