"""Finds the sub-command, and decides which errors become one message."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2_genseg.cli import demo, generate, pretrain, preview, quality, report, review, sweep, train
from nnunetv2_genseg.cli.checks import PREPROCESSED, RAW, RESULTS
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, SETTINGS, external_trainers
from nnunetv2_genseg.config.errors import full_disks_told

OF_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)
"""Errors that a user can correct if they are about a path in a folder that the user named."""
NNUNETS_CHECKS = (
    "nnunetv2.paths",
    "nnunetv2.run.load_pretrained_weights",
    "nnunetv2.run.run_training",
    "nnunetv2.utilities.dataset_name_id_conversion",
    "nnunetv2.utilities.find_objects",
    "nnunetv2.utilities.label_handling.label_handling",
    "nnunetv2.utilities.plans_handling.plans_handler",
)
"""nnU-Net's modules that check what a user gives, by AssertionError, RuntimeError or ValueError."""


def env() -> None:
    """Prints the line that makes nnU-Net find the trainers: `eval "$(genseg env)"`."""
    print(f"export {EXTERNAL_TRAINERS}={shlex.quote(external_trainers())}")


def generators() -> None:
    """Prints the registered generator families, one name per line."""
    from nnunetv2_genseg.generators import GENERATORS

    print("\n".join(GENERATORS.names()))


WITH_OPTIONS = {
    "train": train,
    "sweep": sweep,
    "preview": preview,
    "pretrain": pretrain,
    "generate": generate,
    "quality": quality,
    "report": report,
    "review": review,
    "demo": demo,
}
"""Sub-commands that are a module each."""
WITHOUT_OPTIONS: dict[str, Callable[[], None]] = {"env": env, "generators": generators}


def parser() -> argparse.ArgumentParser:
    """The sub-commands."""
    whole = argparse.ArgumentParser(prog="genseg", description="GenSeg for nnU-Net v2", allow_abbrev=False)
    commands = whole.add_subparsers(dest="command", required=True)
    for name, module in WITH_OPTIONS.items():
        commands.add_parser(name, help=module.parser().description, add_help=False)
    for name, function in WITHOUT_OPTIONS.items():
        commands.add_parser(name, help=str(function.__doc__).splitlines()[0])
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. An error that the user can correct becomes one message and exit status 2; others keep their traceback."""
    whole = parser()
    chosen, rest = whole.parse_known_args(arguments)
    if chosen.command in WITHOUT_OPTIONS and rest:
        whole.error(f"genseg {chosen.command} takes no arguments, found {' '.join(rest)}")
    try:
        if chosen.command in WITHOUT_OPTIONS:
            WITHOUT_OPTIONS[chosen.command]()
        else:
            with full_disks_told():
                WITH_OPTIONS[chosen.command].run(rest)
    except Exception as error:
        if not _is_the_users(error, rest):
            raise
        print(f"genseg: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_the_users(error: Exception, arguments: Sequence[str]) -> bool:
    """Whether the user can correct an error: one of this package's own, one about a path in a folder that an argument or one of
    nnU-Net's three variables names, or about the settings file, or one that a check of nnU-Net raised itself."""
    if isinstance(error, GenSegError):
        return True
    if isinstance(error, OF_PATHS):
        variables = (os.environ.get(name) for name in (RAW, PREPROCESSED, RESULTS, SETTINGS))
        named = [*arguments, demo.FOLDER, preview.FOLDER, *variables]
        path = None if error.filename is None else Path(os.path.abspath(str(error.filename)))
        return path is not None and any(path.is_relative_to(os.path.abspath(folder)) for folder in named if folder)
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    where = raised.tb_frame.f_globals.get("__name__") if raised is not None else None
    return isinstance(error, (AssertionError, NotImplementedError, RuntimeError, ValueError)) and where in NNUNETS_CHECKS
