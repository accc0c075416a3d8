"""Whatever a user gets wrong is one message and exit status 2, and nothing is half-written (kind: a user's error or ours)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.bad_inputs import RESUME, TABLE, WITH_IMAGES, BadInput, answer, images, nothing, place_for
from tests.integration.conftest import Workspace
from tests.integration.processes import Moment, Training

from .conftest import Shell

NAME = "Dataset903_Phantom2D"
FIRST_FILES = {"plans.json", "dataset.json", "dataset_fingerprint.json", "debug.json", "genseg_config.json", "genseg_split.json"}


@pytest.fixture(scope="module")
def killed(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a training that was killed after its fourth epoch."""
    workspace = Workspace(shell.folder)
    workspace.shrink(NAME, "2d")
    training = Training(workspace, tmp_path_factory.mktemp("killed"), dataset=NAME, settings={})
    assert training.run(Moment("train_step", 10)).killed
    return training.results


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_a_users_error_is_one_message_and_leaves_nothing_behind(shell: Shell, killed: Path, tmp_path: Path, bad: BadInput):
    if bad.without_gpu and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    found = answer(bad, place_for(bad, tmp_path, shell.folder, NAME, killed))
    assert found.status == 2, found.said
    assert bad.message in found.said
    assert "Traceback" not in found.said
    kept = [name for name in found.changed if "_unlabelled/" in name]  # images that are preprocessed once
    written = {Path(name).name for name in found.changed if name not in kept}
    written -= {"splits_final.json"}  # which nnU-Net writes when it is missing
    assert written <= (FIRST_FILES if bad.begins else set())


def test_the_same_inputs_are_accepted_when_nothing_is_wrong_with_them(shell: Shell, killed: Path, tmp_path: Path):
    """The table's rows fail for the reason that they give."""
    good = BadInput("good", "", nothing, RESUME)
    found = answer(good, place_for(good, tmp_path, shell.folder, NAME, killed))
    assert found.status == 0, found.said
    assert any(name.endswith("checkpoint_final.pth") for name in found.changed)


def test_the_same_generator_is_pretrained_when_nothing_is_wrong_with_it(shell: Shell, killed: Path, tmp_path: Path):
    good = BadInput("good", "", images(a_0000="RGB"), WITH_IMAGES)
    found = answer(good, place_for(good, tmp_path, shell.folder, NAME, killed))
    assert found.status == 0, found.said
    names = {name for name in found.changed if not name.startswith("nnUNet_preprocessed")}
    assert names == {f"generator/{name}" for name in ("config.json", "weights_1/model.safetensors", "genseg_samples.png")}


def test_no_two_rows_have_one_name():
    assert [name for name, count in Counter(bad.name for bad in TABLE).items() if count > 1] == []
