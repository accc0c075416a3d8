"""Time and memory of what is done with written pairs: results/pairs.json.

    python benchmarks/pairs.py --work FOLDER [-n 1000] DATASET CONFIGURATION FOLD [-tr TRAINER]

The fold is trained, and nnU-Net's three folders are in the environment. `genseg generate` writes pairs, `genseg quality` judges
them and `genseg report` makes a page of them, each in a process of its own with one CPU thread. The share of writing is that of
the time in which the files of pairs are written, of the time in which pairs are made. It is wall-clock time, for the disk's sake;
pairs are counted a second of CPU time, which other jobs do not change.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunetv2_genseg import cli
from nnunetv2_genseg.config.environment import LENGTH
from nnunetv2_genseg.trainers.pair_files import PairFiles
from provenance import provenance

RESULT = Path(__file__).parent / "results" / "pairs.json"


def timed(method: Callable[..., Any], calls: list[tuple[float, float]]) -> Callable[..., Any]:
    """The method, which adds to `calls` the seconds of each call: by the clock, and of the CPU."""

    def call(*arguments: Any) -> Any:
        started, busy = time.perf_counter(), time.process_time()
        try:
            return method(*arguments)
        finally:
            calls.append((time.perf_counter() - started, time.process_time() - busy))

    return call


def part(command: list[str]) -> None:
    """Runs a command of genseg in this process; prints its costs as JSON, in the last line."""
    whole: list[tuple[float, float]] = []
    files: list[tuple[float, float]] = []
    PairFiles.pair, PairFiles._files = timed(PairFiles.pair, whole), timed(PairFiles._files, files)  # type: ignore[method-assign]
    started = time.perf_counter()
    cli.main(command)
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    costs: dict[str, Any] = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_bytes": 1024 * used.ru_maxrss,
    }
    if whole:
        (making, busy), (writing, _) = (map(sum, zip(*calls, strict=True)) for calls in (whole, files))
        costs |= {"pairs_per_cpu_second": round(len(whole) / busy, 2), "share_of_writing": round(writing / making, 3)}
    print(json.dumps(costs))


def run(command: list[str]) -> dict[str, Any]:
    """The same in a process of its own."""
    environment = {LENGTH: "1,1,1,1,0"} | os.environ | {"OMP_NUM_THREADS": "1"}  # the length of a Short trainer matters not here
    whole = [sys.executable, __file__, "--part", *command]
    done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    costs: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(command[0], costs, flush=True)
    return costs


def main() -> None:
    """Writes, judges and shows pairs of one fold, and adds their costs to the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True, help="receives the pairs; a new folder")
    options.add_argument("-n", type=int, default=1000, help="pairs")
    options.add_argument("-tr", default="GenSegTrainer")
    options.add_argument("fold", nargs=3, metavar=("DATASET", "CONFIGURATION", "FOLD"))
    chosen = options.parse_args()
    if chosen.work.exists():
        options.error(f"{chosen.work} is there already; name a new folder, so that all pairs are drawn now")
    of_fold = [*chosen.fold, "-tr", chosen.tr, "-device", "cpu"]
    pairs, page = chosen.work / "pairs", chosen.work / "report.html"
    costs: dict[str, Any] = {"dataset": chosen.fold[0], "configuration": chosen.fold[1], "pairs": chosen.n}
    costs["generate"] = run(["generate", *of_fold, "-n", str(chosen.n), "-o", str(pairs)])
    costs["quality"] = run(["quality", *of_fold, str(pairs)])
    costs["report"] = run(["report", *of_fold, "--pairs", str(pairs), "-o", str(page)]) | {"bytes": page.stat().st_size}
    command = "python benchmarks/pairs.py " + " ".join(["--work", "FOLDER", "-n", str(chosen.n), *chosen.fold, "-tr", chosen.tr])
    there = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else []
    others = [row for row in there if (row["dataset"], row["configuration"]) != tuple(chosen.fold[:2])]
    result = [*others, {"command": command, **costs, **provenance("cpu")}]
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part(sys.argv[2:])
    else:
        main()
