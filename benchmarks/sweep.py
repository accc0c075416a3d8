"""What `genseg sweep` itself costs, by commands that do nothing: results/sweep.json.

    python benchmarks/sweep.py [--engines local ray slurm]

For each engine: seconds that a task takes beyond its command, when tasks follow one another; and seconds from the SIGKILL of what
runs a command (the command itself, Ray's worker, submitit's process) to the moment when the sweep knows. For `local` 200 tasks on
eight workers with twenty commands killed, too. `slurm` is submitit's executor for one machine: SLURM's own queue comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from nnunetv2_genseg.sweep.engines import ENGINES, Engine, Resources
from nnunetv2_genseg.sweep.running import Record, State, run
from nnunetv2_genseg.sweep.task import Task
from provenance import provenance

RESULT = Path(__file__).parent / "results" / "sweep.json"
TASKS, REPEATS = 20, 3
MANY, WORKERS, KILLS = 200, 8, 20


def shell(folder: Path, name: str, script: str) -> Task:
    """A task that is done once its script has left a file of its name."""
    return Task(name, ("/bin/sh", "-c", script), folder, products=(folder / name,))


def quiet(records: Sequence[Record]) -> None:
    """Nothing is shown."""


def overhead(engine: Engine, folder: Path) -> float:
    """Seconds a task, one after another, of commands that take milliseconds."""
    run([shell(folder, "first", ": > first")], engine, 1, 1, folder, quiet)  # Ray starts its first worker
    started = time.monotonic()
    run([shell(folder, f"o{k}", f": > o{k}") for k in range(TASKS)], engine, 1, 1, folder, quiet)
    return (time.monotonic() - started) / TASKS


def notice(engine: Engine, kind: str, folder: Path, name: str) -> float:
    """Seconds from a kill to the end of the attempt."""
    killed: list[float] = []
    script = "echo $$" if kind == "local" else "echo $PPID"

    def kill() -> None:
        path = folder / f"{name}.pid"
        while not (path.is_file() and path.read_text()):
            time.sleep(0.02)
        killed.append(time.monotonic())
        os.kill(int(path.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run([shell(folder, name, f"{script} > {name}.pid; exec sleep 60")], engine, 1, 1, folder, quiet)
    ended = time.monotonic()
    killer.join()
    return ended - killed[0]


def survive(folder: Path) -> dict[str, Any]:
    """Many tasks on several workers, some commands killed. A product is a hard link, which cannot be made twice."""
    (folder / "seed").touch()
    tasks = [shell(folder, f"t{k:03d}", f"sleep 0.2; ln seed t{k:03d} || echo t{k:03d} >> twice") for k in range(MANY)]
    stop, killed = threading.Event(), []

    def kill() -> None:
        rng = random.Random(0)
        while len(killed) < KILLS and not stop.wait(0.15):
            with suppress(OSError):  # a command has ended in between
                threads = Path("/proc/self/task").iterdir()
                started = [pid for thread in threads for pid in (thread / "children").read_text().split()]
                if running := [int(pid) for pid in started if b"ln seed" in Path(f"/proc/{pid}/cmdline").read_bytes()]:
                    os.kill(pid := rng.choice(running), signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with closing(ENGINES["local"](Resources(WORKERS, folder))) as engine:
        records = run(tasks, engine, WORKERS, KILLS, folder, quiet)
    stop.set()
    killer.join()
    twice = (folder / "twice").read_text().split() if (folder / "twice").exists() else []
    return {
        "tasks": MANY,
        "workers": WORKERS,
        "kills": len(killed),
        "done": sum(record.state is State.DONE for record in records),
        "done_twice": len(twice),
        "attempts": sum(record.attempts for record in records),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["local", "ray", "slurm"])
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    for kind in chosen.engines:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with closing(ENGINES[kind](Resources(1, folder, options={"cluster": "local"}))) as engine:
                seconds = overhead(engine, folder)
                noticed = statistics.median(notice(engine, kind, folder, f"n{k}") for k in range(REPEATS))
        found[kind] = {"overhead_seconds": round(seconds, 3), "notice_seconds": round(noticed, 3)}
        print(kind, found[kind], flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        survived = survive(Path(temporary))
    print(survived)
    content = {"engines": found, "kills": survived, "command": "python benchmarks/sweep.py", **provenance("cpu")}
    chosen.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
