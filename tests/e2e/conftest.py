"""nnU-Net's folders with a small planned dataset, and its programs as a user calls them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nnunetv2_genseg.phantoms import PhantomDataset
from tests.integration.datasets import plan, use_threads
from tests.integration.processes import LONGEST

PROGRAMS = Path(sys.executable).parent
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Shell:
    """Runs this environment's programs with nnU-Net's folders set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.lower().startswith("nnunet_")}
        self.environment |= {name: str(folder / name) for name in FOLDERS}
        self.environment |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
        self.environment |= {"nnUNet_genseg_short": "4,2,1,1,0", "PYTHONUNBUFFERED": "1"}
        self.environment["OMP_NUM_THREADS"] = "1"

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(PROGRAMS / command[0]), *command[1:]],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=self.folder,
        )

    def run(self, *command: str, **environment: str) -> tuple[int, str]:
        process = self.start(*command, **environment)
        try:
            output, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            pytest.fail(f"hung after:\n{ended(process)}")
        return process.returncode, output

    def succeed(self, *command: str, **environment: str) -> str:
        status, output = self.run(*command, **environment)
        assert status == 0, output
        return output


def ended(process: subprocess.Popen[str]) -> str:
    """Kills a program and what it started; what it has printed."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns when something has happened while a program runs."""
    end = time.monotonic() + LONGEST
    while not happened():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"ended before, or hung, after:\n{ended(process)}")
        time.sleep(0.1)


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("e2e"))
    PhantomDataset(903, dims=2, training_cases=5, test_cases=1, extent=32).write(shell.folder / "nnUNet_raw")
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        for name in FOLDERS:
            patch.setenv(name, shell.environment[name])
        plan(903, "2d", small=False)
    return shell
