"""`genseg generate` divided among several processes, on any engine; the pairs do not depend on their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.lock import alone_in
from nnunetv2_genseg.sweep.engines import ENGINES, Resources
from nnunetv2_genseg.sweep.running import Record, State, run
from nnunetv2_genseg.sweep.task import Task, nnunets_environment, program
from nnunetv2_genseg.trainers.provenance import SHARDS, require_own
from nnunetv2_genseg.trainers.standalone import require_writable

ATTEMPTS = 3


def draw(arguments: Sequence[str], output: Path, shards: int, engine: str, gpu: bool, options: Mapping[str, Any]) -> None:
    """Draws all pairs that are missing into folders of their own; `generate` then takes them.

    Args:
        arguments: of `genseg generate`.
        output: the folder of pairs.
        shards: number of processes.
        engine: its name.
        gpu: whether each process needs a GPU.
        options: of the engine.

    Raises:
        GenSegError: a process failed, or the folder cannot be used.
    """
    factory = ENGINES[engine]
    require_writable(output)
    require_own(output)
    logs = output / SHARDS / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    command = (program("genseg"), "generate", *arguments, "--shard")
    tasks = [Task(f"shard {i}", (*command, f"{i}/{shards}"), Path.cwd(), nnunets_environment()) for i in range(shards)]
    with alone_in(output), closing(factory(Resources(shards, logs, gpu, options))) as running:
        records = run(tasks, running, shards, ATTEMPTS, logs, _nothing)
    for record in records:
        if record.state is not State.DONE:
            raise GenSegError(f"{record.task.name} failed ({record.fault}; log: {record.log}). Complete pairs stay; start again")


def _nothing(records: Sequence[Record]) -> None:
    """The pairs are counted at the end."""
