"""`genseg sweep` on a real SLURM, as a cluster's user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("submitit")

from tests.e2e.conftest import Shell
from tests.e2e.test_sweep import LENGTH, NAME, small, tasks_of, write  # noqa: F401
from tests.slurm.cluster import Cluster


def test_a_plan_is_trained_by_a_job(cluster: Cluster, small: Shell, tmp_path: Path):  # noqa: F811
    results = tmp_path / "results of mine"
    variables = {"nnUNet_results": str(results), "nnUNet_genseg_short": LENGTH, "nnUNet_n_proc_DA": "0"}
    variables["SLURM_CONF"] = str(cluster.configuration)
    plan = {"trainers": ["GenSegTrainerShort"], "find_best": False, "engine": "slurm"}
    command = ("genseg", "sweep", write(tmp_path, **plan, slurm={"slurm_partition": "gpu", "timeout_min": 30}))
    status, output = small.run(*command, **variables)
    assert status == 2, output
    assert output.splitlines()[-1].startswith("genseg: engine slurm: sbatch: error: invalid partition specified: gpu; ")
    assert not cluster.queue()

    before = len(cluster.jobs())
    write(tmp_path, **plan, slurm={"slurm_partition": "main", "timeout_min": 30})
    small.succeed(*command, **variables)
    (task,) = tasks_of(results)
    assert (task["state"], task["attempts"]) == ("done", 1)
    assert cluster.jobs()[before:] == [task["name"]]
    assert (results / NAME / "GenSegTrainerShort__nnUNetPlansTiny__2d" / "fold_0" / "checkpoint_final.pth").is_file()
