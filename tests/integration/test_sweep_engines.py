"""The same tasks on Ray and by submitit, workers and nodes killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.sweep.engines import ENGINES, base
from nnunetv2_genseg.sweep.running import State
from tests.unit.test_sweep_running import Sweep, append, shell


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for tasks, and two nodes with room for two each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=2, resources={f"node{k}": 1}) for k in range(2)]
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster, nodes
    del os.environ["RAY_ADDRESS"]
    cluster.shutdown()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def slow(folder: Path, name: str, seconds: float) -> Any:
    """Tells its process, and that of what runs it."""
    return shell(folder, name, f"echo $$ $PPID > {name}.pid; sleep {seconds}; {append(name)}")


def test_ray_runs_tasks_on_its_nodes_and_one_that_dies_costs_its_own_tasks(cluster, tmp_path):
    cluster, nodes = cluster
    sweep = Sweep(tmp_path, "ray", jobs=4)
    names = [f"t{k}" for k in range(6)]

    def kill() -> None:
        wait_for(tmp_path / "t0.pid")
        cluster.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    records = sweep.run(*(slow(tmp_path, name, 1.5) for name in names))
    killer.join()
    assert {record.state for record in records.values()} == {State.DONE}
    assert sorted(set(sweep.finished())) == names
    lost = [record for record in records.values() if record.attempts > 1]
    assert 1 <= len(lost) <= 2, "the node had room for two"
    assert all("the worker was lost" in record.fault for record in lost)


def test_ray_notices_a_worker_that_is_killed(cluster, tmp_path):
    sweep = Sweep(tmp_path, "ray", jobs=1)

    def kill() -> None:
        wait_for(tmp_path / "a.pid")
        os.kill(int((tmp_path / "a.pid").read_text().split()[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    record = sweep.run(slow(tmp_path, "a", 1))["a"]
    killer.join()
    assert (record.state, record.attempts) == (State.DONE, 2)
    assert sweep.finished() == ["a"], "the command of the killed worker did not go on"


def test_submitit_begins_again_what_was_killed(tmp_path):
    pytest.importorskip("submitit")
    sweep = Sweep(tmp_path, "slurm", jobs=2)

    def kill() -> None:
        wait_for(tmp_path / "a.pid")
        os.kill(int((tmp_path / "a.pid").read_text().split()[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    records = sweep.run(slow(tmp_path, "a", 1), slow(tmp_path, "b", 1))
    killer.join()
    assert {name: (record.state, record.attempts) for name, record in records.items()} == {
        "a": (State.DONE, 2),
        "b": (State.DONE, 1),
    }
    assert sorted(sweep.finished()) == ["a", "b"]


def test_closing_ends_what_submitit_has_begun(tmp_path):
    pytest.importorskip("submitit")
    sweep = Sweep(tmp_path, "slurm")
    with closing(ENGINES["slurm"](sweep.resources)) as engine:
        engine.submit(slow(tmp_path, "a", 60), tmp_path / "log")
        wait_for(tmp_path / "a.pid")
    process = Path("/proc") / (tmp_path / "a.pid").read_text().split()[0]
    end = time.monotonic() + 60
    while process.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not process.exists()


def test_an_option_that_submitit_does_not_know_is_refused(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(GenSegError, match="partion"):
        ENGINES["slurm"](base.Resources(1, tmp_path, options={"cluster": "local", "slurm_partion": "gpu"}))


def test_a_package_that_is_not_there_is_named_with_its_extra():
    with pytest.raises(GenSegError, match=r'pip install "nnunetv2-genseg\[ray\]"'):
        base.installed("ray_that_is_not_there", "ray")
