"""`genseg review` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-c", "from nnunetv2_genseg.cli import main; main()", "review")


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    process: subprocess.Popen[str]
    address: str
    """Of the page, with its token."""
    errors: Path
    """What it said on stderr."""

    def kill(self) -> None:
        """Ends it as a crash does (SIGKILL)."""
        self.process.kill()
        self.process.wait()


@contextmanager
def served(pairs: Path, raw: Path, *options: str) -> Iterator[Server]:
    """A server of a folder of pairs, whose real cases are in `raw`."""
    environment = os.environ | {"nnUNet_raw": str(raw), "OMP_NUM_THREADS": "1"}
    errors, command = pairs.with_name("stderr.txt"), [*COMMAND, str(pairs), *options]
    with (
        open(errors, "w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            address = next(line.strip() for line in process.stdout if "http://" in line)
            yield Server(process, address, errors)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
