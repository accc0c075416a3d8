"""The script for a GPU, on the CPU at tiny size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.lower().startswith("nnunet_")}
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--dry-run", *options]
    return subprocess.run(command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_the_script_for_a_gpu_does_all_its_steps(tmp_path):
    done = run("--out", str(tmp_path), "--seconds", "3000")
    outputs = "\n".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("*.txt")))
    assert done.returncode == 0, done.stdout + done.stderr + outputs
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: step["status"] for name, step in summary["steps"].items()} == {"tests": "ok", "speed": "ok", "gain": "ok"}
    assert summary["versions"].keys() >= {"torch", "nnunetv2"}
    (suite,) = ElementTree.parse(tmp_path / "tests.xml").getroot()
    assert int(suite.get("failures")) == int(suite.get("errors")) == 0
    assert int(suite.get("tests")) - int(suite.get("skipped")) >= 6
    speed = json.loads((tmp_path / "speed.json").read_text())
    assert speed["iteration_ratio"] > 0.5
    assert speed["memory_ratio"] > 0.8
    assert speed["feedback_host_syncs"] >= 1
    assert speed["plans"][0]["patch_size"] == [32, 32]
    ((name, cell),) = json.loads((tmp_path / "gain.json").read_text()).items()
    assert name == "mini_102_N4_2d_20it_genseg_s0_test"
    assert 0 <= cell["dice"] <= 1
    assert cell["resolved_settings"]["feedback"]["enabled"]
    assert cell["progress"][-1]["share"] == 0


def test_a_step_that_fails_or_has_no_time_does_not_keep_the_next_from_its_turn(tmp_path):
    done = run("--out", str(tmp_path), "--seconds", "20", "--steps", "speed", "gain")
    assert done.returncode == 1
    steps = json.loads((tmp_path / "summary.json").read_text())["steps"]
    assert [step["status"] for step in steps.values()] == ["out of time", "out of time"]
    assert sum(step["seconds"] for step in steps.values()) < 20
