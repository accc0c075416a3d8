"""GenSegTrainer in nnU-Net's own training loop, on data that nnU-Net planned."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from PIL import Image

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers import (
    GenSegTrainer,
    GenSegTrainerDiffusion,
    GenSegTrainerGMM,
    GenSegTrainerNoFeedback,
    GenSegTrainerShort,
    GenSegTrainerVAE,
    nnUNetTrainerShort,
)
from nnunetv2_genseg.trainers import GenSegTrainer_5epochs as FiveEpochs  # type: ignore[attr-defined]

from .conftest import TINY, StoppedError, make_trainer, resume, stop_after, weights_of
from .processes import differences

PHANTOM_2D = ("Dataset901_Phantom2D", "2d")
PHANTOM_3D = ("Dataset902_Phantom3D", "3d_fullres")
EVERY_STEP = {"feedback": {"interval": 1}}
AT_ONCE = {"warmup": 0.0, "ramp": 0.0, "tail": 0.0}
WITHOUT_CHANGE = {
    "deformation": {"displacement": 0.0, "rotation": 0.0, "scaling": 0.0},
    "intensity": {"tone": 0.0},
    "mixing": {"sources": {"deformation": 1.0}},
    "paste": {"probability": 0.0},
    "feedback": {"enabled": False},
}
"""With these settings a synthetic patch is the real one."""


def trained(trainer: nnUNetTrainer, epochs: int | None = None) -> nnUNetTrainer:
    """The trainer after its training, or after so many epochs of it."""
    if epochs is None:
        trainer.run_training()
    else:
        stop_after(trainer, epochs)
        with pytest.raises(StoppedError):
            trainer.run_training()
    return trainer


def assert_same_weights(one: nnUNetTrainer, other: nnUNetTrainer) -> None:
    assert not list(differences(weights_of(one), weights_of(other)))


def log_of(trainer: nnUNetTrainer) -> str:
    return next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()


# ---------------------------------------------------------------------- beside stock nnU-Net


@pytest.mark.parametrize(("dataset", "configuration"), [PHANTOM_2D, PHANTOM_3D])
def test_until_the_warmup_ends_the_segmentation_network_is_bit_identical_to_stock(nnunet, settings, dataset, configuration):
    settings({"schedule": {"warmup": 0.8, "ramp": 0.1, "tail": 0.0}, "feedback": {"start": 0.8}})
    stock, ours = (
        trained(make_trainer(kind, dataset, configuration, "5,2,1,9,3"), epochs=4)
        for kind in (nnUNetTrainerShort, GenSegTrainerShort)
    )
    assert ours.recorder.progress.rows[-1]["l1"] > 0, "the generator learned meanwhile"
    assert_same_weights(stock, ours)


def test_with_fixed_held_out_cases_it_is_stock_on_the_other_cases(nnunet, settings, monkeypatch):
    settings({"schedule": {"warmup": 0.8, "ramp": 0.1, "tail": 0.0}, "feedback": {"start": 0.8, "rotations": 1}})
    ours = trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,3", plans_name=TINY), epochs=4)
    split = json.loads((Path(ours.output_folder) / "genseg_split.json").read_text())
    stock = make_trainer(nnUNetTrainerShort, *PHANTOM_2D, "5,2,1,9,3", plans_name=TINY)
    _, validation = ours.do_split()
    monkeypatch.setattr(stock, "do_split", lambda: (split["training"], validation))
    assert_same_weights(trained(stock, epochs=4), ours)


@pytest.mark.parametrize(("dataset", "configuration", "plans"), [(*PHANTOM_2D, TINY), (*PHANTOM_3D, "nnUNetPlans")])
def test_a_batch_of_unchanged_pairs_trains_as_the_real_batch_does(nnunet, settings, dataset, configuration, plans):
    """Loss, Dice over the batch, loader and optimiser are the other trainer's, whatever is in the batch's slots."""
    settings({"schedule": AT_ONCE, **WITHOUT_CHANGE, "mixing": {"sources": {"deformation": 1.0}, "share": 1.0}})
    stock, ours = (
        trained(make_trainer(kind, dataset, configuration, "2,2,1,9,3", plans_name=plans))
        for kind in (nnUNetTrainerShort, GenSegTrainerShort)
    )
    assert ours.recorder.progress.rows[0]["acceptance_rate"] == 1
    for name, value in weights_of(stock).items():
        torch.testing.assert_close(weights_of(ours)[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert stock.logger.get_value("train_losses", 1) == pytest.approx(ours.logger.get_value("train_losses", 1), rel=1e-4)


# ---------------------------------------------------------------------- all stages


STAGES: dict[str, dict[str, Any]] = {
    "mask, gan": {"redraw": {"mode": "mask"}, **EVERY_STEP},
    "tissue, vae": {"redraw": {"mode": "tissue"}, **GenSegTrainerVAE.preset, **EVERY_STEP},
    "tissue, gmm": {**GenSegTrainerGMM.preset, "feedback": {"interval": 1, "parameters": "policy"}},
    "residual, diffusion": {**GenSegTrainerDiffusion.preset, "feedback": {"interval": 1, "parameters": "weights"}},
}


@pytest.mark.parametrize("case", STAGES)
def test_every_mode_and_family_trains_through_all_stages(nnunet, settings, case):
    settings(STAGES[case])
    assert_all_stages(trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,3,1,4,0", plans_name=TINY)))


def assert_all_stages(trainer: nnUNetTrainer) -> None:
    rows = {int(row["epoch"]): row for row in trainer.recorder.progress.rows}
    assert len(rows[0]) > 2, "the generator learns"
    assert rows[0]["share"] == rows[1]["share"] == 0
    assert "acceptance_rate" not in rows[0]
    assert rows[6]["share"] == 0.5
    assert {"acceptance_rate", "loss_heldout", "hypergradient_norm"} <= rows[6].keys()
    assert rows[6]["hypergradient_norm"] > 0
    assert rows[9] == {"epoch": 9, "share": 0}, "the last epoch sees real data alone"
    folder = Path(trainer.output_folder)
    for name in ("genseg_samples.png", "genseg_progress.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    split = json.loads((folder / "genseg_split.json").read_text())
    assert split["cases"] == len(split["training"]) + len(split["held_out"])
    assert "hypergradient_norm" in log_of(trainer)
    assert "held out: none" in log_of(trainer)
    assert sorted(path.name for path in folder.glob("*.genseg-*.pt")) == sorted(
        f"{name}.genseg-{epoch:04d}.pt"
        for name in ("checkpoint_best", "checkpoint_final")
        for epoch in [torch.load(folder / f"{name}.pth", weights_only=False)["current_epoch"]]
    )


@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_every_feedback_moves_what_it_may(nnunet, settings, parameters):
    feedback = {"interval": 1, "parameters": parameters, "start": 0.0}
    settings({"feedback": feedback, "schedule": AT_ONCE, "generator": {"interval": 1000}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,0", plans_name=TINY)
    trainer.initialize()
    phi = trainer.loop.feedback.phi
    trainer.loop.sampler.training_step = lambda *arguments: {}  # not even once
    before = [parameter.detach().clone() for parameter in phi]
    trained(trainer, epochs=1)
    assert trainer.recorder.progress.rows[-1]["hypergradient_norm"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, phi, strict=True))


def test_feedback_leaves_the_segmentation_network_its_own_parameters_and_it_goes_on_learning(nnunet, settings):
    """nnU-Net's decoder holds the encoder under a second name, which functional copies must survive."""
    settings({"schedule": AT_ONCE, "feedback": {"interval": 1, "start": 0.0}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,0", plans_name=TINY)
    trainer.initialize()
    own = list(trainer.network.parameters())
    trained(trainer, epochs=2)
    assert trainer.recorder.progress.rows[-1]["hypergradient_norm"] > 0
    assert all(now is before for now, before in zip(trainer.network.parameters(), own, strict=True))
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {id(p) for p in own}
    before = weights_of(trainer)
    trainer.train_step(next(trainer.dataloader_train))
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert not torch.equal(before[name], weights_of(trainer)[name])


# ---------------------------------------------------------------------- resuming


RESUMED = {
    "2D": (PHANTOM_2D, TINY, {}, [3, 7], lambda trainer: assert_all_stages(trainer)),
    "3D": (PHANTOM_3D, TINY, {}, [3, 7], lambda trainer: assert_all_stages(trainer)),
    "new shapes": (PHANTOM_2D, TINY, {"masks": {"source": "shape_vae"}}, [5], lambda trainer: assert_shapes_learned(trainer)),
}
"""Dataset, plans, settings, the epochs before which it is stopped, and what holds of the training."""


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_training_ends_at_the_bits_of_an_uninterrupted_one(nnunet, settings, monkeypatch, case):
    """Stopped while the share of synthetic pairs rises, and during the feedback; saved every epoch."""
    data, plans, further, stops, holds = RESUMED[case]
    settings({**EVERY_STEP, **further})
    length = "10,2,1,1,5"
    whole = trained(make_trainer(GenSegTrainerShort, *data, length, plans_name=plans))
    holds(whole)

    monkeypatch.setenv("nnUNet_results", str(nnunet / "interrupted"))
    trained(make_trainer(GenSegTrainerShort, *data, length, plans_name=plans), stops[0])
    for stop, until in zip(stops, [*stops[1:], None], strict=True):
        last = resume(GenSegTrainerShort, *data, length, plans_name=plans)
        assert last.current_epoch == stop
        trained(last, until)

    assert_same_weights(whole, last)
    assert not list(differences(whole.loop.state_dict(), last.loop.state_dict()))
    assert last.recorder.progress.rows == whole.recorder.progress.rows


def assert_shapes_learned(trainer: nnUNetTrainer) -> None:
    rows = {int(row["epoch"]): row for row in trainer.recorder.progress.rows}
    assert rows[7]["shape_vae"] < rows[0]["shape_vae"]
    assert rows[9].keys() == {"epoch", "share"}


def test_resuming_with_another_configuration_is_refused_and_names_the_setting(nnunet, settings):
    settings({"seed": 1})
    length = "4,1,1,1,0"
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, length, plans_name=TINY), epochs=2)
    settings({"seed": 1, "mixing": {"share": 0.25}})
    with pytest.raises(ValueError, match=r"another configuration[\s\S]*mixing.share: 0.5 there, 0.25 now"):
        resume(GenSegTrainerShort, *PHANTOM_2D, length, plans_name=TINY).run_training()


def test_a_training_is_resumed_with_a_cheaper_feedback(nnunet, settings):
    settings({"schedule": AT_ONCE, "feedback": {"start": 0.5, "interval": 1}})
    length = "4,2,1,1,0"
    trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, length, plans_name=TINY), epochs=2)
    settings({"schedule": AT_ONCE, "feedback": {"start": 0.5, "interval": 2, "patches": 1}})
    second = trained(resume(GenSegTrainerShort, *PHANTOM_2D, length, plans_name=TINY))
    assert "loss_heldout" in second.recorder.progress.rows[-1]
    recorded = json.loads((Path(second.output_folder) / "genseg_config.json").read_text())
    assert recorded["feedback"]["patches"] == 1


def test_a_checkpoint_that_an_earlier_training_left_is_not_continued_under_other_settings(nnunet, settings):
    length = "4,1,1,1,0"
    for share, epochs in ((0.5, 2), (0.25, 0)):  # the second is stopped before it saves anything
        settings({"mixing": {"share": share}})
        trainer = trained(make_trainer(GenSegTrainerShort, *PHANTOM_2D, length, plans_name=TINY), epochs)
        if epochs:
            PairAugmentation.load(trainer.output_folder)
    with pytest.raises(ValueError, match="belongs to another training: settings is"):
        resume(GenSegTrainerShort, *PHANTOM_2D, length, plans_name=TINY).run_training()
    with pytest.raises(ValueError, match="belongs to another training: settings is"):
        PairAugmentation.load(trainer.output_folder)


# ---------------------------------------------------------------------- held-out cases


def test_held_out_cases_are_not_trained_on_until_the_feedback_has_ended(nnunet, settings):
    settings({"feedback": {"rotations": 1}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,2,1,9,0", plans_name=TINY)
    trainer.initialize()
    training, validation = trainer.do_split()
    everything, _ = nnUNetTrainer.do_split(trainer)
    held_out = set(everything) - set(training)
    assert held_out == set(trainer._held_out.cases.held_out)
    assert held_out
    assert not held_out & set(validation)
    seen = watch(trainer)
    trainer.run_training()
    assert not any(cases & held_out for epoch, kind, cases in seen if kind == "train" and epoch < 8)
    assert set(trainer.do_split()[0]) == set(everything)


def test_named_cases_are_held_out(nnunet, settings):
    named = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0", plans_name=TINY)
    named.initialize()
    chosen = sorted(nnUNetTrainer.do_split(named)[0])[:2]
    settings({"feedback": {"cases": chosen}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0", plans_name=TINY)
    trainer.initialize()
    training, _ = trainer.do_split()
    assert not set(chosen) & set(training)
    settings({"feedback": {"cases": ["tr_00"]}})
    with pytest.raises(ValueError, match="no training case of this fold is named tr_00; did you mean tr_00"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0", plans_name=TINY).run_training()


@pytest.mark.parametrize("phantom, patches, expected", [(PHANTOM_2D, None, 2), (PHANTOM_3D, None, 1), (PHANTOM_2D, 1, 1)])
def test_a_patch_of_every_held_out_micro_batch_is_drawn_around_foreground(nnunet, settings, phantom, patches, expected):
    settings({"feedback": {"patches": patches}})
    trainer = make_trainer(GenSegTrainerShort, *phantom, "2,1,1,1,0", plans_name=TINY)
    trainer.initialize()
    trainer.do_split()
    trainer.oversample_foreground_percent = 0.0
    assert len(trainer._held_out.next_batch().labels) == expected
    assert trainer._held_out._loader.get_do_oversample(expected - 1)


def watch(trainer: nnUNetTrainer) -> list[tuple[int, str, set[str]]]:
    """Epochs and cases: `train`, those of a batch and those whose parts may have been pasted; `held out`, of a feedback step."""
    step, next_batch, seen = trainer.host_step, trainer._held_out.next_batch, []

    def watched_step(batch: dict[str, Any]) -> Any:
        donors = {case for case, _, _ in trainer.loop.sampler.paster.donors}
        seen.append((trainer.current_epoch, "train", set(batch["keys"]) | donors))
        return step(batch)

    def watched_batch() -> Any:
        seen.append((trainer.current_epoch, "held out", set(trainer._held_out.cases.held_out)))
        return next_batch()

    trainer.host_step, trainer._held_out.next_batch = watched_step, watched_batch
    trainer.recorder.refresh = lambda *arguments: None
    return seen


def test_every_rotation_holds_other_cases_out_and_in_the_tail_the_loaders_are_stock(nnunet, settings):
    feedback = {"interval": 1, "start": 0.2, "rotations": 3}
    settings({"schedule": {"warmup": 0.0, "ramp": 0.1, "tail": 0.2}, "feedback": feedback})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,2,1,9,0", plans_name=TINY)
    everything = set(nnUNetTrainer.do_split(trainer)[0])
    seen, step, untouched = watch(trainer), trainer.train_step, []

    def watched(batch: dict[str, Any]) -> Any:
        host_step = trainer.host_step

        def inner(handed_on: dict[str, Any]) -> Any:
            untouched.append((trainer.current_epoch, handed_on is batch))
            return host_step(handed_on)

        trainer.host_step = inner
        try:
            return step(batch)
        finally:
            trainer.host_step = host_step

    trainer.train_step = watched
    trainer.run_training()
    first = next(place for place, (_, kind, _) in enumerate(seen) if kind == "train")
    assert all(kind == "held out" for _, kind, _ in seen[:first]), "a step is tried before the first epoch, and undone"
    held_out = {epoch: cases for epoch, kind, cases in seen[first:] if kind == "held out"}
    assert sorted(held_out) == list(range(2, 8))
    assert held_out[2] == held_out[3] != held_out[4] == held_out[5] != held_out[6] == held_out[7]
    assert all(not cases & held_out.get(epoch, set()) for epoch, kind, cases in seen if kind == "train")
    assert all(cases <= everything for _, _, cases in seen)
    assert set(trainer.dataloader_train.data_loader.indices) == everything, "then all cases train again"
    assert [epoch for epoch, same in untouched if same] == [8, 8, 9, 9], "the tail's batches are the loader's own"


def test_too_few_cases_for_feedback_is_an_error_that_says_what_to_do(nnunet, settings, monkeypatch):
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0", fold="all")
    trainer.initialize()
    monkeypatch.setattr(trainer.dataset_class, "get_identifiers", staticmethod(lambda folder: ["tr_000"]))
    with pytest.raises(ValueError, match=r"1 training case,.*GenSegTrainerNoFeedback"):
        trainer.do_split()
    settings({"feedback": {"enabled": False}})
    alone = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0", fold="all")
    alone.initialize()
    assert alone.do_split()[0] == ["tr_000"]


def test_a_fold_of_too_few_cases_is_an_error_that_says_what_to_do(nnunet, monkeypatch):
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_3D, "2,1,1,1,0")
    trainer.initialize()
    (Path(trainer.preprocessed_dataset_folder_base) / "splits_final.json").unlink(missing_ok=True)
    monkeypatch.setattr(trainer.dataset_class, "get_identifiers", staticmethod(lambda folder: ["a", "b", "c", "d"]))
    with pytest.raises(ValueError, match="4 cases, too few"):
        trainer.do_split()


# ---------------------------------------------------------------------- presets, settings, files


def test_presets_set_what_their_names_say(nnunet):
    short = make_trainer(FiveEpochs, *PHANTOM_2D, "1,1,1,1,0")
    assert short.num_epochs == 5
    assert short.genseg.feedback.enabled
    assert not make_trainer(GenSegTrainerNoFeedback, *PHANTOM_2D, "1,1,1,1,0").genseg.feedback.enabled
    assert make_trainer(GenSegTrainer, *PHANTOM_2D, "1,1,1,1,0").num_epochs == 1000


def test_an_invalid_configuration_stops_before_anything_is_written(nnunet, settings):
    settings({"mixing": {"shar": 1.0}})
    with pytest.raises(ValueError, match="did you mean share"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0")
    assert not (nnunet / "results").exists()


def test_short_trainings_need_their_variable(nnunet):
    with pytest.raises(ValueError, match="five whole numbers"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,x,1,1,0".replace("x", "?"))


@pytest.mark.parametrize("name", ["genseg_samples.png", "genseg_progress.png"])
def test_a_picture_that_cannot_be_written_is_logged_and_the_training_goes_on(nnunet, settings, name):
    settings({"feedback": {"enabled": False}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "3,1,1,1,0", plans_name=TINY)
    (Path(trainer.output_folder) / name).mkdir(parents=True)
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    assert log_of(trainer).count(f"GenSeg: {name} cannot be made (GenSegFileError: ") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), GenSegError("a mistake")])
def test_what_ends_a_training_is_in_its_log(nnunet, settings, error):
    settings({"feedback": {"enabled": False}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,9,0", plans_name=TINY)
    trainer.host_step = Mock(side_effect=error)
    with pytest.raises(type(error)):
        trainer.run_training()
    log = log_of(trainer)
    assert str(error) in log
    assert ("Traceback" in log) == isinstance(error, ZeroDivisionError)
    assert not (Path(trainer.output_folder) / "genseg.lock").exists()


class Gone(io.StringIO):
    """A terminal whose connection is broken."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_training_outlives_its_terminal(nnunet, settings, monkeypatch):
    settings({"feedback": {"enabled": False}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0", plans_name=TINY)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        patch.setattr(sys, "stdout", Gone())
        trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()
    log = log_of(trainer)
    assert log.count("nothing more is printed, because printing failed: [Errno 32] Broken pipe") == 1
    assert "Training done." in log
