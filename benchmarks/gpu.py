"""Everything that has to be seen on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py --prepare --data FOLDER --raw PATH/TO/nnUNet_raw    # before, on any machine
    python benchmarks/gpu.py --out FOLDER --data FOLDER [--seconds 480] [--jobs 6]

Steps, each a process with its own time limit and files NAME.txt (its output) and NAME.json or .xml in `--out`; after a failure
the next one begins:

- `tests`: `pytest -m gpu tests/gpu`
- `speed`: times and memory beside stock nnU-Net, at a patch of 512 x 512 and one of 128 x 128 x 128
- `gain`: trainings of the comparison in `gain.py`, side by side, as many as end in the time that is left

`summary.json` says how each step ended. This package need not be installed, its dependencies must be. `--device cpu --dry-run`
runs all steps at tiny size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from cells import COMPARED, Cell, comparison  # noqa: E402
from gain import run_cells  # noqa: E402
from iterations import Subject  # noqa: E402
from nnunetv2_genseg.phantoms import PhantomDataset  # noqa: E402
from preparing import Place, prepare  # noqa: E402
from provenance import provenance  # noqa: E402
from raw_datasets import budgeted_dataset, source_of  # noqa: E402
from speed import measured, record, show  # noqa: E402

CELLS = comparison(COMPARED, "102 104 101", seeds=range(1))
DRY_CELLS = [Cell("102", 4, "2d", "genseg", 0, 20, ("test",))]
DRY_TESTS = "(2d or gan) and not (vae or gmm or diffusion)"
SHARES = {"tests": 0.42, "speed": 0.28, "gain": 1.0}
"""Of the time that the whole command has; the last step gets what is left."""
TURNS = 2
LEFT = 8.0
"""Seconds at the end for the summary."""


@dataclass(frozen=True)
class Work:
    """What all steps are told."""

    out: Path
    data: Path
    device: str
    dry: bool
    jobs: int


@dataclass(frozen=True)
class SpeedCase:
    """A phantom with a patch of known size."""

    number: int
    configuration: str
    patch: tuple[int, ...]
    batch_size: int


SPEED_CASES = (SpeedCase(931, "2d", (512, 512), 12), SpeedCase(932, "3d_fullres", (128, 128, 128), 2))
DRY_SPEED_CASES = (SpeedCase(931, "2d", (32, 32), 2),)


def tests(work: Work) -> None:
    """Runs the tests that are marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    command += [f"--junitxml={work.out / 'tests.xml'}", *(["-k", DRY_TESTS] if work.dry else [])]
    os.environ["GENSEG_TEST_DEVICE"] = work.device
    os.chdir(ROOT)
    os.execv(command[0], command)


def speed(work: Work) -> None:
    """Writes speed.json anew after each patch size."""
    from phantom_plans import plan_phantom  # here, because importing nnU-Net takes seconds

    plans = []
    for case in DRY_SPEED_CASES if work.dry else SPEED_CASES:
        with tempfile.TemporaryDirectory() as folder:
            dims, extent = len(case.patch), max(case.patch)
            PhantomDataset(case.number, dims, training_cases=5, test_cases=1, extent=extent).write(Path(folder) / "raw")
            plan_phantom(Path(folder), case.number, case.configuration, case.patch, case.batch_size)
            effort = {"turns": 1, "most": 2} if work.dry else {"turns": TURNS}
            model = str(Path(folder) / "models")
            subject = Subject(folder, str(case.number), case.configuration, work.device, model, **effort)
            plans.append(measured(subject))
        show(plans[-1])
        record(plans, work.out / "speed.json", work.device, "python benchmarks/gpu.py (not compiled)")


def gain(work: Work) -> None:
    """Trains side by side; gain.json holds the cells that are finished."""
    results = work.data / "results"
    place = Place(work.data / "raw", work.data, work.device, results)
    cells = DRY_CELLS if work.dry else CELLS
    if work.dry:
        for cell in cells:
            prepare_dry_data(cell, place)
            prepare(cell, place)
    os.environ.update(nnUNet_n_proc_DA="1", nnUNet_compile="0", OMP_NUM_THREADS="1")

    def collect() -> None:
        found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
        (work.out / "gain.json").write_text(json.dumps(found, indent=1) + "\n")

    run_cells(cells, place, work.jobs, "local", collect)
    missing = [cell.name for cell in cells if not cell.result(results).is_file()]
    if missing:
        sys.exit(f"not finished: {', '.join(missing)}")


def prepare_dry_data(cell: Cell, place: Place) -> None:
    """A phantom in the place of the cell's dataset, planned."""
    from phantom_plans import plan_phantom, write_ranked

    number, folder = int(cell.dataset), place.dataset(cell)
    write_ranked(PhantomDataset(number, dims=2, training_cases=cell.budget, test_cases=1, extent=32), place.raw)
    budgeted_dataset(source_of(cell.dataset, place.raw), cell.budget, cell.scale, folder / "raw")
    plan_phantom(folder, number, cell.configuration)
    (folder / f"planned_{cell.configuration}").touch()


STEPS: dict[str, Callable[[Work], None]] = {"tests": tests, "speed": speed, "gain": gain}


def run_step(name: str, work: Work, limit: float) -> dict[str, Any]:
    """Runs a step in a process of its own and ends it, and what it started, at its limit, seconds."""
    command = [sys.executable, __file__, "--step", name, "--out", str(work.out), "--data", str(work.data)]
    command += ["--device", work.device, "--jobs", str(work.jobs), *(["--dry-run"] if work.dry else [])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    started, status = time.monotonic(), "ok"
    with open(work.out / f"{name}.txt", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"failed with exit status {code}"
        except subprocess.TimeoutExpired:
            status = "out of time"
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, sign)
                process.wait(3)
    return {"status": status, "seconds": round(time.monotonic() - started, 1), "limit": round(limit, 1)}


def run_all(work: Work, seconds: float, only: list[str]) -> bool:
    """Runs the steps and writes summary.json after each; whether all ended well."""
    end = time.monotonic() + seconds - LEFT
    steps: dict[str, Any] = {}
    for name in only:
        left = end - time.monotonic()
        limit = left if name == only[-1] else min(left, SHARES[name] * seconds)
        steps[name] = run_step(name, work, limit) if limit > 0 else {"status": "no time left"}
        print(f"{name}: {steps[name]}", flush=True)
        content = {"steps": steps, "command": "python benchmarks/gpu.py", **provenance(work.device, "alone")}
        (work.out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")
    return all(step["status"] == "ok" for step in steps.values())


def prepare_data(raw: Path, data: Path) -> None:
    """Plans and preprocesses what the trainings need, and removes the raw data again, which they do not."""
    place = Place(raw, data, "cpu")
    for cell in CELLS:
        prepare(cell, place)
        shutil.rmtree(place.dataset(cell) / "raw", ignore_errors=True)


def main() -> None:
    """Prepares, or runs all steps, or, as a process of its own, one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--data", type=Path, help="from --prepare; without it no trainings of the comparison")
    parser.add_argument("--raw", type=Path, help="nnU-Net's raw datasets, for --prepare")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=480.0, help="of the whole command")
    parser.add_argument("--jobs", type=int, default=6, help="trainings side by side")
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.prepare:
        if chosen.raw is None or chosen.data is None:
            parser.error("--prepare needs --raw and --data")
        prepare_data(chosen.raw.resolve(), chosen.data.resolve())
        return
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as empty:
        data = chosen.data.resolve() if chosen.data else Path(empty)
        work = Work(out, data, chosen.device, chosen.dry_run, chosen.jobs)
        if chosen.step:
            STEPS[chosen.step](work)
            return
        without = chosen.data is None and not chosen.dry_run
        steps = [name for name in chosen.steps if not (name == "gain" and without)]
        sys.exit(0 if run_all(work, chosen.seconds, steps) else 1)


if __name__ == "__main__":
    main()
