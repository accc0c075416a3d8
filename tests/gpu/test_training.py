"""Trainings on the device that they are made for: stages, precision, compilation, resuming, memory and prediction."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.checkpoint import sibling
from nnunetv2_genseg.trainers import (
    GenSegTrainer,
    GenSegTrainerDiffusion,
    GenSegTrainerGMM,
    GenSegTrainerShort,
    GenSegTrainerVAE,
    nnUNetTrainerShort,
)
from nnunetv2_genseg.trainers.memory_check import try_largest_steps
from tests.integration.conftest import StoppedError, make_trainer, resume, stop_after, weights_of

from .conftest import dataset_of

pytestmark = pytest.mark.gpu
PLANS = pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
PRESETS = {
    "gan": GenSegTrainer,
    "vae": GenSegTrainerVAE,
    "diffusion": GenSegTrainerDiffusion,
    "gmm": GenSegTrainerGMM,
}
SCHEDULE = {"schedule": {"warmup": 0.2, "ramp": 0.1, "tail": 0.2}}
LENGTH = "5,2,1,9,3"
"""Epochs, iterations, validation iterations, epochs between checkpoints, seed. Epoch 0 is the warm-up, in epoch 1 pairs begin,
epochs 2 and 3 have feedback, 4 is the tail."""
STAGES: dict[str, Any] = {**SCHEDULE, "mixing": {"share": 1.0}, "feedback": {"interval": 1, "start": 0.4}}


def trained(kind: type[nnUNetTrainer], configuration: str, device: str, length: str = LENGTH) -> Any:
    """A finished training; see `watch`."""
    trainer: Any = make_trainer(kind, dataset_of(configuration), configuration, length, device=device)
    watch(trainer)
    trainer.run_training()
    return trainer


def watch(trainer: Any) -> None:
    """Records each iteration's loss in `losses` and how many steps the optimiser took in `steps`."""
    trainer.losses, trainer.steps = [], 0
    trainer.initialize()
    step = trainer.train_step

    def watched(batch: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = step(batch)
        trainer.losses.append(float(result["loss"]))
        return result

    def stepped(*_: Any) -> None:
        trainer.steps += 1

    trainer.train_step = watched
    trainer.optimizer.register_step_post_hook(stepped)


def require_all_stages(trainer: Any) -> None:
    """Pairs and feedback came in their stages, everything was finite, and the last epoch saw real patches only."""
    assert all(map(math.isfinite, trainer.losses))
    rows = {int(row["epoch"]): row for row in trainer.recorder.progress.rows}
    assert rows[0]["share"] == rows[4]["share"] == 0
    assert rows[3]["share"] == 1
    assert {"acceptance_rate", "loss_heldout", "hypergradient_norm"} <= rows[3].keys()
    assert rows[3]["hypergradient_norm"] > 0
    assert "loss_heldout" not in rows[1].keys() | rows[4].keys()
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())


@PLANS
def test_before_mixing_the_segmentation_network_is_that_of_stock_to_the_bit(configuration, device, settings):
    settings({"schedule": {"warmup": 0.8, "ramp": 0.1, "tail": 0.0}, "feedback": {"enabled": False}})
    found: dict[type, dict[str, torch.Tensor]] = {}
    for kind in (nnUNetTrainerShort, GenSegTrainerShort):
        trainer = make_trainer(kind, dataset_of(configuration), configuration, LENGTH, device=device)
        stop_after(trainer, 4)
        with pytest.raises(StoppedError):
            trainer.run_training()
        found[kind] = weights_of(trainer)
    assert len(trainer.recorder.progress.rows[-1]) > 2, "the generator learned meanwhile"
    for name, value in found[nnUNetTrainerShort].items():
        assert torch.equal(value, found[GenSegTrainerShort][name]), name


@PLANS
@pytest.mark.parametrize("family", PRESETS)
def test_every_family_trains_through_all_stages(family, configuration, device, settings):
    preset = PRESETS[family].preset
    settings(preset | STAGES | {"feedback": preset.get("feedback", {}) | STAGES["feedback"]})
    trainer = trained(GenSegTrainerShort, configuration, device)
    require_all_stages(trainer)
    assert trainer.genseg.generator.name == family


@PLANS
def test_float16_steps_are_taken_in_all_stages(configuration, device, settings):
    if device == "cpu":
        pytest.skip("nnU-Net trains in float16 with a GradScaler on a GPU only")
    settings(STAGES)
    trainer = trained(GenSegTrainerShort, configuration, device, "5,8,1,9,3")
    require_all_stages(trainer)
    assert trainer.grad_scaler.get_scale() > 0
    assert len(trainer.losses) - 6 <= trainer.steps <= len(trainer.losses), "the scaler skips a few at first"


def test_a_compiled_training_compiles_little_more_than_stock(device, settings, monkeypatch):
    if device == "cpu":
        pytest.skip("nnU-Net compiles on a GPU only")
    monkeypatch.setenv("nnUNet_compile", "1")
    torch.use_deterministic_algorithms(False)
    settings(STAGES)
    graphs = {}
    for kind in (nnUNetTrainerShort, GenSegTrainerShort):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = trained(kind, "2d", device)
        graphs[kind] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    require_all_stages(trainer)
    assert graphs[nnUNetTrainerShort] > 0
    assert graphs[GenSegTrainerShort] <= graphs[nnUNetTrainerShort] + 2


@PLANS
def test_a_resumed_training_ends_as_an_uninterrupted_one(configuration, device, settings, monkeypatch, tmp_path):
    """On a GPU some sums have no fixed order, so that the last bits may differ."""
    settings(STAGES)
    length = "5,2,1,1,3"
    whole = trained(GenSegTrainerShort, configuration, device, length)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "interrupted"))
    first = make_trainer(GenSegTrainerShort, dataset_of(configuration), configuration, length, device=device)
    stop_after(first, 3)
    with pytest.raises(StoppedError):
        first.run_training()
    second = resume(GenSegTrainerShort, dataset_of(configuration), configuration, length, device=device)
    assert second.current_epoch == 3
    second.run_training()
    tolerance = {"rtol": 0.0, "atol": 0.0} if device == "cpu" else {"rtol": 1e-2, "atol": 1e-3}
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(second)[name], value, **tolerance)
    path = Path(second.output_folder) / "checkpoint_final.pth"
    assert sibling(path, torch.load(path, weights_only=False)["current_epoch"]).is_file()


@PLANS
def test_the_largest_steps_are_tried_before_the_training_and_leave_no_trace(configuration, device, settings):
    settings(STAGES)
    trainer: Any = make_trainer(GenSegTrainerShort, dataset_of(configuration), configuration, LENGTH, device=device)
    watch(trainer)
    trainer.on_train_start()  # which tries them on a GPU
    network, state = weights_of(trainer), flat(trainer.loop.state_dict())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try_largest_steps(trainer)
    tried = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    assert trainer.steps > 0, "the optimiser took a step"
    for name, value in weights_of(trainer).items():
        assert torch.equal(value, network[name]), name
    after = flat(trainer.loop.state_dict())
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.run_training()
        assert tried >= 0.9 * torch.cuda.max_memory_allocated()


def flat(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dictionaries and lists, copied, by their place."""
    if isinstance(state, torch.Tensor):
        return {prefix: state.detach().clone()}
    parts = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {name: value for key, part in parts for name, value in flat(part, f"{prefix}/{key}").items()}


@PLANS
def test_stock_nnunet_predicts_from_the_checkpoint(configuration, device, settings, monkeypatch):
    settings(STAGES)
    trainer = trained(GenSegTrainerShort, configuration, device)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    monkeypatch.delenv("nnUNet_genseg_config")
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device(device), perform_everything_on_device=device == "cuda", allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    assert type(predictor.network) is type(trainer._plain_network())
    for name, value in weights_of(trainer).items():
        assert torch.equal(predictor.list_of_parameters[0][name].cpu(), value.cpu()), name
    image = next(trainer.dataloader_val)["data"][:1]
    image = image[0].numpy() if image.ndim == 5 else image[0, :, None].numpy()
    spacing = {"spacing": [1.0, *trainer.configuration_manager.spacing][-3:]}
    labels = predictor.predict_single_npy_array(image.astype(np.float32), spacing)
    assert labels.shape == image.shape[1:]
    assert set(np.unique(labels)) <= {0, 1, 2}
