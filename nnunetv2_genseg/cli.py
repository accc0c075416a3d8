"""The command `genseg`: one function for each sub-command, and which errors become one message."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.environment import EXTERNAL_TRAINERS, external_trainers

DEFAULT_TRAINER = "GenSegTrainer"
DEMO_FOLDER = "demo_output"
FOLDERS = ("nnUNet_preprocessed", "nnUNet_results")
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


def train(arguments: Sequence[str]) -> None:
    """nnU-Net's own `nnUNetv2_train`, with this package's trainers found and `-tr GenSegTrainer` unless another is named.

    Raises:
        GenSegError: the dataset was not preprocessed, or something else that a user can correct.
    """
    parser = argparse.ArgumentParser(prog="genseg train", add_help=False, argument_default="")
    parser.add_argument("positional", nargs="*")
    for option in ("-tr", "-p", "-pretrained_weights", "-num_gpus", "-device"):
        parser.add_argument(option)
    known, _ = parser.parse_known_intermixed_args(arguments)
    if len(known.positional) >= 3:  # nnU-Net says itself what is missing
        _require_fold(known.positional[2])
        _require_set(*FOLDERS)
        _require_device(known.device or "cuda", "-device cpu")
    os.environ[EXTERNAL_TRAINERS] = external_trainers()
    from nnunetv2.run.run_training import run_training_entry

    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    sys.argv = ["nnUNetv2_train", *arguments, *([] if known.tr else ["-tr", DEFAULT_TRAINER])]
    with ending_on_sigterm(), _preprocessed(known.positional[0] if known.positional else ""):
        run_training_entry()


def pretrain(arguments: Sequence[str]) -> None:
    """Trains a generator alone, for trainings to start from: set generator.pretrained to OUTPUT_FOLDER.

    Raises:
        GenSegError: the dataset was not preprocessed, or something else that a user can correct.
    """
    parser = argparse.ArgumentParser(prog="genseg pretrain", description=_summary(pretrain))
    parser.add_argument("dataset", help="name or number of a dataset that nnU-Net has planned and preprocessed")
    parser.add_argument("configuration", help="nnU-Net's, such as 2d")
    parser.add_argument("output", metavar="OUTPUT_FOLDER", type=Path, help="where the generator is written")
    parser.add_argument("-tr", default=DEFAULT_TRAINER, help="trainer whose preset is used (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="name of the plans (default: %(default)s)")
    parser.add_argument("-f", default="all", help="fold whose training cases are used (default: all cases)")
    parser.add_argument("--iterations", type=int, default=10_000, help="steps of the generator (default: %(default)s)")
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=(),
        metavar="FOLDER",
        help="raw images named CASE_0000.EXT with the dataset's channels, used without labels; preprocessed into a temporary "
        "folder, see TMPDIR",
    )
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="where to train (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    _require_fold(chosen.f)
    _require_set(FOLDERS[0])
    _require_device(chosen.device, "-device cpu")
    os.environ[EXTERNAL_TRAINERS] = external_trainers()
    from nnunetv2_genseg.trainers import pretraining
    from nnunetv2_genseg.trainers.guarding import ending_on_sigterm

    settings = pretraining.Pretraining(
        dataset=chosen.dataset,
        configuration=chosen.configuration,
        fold=chosen.f,
        output=chosen.output,
        trainer=chosen.tr,
        plans=chosen.p,
        iterations=chosen.iterations,
        images=tuple(chosen.images),
        device=chosen.device,
    )
    # after SIGTERM the temporary folder of preprocessed images is removed, as after an error
    with ending_on_sigterm(), _preprocessed(chosen.dataset):
        pretraining.pretrain(settings)


def _require_fold(fold: str) -> None:
    if fold != "all" and not fold.isdigit():
        raise GenSegError(f"fold must be `all` or a whole number from 0 on, found {fold!r}")


def _require_set(*folders: str) -> None:
    for name in folders:
        if not os.environ.get(name):
            raise GenSegError(f"{name} is not set; run: export {name}=FOLDER")


@contextmanager
def _preprocessed(dataset: str) -> Iterator[None]:
    """Names the file of a preprocessed dataset, itself given by name or number, that is missing or corrupt."""
    try:
        yield
    except FileNotFoundError as error:
        if not str(error.filename).startswith(os.environ["nnUNet_preprocessed"]):
            raise
        raise GenSegError(
            f"{error.filename} is missing; first run: nnUNetv2_plan_and_preprocess -d DATASET --verify_dataset_integrity"
        ) from error
    except json.JSONDecodeError as error:
        faulty = _not_json(dataset)
        raise GenSegError(f"{faulty} is not valid JSON ({error}); run nnUNetv2_plan_and_preprocess again") from error


def _summary(command: Callable[..., None]) -> str:
    return str(command.__doc__).splitlines()[0]


def _require_device(device: str, remedy: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise GenSegError(f"no CUDA device was found; use {remedy}")


def _not_json(dataset: str) -> str:
    """The files of a preprocessed dataset, named or numbered, that are not JSON."""
    name = dataset if dataset.startswith("Dataset") else f"Dataset{int(dataset):03d}_*"
    faulty = []
    for path in sorted(Path(os.environ["nnUNet_preprocessed"]).glob(f"{name}/*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            faulty.append(str(path))
    return ", ".join(faulty) or f"a file of {dataset}"


def demo(arguments: Sequence[str]) -> None:
    """Trains, predicts and evaluates once on generated phantoms, stock nnU-Net beside GenSeg."""
    from nnunetv2_genseg.demo import DemoSettings, run_demo

    parser = argparse.ArgumentParser(prog="genseg demo", description=_summary(demo))
    parser.add_argument("--folder", type=Path, default=Path(DEMO_FOLDER), help="where everything is written")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    parser.add_argument("--full", action="store_true", help="train ten times longer")
    chosen = parser.parse_args(arguments)
    _require_device(chosen.device, "--device cpu")
    run_demo(DemoSettings(folder=chosen.folder, device=chosen.device, iterations=100 if chosen.full else 10))


def generators() -> None:
    """Prints the registered generator families, one name per line."""
    from nnunetv2_genseg.generators import GENERATORS

    print("\n".join(GENERATORS.names()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. An error that the user can correct becomes one message and exit status 2; others keep their traceback."""
    parser = argparse.ArgumentParser(prog="genseg", description="GenSeg for nnU-Net v2")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help="print the export line that makes nnU-Net find the trainers")
    commands.add_parser("train", help="nnUNetv2_train with GenSegTrainer", add_help=False)
    commands.add_parser("pretrain", help="train a generator alone, for trainings to start from", add_help=False)
    commands.add_parser("demo", help="train and evaluate on generated phantoms, stock nnU-Net beside GenSeg", add_help=False)
    commands.add_parser("generators", help="list the generator families, one name per line")
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.command in ("env", "generators") and rest:
        parser.error(f"genseg {chosen.command} takes no arguments, found {' '.join(rest)}")
    try:
        if chosen.command == "env":
            env()
        elif chosen.command == "generators":
            generators()
        elif chosen.command == "train":
            train(rest)
        elif chosen.command == "pretrain":
            pretrain(rest)
        else:
            demo(rest)
    except Exception as error:
        if not _is_the_users(error, rest):
            raise
        print(f"genseg: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _is_the_users(error: Exception, arguments: Sequence[str]) -> bool:
    """Whether the user can correct an error: one of this package's own, one about a path in a folder that an argument or one of
    nnU-Net's variables names, or one that a check of nnU-Net raised itself."""
    if isinstance(error, GenSegError):
        return True
    if isinstance(error, OF_PATHS):
        named = [*arguments, DEMO_FOLDER, *(value for name, value in os.environ.items() if name.startswith("nnUNet_"))]
        return any(Path(os.path.abspath(str(error.filename))).is_relative_to(os.path.abspath(folder)) for folder in named)
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    where = raised.tb_frame.f_globals.get("__name__") if raised is not None else None
    return isinstance(error, (AssertionError, NotImplementedError, RuntimeError, ValueError)) and where in NNUNETS_CHECKS


if __name__ == "__main__":
    main()
