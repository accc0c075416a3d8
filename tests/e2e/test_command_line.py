"""What a user types, and what comes of it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import SimpleITK

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.demo import DemoSettings, run_demo
from nnunetv2_genseg.phantoms import PhantomDataset

from .conftest import LONGEST, Shell, ended, wait_until

NAME = "Dataset903_Phantom2D"
BROKEN_TRAINER = """
from nnunetv2_genseg.trainers import GenSegTrainerShort

class BrokenTrainer(GenSegTrainerShort):
    def initialize(self):
        raise ValueError("shapes do not match")
"""
WITHOUT_THIS_PACKAGE = """
import sys
sys.modules["nnunetv2_genseg"] = None  # importing it raises ImportError
from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder
predict_entry_point_modelfolder()
"""


def test_killed_resumed_and_predicted_by_stock_nnunet_without_this_package(shell: Shell):
    export = shell.succeed("genseg", "env")
    name, _, value = export.removeprefix("export ").strip().partition("=")
    found = {name: value}
    model = shell.folder / "nnUNet_results" / NAME / "GenSegTrainerShort__nnUNetPlans__2d"
    train = ["nnUNetv2_train", "903", "2d", "all", "-tr", "GenSegTrainerShort", "-device", "cpu"]

    process = shell.start(*train, nnUNet_genseg_short="200,2,1,1,0", **found)
    wait_until((model / "fold_all" / "checkpoint_latest.pth").is_file, process)
    ended(process)
    done = json.loads((model / "fold_all" / "genseg_config.json").read_text())
    assert done["trainer"] == "GenSegTrainerShort"

    output = shell.succeed(*train, "--c", nnUNet_genseg_short="4,2,1,1,0", **found)
    assert "GenSeg 0.1.0" in output
    assert "Mean Validation Dice" in output

    predictions = shell.folder / "predictions"
    arguments = ["-i", str(shell.folder / "nnUNet_raw" / NAME / "imagesTs"), "-o", str(predictions), "-m", str(model)]
    shell.succeed("python", "-c", WITHOUT_THIS_PACKAGE, *arguments, "-f", "all", "-device", "cpu", "-npp", "1", "-nps", "1")
    mask = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(predictions / "ts_000.png")))
    assert mask.shape == (32, 32)
    assert set(mask.ravel().tolist()) <= {0, 1, 2}


def test_genseg_train_needs_no_environment_variable(shell: Shell):
    images = shell.folder / "nnUNet_raw" / NAME / "imagesTs"
    options = ("--unlabelled", str(images), "-tr", "GenSegTrainerShort", "-device", "cpu")
    output = shell.succeed("genseg", "train", "903", "2d", "0", *options)
    assert "pairs are also made from 1 unlabelled image\n" in output
    assert (
        "1 of the unlabelled images have the names of this fold's validation cases or belong to imagesTs (ts_000_0000.png)"
        in output
    )
    assert "GenSeg 0.1.0: pairs from deformation 0.5, redraw 0.5; 1 of its training cases held out" in output


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files with a short path: the loading processes' sockets are in it, and Linux limits their paths to
    107 characters. With longer paths they wait for ever, as nnU-Net's own do."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_pretraining_that_is_terminated_leaves_no_temporary_files(shell: Shell, tmp_path: Path, temporary: Path):
    generator = tmp_path / "generator"
    arguments = ("903", "2d", str(generator), "--iterations", "100000", "-device", "cpu")
    process = shell.start("genseg", "pretrain", *arguments, TMPDIR=str(temporary))
    try:
        # the generator's folder is made when the first iteration begins
        wait_until(lambda: bool(list(temporary.glob("genseg_pretrain_*"))) and generator.is_dir(), process)
        process.terminate()
        assert process.wait(timeout=LONGEST) == 128 + signal.SIGTERM
        assert not list(temporary.glob("genseg_pretrain_*"))
    finally:
        ended(process)  # its loaders, if any were left


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["999", "2d", "0"], {}, "999"),
        (["903", "3d_fullres", "0"], {}, "3d_fullres"),
        (["903", "2d", "0", "-tr", "GenSegTrainerTypo"], {}, "Could not find requested nnunet trainer GenSegTrainerTypo"),
        (["903", "2d", "0", "-p", "nnUNetOtherPlans"], {}, "nnUNetv2_plan_and_preprocess"),
        (["903", "2d", "0"], {"nnUNet_genseg_config": "/nowhere.json"}, "not a file"),
        (["903", "2d", "0", "-tr", "GenSegTrainerShort"], {"nnUNet_genseg_short": "1,2"}, "five whole numbers"),
    ],
)
def test_a_users_error_is_one_message_and_exit_status_2(shell: Shell, arguments, environment, message):
    status, output = shell.run("genseg", "train", *arguments, "-device", "cpu", **environment)
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output


def test_sigterm_ends_a_training_and_leaves_no_process(shell: Shell):
    model = shell.folder / "nnUNet_results" / NAME / "GenSegTrainerShort__nnUNetPlans__2d"
    train = ("genseg", "train", "903", "2d", "1", "-tr", "GenSegTrainerShort", "-device", "cpu")
    process = shell.start(*train, nnUNet_genseg_short="500,2,1,1,0", nnUNet_n_proc_DA="2")
    wait_until((model / "fold_1" / "checkpoint_latest.pth").is_file, process)
    process.terminate()
    output, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 128 + signal.SIGTERM, output
    for _ in range(300):  # Python's own resource tracker takes a moment
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"a process is left of:\n{ended(process)}")
    assert not (model / "fold_1" / "genseg.lock").exists()


def test_an_error_in_the_code_keeps_its_traceback(shell: Shell):
    """Here of a user's trainer: whoever wrote it needs to see where."""
    folder = shell.folder / "trainers"
    folder.mkdir(exist_ok=True)
    (folder / "broken.py").write_text(BROKEN_TRAINER)
    arguments = ("903", "2d", "0", "-tr", "BrokenTrainer", "-device", "cpu")
    status, output = shell.run("genseg", "train", *arguments, nnUNet_extTrainer=str(folder))
    assert status == 1, output
    assert "Traceback" in output
    assert "ValueError: shapes do not match" in output


VERSIONS = """
import importlib.metadata, sys
version = importlib.metadata.version
for found in ("2.7.0", "2.8rc1", "2.8.0", "2.10.1.dev0"):
    importlib.metadata.version = lambda name: found if name == "nnunetv2" else version(name)
    for module in [name for name in sys.modules if name.startswith("nnunetv2_genseg")]:
        del sys.modules[module]
    try:
        import nnunetv2_genseg.trainers
    except Exception as error:
        print(error)
    else:
        print(found, "is accepted")
"""


def test_an_nnunet_that_is_too_old_is_refused(shell: Shell):
    refused, *accepted = shell.succeed("python", "-c", VERSIONS).splitlines()
    assert "needs nnunetv2 2.8 or newer, found 2.7.0" in refused
    assert accepted == [f"{found} is accepted" for found in ("2.8rc1", "2.8.0", "2.10.1.dev0")]


def test_the_demo_trains_predicts_evaluates_and_ends_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dataset = PhantomDataset(905, dims=2, training_cases=5, test_cases=2, extent=32)
    rows = run_demo(DemoSettings(folder=tmp_path, datasets=((dataset, "2d"),), iterations=1))
    assert [row["trainer"] for row in rows] == ["nnUNetTrainer", "GenSegTrainer"]
    assert all(0 <= float(row["dice"]) <= 1 for row in rows)
    table = capsys.readouterr().out
    assert "test Dice" in table
    assert "Open the reports in a browser" in table
    report = Path(table.splitlines()[-1].strip())
    assert report.name == "Dataset905_Phantom2D.html" and "synthetic_00000" in report.read_text(encoding="utf-8")


def test_a_failing_demo_step_names_its_log(tmp_path: Path):
    dataset = PhantomDataset(906, dims=2, training_cases=5, test_cases=1, extent=32)
    (tmp_path / "nnUNet_raw" / "Dataset906_Other").mkdir(parents=True)
    with pytest.raises(GenSegError, match=r"step Dataset906_Phantom2D_plan failed; its log is [\s\S]*More than one dataset"):
        run_demo(DemoSettings(folder=tmp_path, datasets=((dataset, "2d"),), iterations=1))
