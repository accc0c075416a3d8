"""What the sub-commands check before they start, so that a mistake is one message."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.errors import ONE_MACHINE

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"


def require_fold(fold: str) -> None:
    """Raises GenSegError if nnU-Net knows no such fold."""
    if fold != "all" and not fold.isdigit():
        raise GenSegError(f"fold must be `all` or a whole number from 0 on, found {fold!r}")


def require_set(*folders: str) -> None:
    """Raises GenSegError if an environment variable that names a folder of nnU-Net is not set."""
    for name in folders:
        if not os.environ.get(name):
            raise GenSegError(f"{name} is not set; run: export {name}=FOLDER")


def require_device(device: str, remedy: str) -> None:
    """Raises GenSegError, which names `remedy`, if the device is a GPU and there is none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise GenSegError(f"no CUDA device was found; use {remedy}")


def require_gpus(number: str) -> None:
    """Raises GenSegError if `-num_gpus`, empty where it is not given, asks for more GPUs than this machine has."""
    import torch

    there = torch.cuda.device_count()
    if number.isdigit() and int(number) > max(there, 1):
        raise GenSegError(f"-num_gpus {number}, but this machine has {there}. {ONE_MACHINE}")


@contextmanager
def preprocessed(dataset: str) -> Iterator[None]:
    """Names the file of a preprocessed dataset, itself given by name or number, that is missing or corrupt."""
    try:
        yield
    except FileNotFoundError as error:
        if not str(error.filename).startswith(os.environ[PREPROCESSED]):
            raise
        raise GenSegError(
            f"{error.filename} is missing; first run: nnUNetv2_plan_and_preprocess -d DATASET --verify_dataset_integrity"
        ) from error
    except json.JSONDecodeError as error:
        faulty = _not_json(dataset)
        raise GenSegError(f"{faulty} is not valid JSON ({error}); run nnUNetv2_plan_and_preprocess again") from error


@contextmanager
def quietly_preprocessed(dataset: str) -> Iterator[None]:
    """As `preprocessed`, and nothing is printed: nnU-Net and its readers say much."""
    with preprocessed(dataset), redirect_stdout(StringIO()):
        yield


def _not_json(dataset: str) -> str:
    """The files of a preprocessed dataset, named or numbered, that are not JSON."""
    name = dataset if dataset.startswith("Dataset") else f"Dataset{int(dataset):03d}_*"
    faulty = []
    for path in sorted(Path(os.environ[PREPROCESSED]).glob(f"{name}/*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            faulty.append(str(path))
    return ", ".join(faulty) or f"a file of {dataset}"
