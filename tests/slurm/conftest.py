"""A cluster for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import shell  # noqa: F401
from tests.slurm.cluster import PATH, Cluster, running_cluster


@pytest.fixture(scope="session")
def one_cluster() -> Iterator[Cluster]:
    if shutil.which("slurmctld", path=PATH) is None:
        pytest.skip("needs slurm-wlm: make slurm")
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(one_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """SLURM's commands work in this process, too; no job is left from another test."""
    monkeypatch.setenv("SLURM_CONF", str(one_cluster.configuration))
    yield one_cluster
    one_cluster.end_jobs()
