"""`genseg sweep`: runs all trainings of a plan."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from nnunetv2_genseg.cli.checks import PREPROCESSED, RESULTS, require_device, require_set
from nnunetv2_genseg.cli.options import let_trainers_be_found

FOLDER = "genseg_sweep"


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg sweep",
        description="Runs every training of a plan, on this machine, Ray or SLURM. What is finished is not run again, what was "
        "killed goes on.",
        epilog="The exit status is 1 if a training failed.",
        allow_abbrev=False,
    )
    options.add_argument("plan", metavar="PLAN", type=Path, help="YAML file with datasets, configurations, folds and so on")
    return options


def run(arguments: Sequence[str]) -> None:
    """Trains.

    Raises:
        GenSegError: the plan is not valid, or something else that a user can correct.
        SystemExit: a training failed.
    """
    chosen = parser().parse_args(arguments)
    from nnunetv2_genseg.sweep.plan import read_plan

    plan = read_plan(chosen.plan)
    require_set(PREPROCESSED, RESULTS)
    if plan.engine == "local":
        require_device(plan.device, "device: cpu")
    let_trainers_be_found([])
    from nnunetv2_genseg.files.lock import alone_in
    from nnunetv2_genseg.sweep.engines import ENGINES, Resources
    from nnunetv2_genseg.sweep.report import Report
    from nnunetv2_genseg.sweep.running import State
    from nnunetv2_genseg.sweep.running import run as run_tasks
    from nnunetv2_genseg.sweep.trainings import Trainings
    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    factory, trainings = ENGINES[plan.engine], Trainings(plan)
    folder = Path(os.environ[RESULTS]).resolve() / FOLDER
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    report = Report(folder / f"{chosen.plan.stem}.json", {"plan": plan.model_dump(mode="json")})
    resources = Resources(plan.jobs, logs, plan.device == "cuda", plan.slurm)
    with ending_on_sigterm(), alone_in(folder), closing(factory(resources)) as engine:
        trainings.keep_settings()
        trainings.make_folds()
        with report.shown():
            records = run_tasks(trainings.tasks(), engine, plan.jobs, plan.attempts, logs, report.tell)
    print(f"The table is in {report.path}")
    if any(record.state is not State.DONE for record in records):
        raise SystemExit(1)
