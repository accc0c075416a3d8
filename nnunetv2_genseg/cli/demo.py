"""`genseg demo`: trains and tests on phantoms."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_genseg.cli.checks import require_device

FOLDER = "demo_output"


def parser() -> argparse.ArgumentParser:
    """All options."""
    options = argparse.ArgumentParser(
        prog="genseg demo",
        description="Trains, predicts and evaluates once on generated phantoms, stock nnU-Net beside GenSeg.",
        allow_abbrev=False,
    )
    options.add_argument("--folder", type=Path, default=Path(FOLDER), help="where everything is written")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    options.add_argument("--full", action="store_true", help="train ten times longer")
    return options


def run(arguments: Sequence[str]) -> None:
    """Runs the demo."""
    from nnunetv2_genseg.demo import DemoSettings, run_demo

    chosen = parser().parse_args(arguments)
    require_device(chosen.device, "--device cpu")
    run_demo(DemoSettings(folder=chosen.folder, device=chosen.device, iterations=100 if chosen.full else 10))
