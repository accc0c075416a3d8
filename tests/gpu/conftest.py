"""Small trainings on a GPU, or on the device that `GENSEG_TEST_DEVICE` names; without either these tests are skipped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunetv2_genseg.trainers.recording import Recorder
from tests.integration.conftest import make_repeatable
from tests.integration.datasets import Kind, plan, use_threads

VARIABLE = "GENSEG_TEST_DEVICE"
DATASETS = {"2d": (921, Kind(dims=2)), "3d_fullres": (922, Kind(dims=3))}
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which deterministic matrix products need, before CUDA begins


@pytest.fixture(scope="session")
def device() -> str:
    """`cuda` or `cpu`."""
    name = os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else "")
    if not name:
        pytest.skip(f"no GPU; {VARIABLE}=cpu runs what can run without one")
    return name


@pytest.fixture(scope="session")
def planned(device: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """nnU-Net's folders with a 2D and a 3D phantom that it planned, as environment variables."""
    folder = tmp_path_factory.mktemp("gpu")
    environment = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        use_threads(patch)
        for configuration, (number, kind) in DATASETS.items():
            kind.write(folder / "nnUNet_raw", number)
            plan(number, configuration)
    return environment


@pytest.fixture(autouse=True)
def nnunet(planned: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's folders set, results in a folder of the test's own; data loading in this process, nothing compiled, no pictures,
    which would take most of the time."""
    for name, value in planned.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "0")
    monkeypatch.delenv("nnUNet_genseg_config", raising=False)
    monkeypatch.setattr(Recorder, "refresh", lambda *arguments: None)
    make_repeatable(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """One thread and deterministic algorithms, where there are any."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_num_threads(threads)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Writes GenSeg's settings file and names it in the environment."""

    def write(content: dict[str, Any]) -> None:
        path = tmp_path / "genseg.json"
        path.write_text(json.dumps(content))
        monkeypatch.setenv("nnUNet_genseg_config", str(path))

    return write


def dataset_of(configuration: str) -> str:
    """Name of the dataset of a configuration."""
    number, kind = DATASETS[configuration]
    return f"Dataset{number}_Phantom{kind.dims}D"
