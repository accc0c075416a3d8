"""GenSegTrainer in nnU-Net's own training loop, on data that nnU-Net planned."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from PIL import Image

from nnunetv2_genseg.coupling import Coupling, Segmenter
from nnunetv2_genseg.trainers import (
    GenSegTrainer,
    GenSegTrainerDiffusion,
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


@pytest.mark.parametrize(("dataset", "configuration"), [PHANTOM_2D, PHANTOM_3D])
def test_before_mixing_the_segmenter_is_bit_identical_to_stock(nnunet, settings, dataset, configuration):
    settings({"schedule": {"warmup": 0.8, "ramp": 0.1, "tail": 0.0}, "feedback": {"enabled": False}})
    found = {}
    for kind in (nnUNetTrainerShort, GenSegTrainerShort):
        trainer = make_trainer(kind, dataset, configuration, "5,2,1,9,3")
        stop_after(trainer, 4)
        with pytest.raises(StoppedError):
            trainer.run_training()
        found[kind] = weights_of(trainer)
    assert trainer.coupling is not None
    assert trainer.progress.rows[-1]["l1"] > 0, "the generator learnt meanwhile"
    for name, value in found[nnUNetTrainerShort].items():
        assert torch.equal(value, found[GenSegTrainerShort][name]), name


def test_before_mixing_with_feedback_it_is_stock_on_the_cases_that_are_not_held_aside(nnunet, settings, monkeypatch):
    settings({"schedule": {"warmup": 0.8, "ramp": 0.1, "tail": 0.0}, "feedback": {"start": 0.8, "turns": 1}})
    ours = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,3")
    stop_after(ours, 4)
    with pytest.raises(StoppedError):
        ours.run_training()
    split = json.loads((Path(ours.output_folder) / "genseg_split.json").read_text())
    stock = make_trainer(nnUNetTrainerShort, *PHANTOM_2D, "5,2,1,9,3")
    _, validation = stock.do_split() if stock.dataset_class else ours.do_split()
    monkeypatch.setattr(stock, "do_split", lambda: (split["training"], validation))
    stop_after(stock, 4)
    with pytest.raises(StoppedError):
        stock.run_training()
    for name, value in weights_of(stock).items():
        assert torch.equal(value, weights_of(ours)[name]), name


@pytest.mark.parametrize("mode", ["mask", "tissue", "differential"])
def test_trains_through_all_stages_in_2d(nnunet, settings, mode):
    settings({"conditioning": {"mode": mode}, **EVERY_STEP})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,3,1,4,0")
    trainer.run_training()
    assert_all_stages(trainer)


def test_trains_through_all_stages_in_3d(nnunet, settings):
    settings(EVERY_STEP)
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_3D, "10,2,1,4,0")
    trainer.run_training()
    assert_all_stages(trainer)


@pytest.mark.parametrize("preset", [GenSegTrainerDiffusion, GenSegTrainerVAE])
def test_other_families_train_through_all_stages(nnunet, settings, preset):
    settings({"generator": preset.preset["generator"], "feedback": {"interval": 1, "parameters": "weights"}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,2,1,4,0")
    trainer.run_training()
    assert_all_stages(trainer)


def test_learned_masks_train_through_all_stages_and_resume_at_the_same_bits(nnunet, settings, monkeypatch):
    settings({"masks": {"source": "learned"}, **EVERY_STEP})
    length = "10,3,1,1,5"
    whole = make_trainer(GenSegTrainerShort, *PHANTOM_2D, length)
    whole.run_training()
    rows = {int(row["epoch"]): row for row in whole.progress.rows}
    assert rows[7]["shape"] < rows[0]["shape"]
    assert "learned masks" not in rows[0], "none are drawn in the warm-up"
    assert 0 <= rows[6]["learned masks"] <= 1
    assert "learned masks" in next(Path(whole.output_folder).glob("training_log_*.txt")).read_text()
    assert rows[9].keys() == {"epoch", "gamma"}

    monkeypatch.setenv("nnUNet_results", str(nnunet / "interrupted"))
    first = make_trainer(GenSegTrainerShort, *PHANTOM_2D, length)
    stop_after(first, 5)
    with pytest.raises(StoppedError):
        first.run_training()
    second = resume(GenSegTrainerShort, *PHANTOM_2D, length)
    second.run_training()
    for mine, other in zip(whole.coupling.shapes.network.parameters(), second.coupling.shapes.network.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(whole.coupling.pairs.topology.most, second.coupling.pairs.topology.most)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(second)[name], value, rtol=1e-5, atol=1e-6)
    assert second.progress.rows[-2] == pytest.approx(whole.progress.rows[-2], rel=1e-4)


def assert_all_stages(trainer: nnUNetTrainer) -> None:
    rows = {int(row["epoch"]): row for row in trainer.progress.rows}
    assert "l1" in rows[0]
    assert "synthetic" not in rows[0]
    assert {"synthetic", "feedback", "hypergradient", "l1"} <= rows[6].keys()
    assert rows[6]["hypergradient"] > 0
    assert rows[9].keys() == {"epoch", "gamma"}, "the last epoch sees real data alone"
    folder = Path(trainer.output_folder)
    for name in ("genseg_samples.png", "genseg_progress.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 100
    split = json.loads((folder / "genseg_split.json").read_text())
    assert split["budget"] == len(split["training"]) + len(split["feedback"])
    log = next(folder.glob("training_log_*.txt")).read_text()
    assert "hypergradient" in log
    assert "held aside: none" in log
    assert sorted(path.name for path in folder.glob("*.genseg-*.pt")) == sorted(
        f"{name}.genseg-{epoch:04d}.pt"
        for name in ("checkpoint_best", "checkpoint_final")
        for epoch in [torch.load(folder / f"{name}.pth", weights_only=False)["current_epoch"]]
    )


@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
@pytest.mark.parametrize("method", ["exact", "finite_difference", "last_layers"])
def test_every_feedback_moves_what_it_may(nnunet, settings, parameters, method):
    settings({"feedback": {"interval": 1, "parameters": parameters, "method": method, "start": 0.0},
              "schedule": {"warmup": 0.2, "ramp": 0.0, "tail": 0.2}, "generator": {"interval": 1000}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,0")
    stop_after(trainer, 3)
    trainer.initialize()
    before = [parameter.detach().clone() for parameter in trainer.coupling.phi]
    with pytest.raises(StoppedError):
        trainer.run_training()
    assert trainer.progress.rows[-1]["hypergradient"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.coupling.phi))


@pytest.mark.parametrize(("dataset", "configuration"), [PHANTOM_2D, PHANTOM_3D])
@pytest.mark.parametrize("stop", [3, 7])
def test_a_resumed_training_equals_an_uninterrupted_one(nnunet, settings, monkeypatch, dataset, configuration, stop):
    """Stopped while the synthetic pairs enter, and during feedback; saved every epoch."""
    settings(EVERY_STEP)
    length = "10,2,1,1,5"
    whole = make_trainer(GenSegTrainerShort, dataset, configuration, length)
    whole.run_training()

    monkeypatch.setenv("nnUNet_results", str(nnunet / "interrupted"))
    first = make_trainer(GenSegTrainerShort, dataset, configuration, length)
    stop_after(first, stop)
    with pytest.raises(StoppedError):
        first.run_training()
    second = resume(GenSegTrainerShort, dataset, configuration, length)
    assert second.current_epoch == stop
    second.run_training()

    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(second)[name], value, rtol=1e-5, atol=1e-6)
    for mine, other in zip(whole.coupling.generator.weights(), second.coupling.generator.weights()):
        torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-6)
    assert [row["epoch"] for row in second.progress.rows] == list(range(10))
    assert second.progress.rows[-2]["l1"] == pytest.approx(whole.progress.rows[-2]["l1"], rel=1e-4)


REHEARSED = {
    "gan": (PHANTOM_3D, "nnUNetPlans", {}),
    "policy": (PHANTOM_2D, TINY, {"feedback": {"interval": 1, "parameters": "policy"}, "masks": {"source": "learned"}}),
    "diffusion": (PHANTOM_2D, TINY, {"generator": {"name": "diffusion"}, "feedback": {"interval": 1, "parameters": "weights"}}),
}


class ScalingTrainer(GenSegTrainerShort):
    """Scales its loss, as nnU-Net's trainer does on a GPU."""

    def initialize(self):
        self.grad_scaler = torch.amp.GradScaler("cpu")
        super().initialize()


@pytest.mark.parametrize("case", REHEARSED)
def test_steps_tried_before_a_training_leave_no_trace_in_it(nnunet, settings, monkeypatch, case):
    """Neither at its start nor where it is resumed, in the midst of feedback."""
    data, plans, topics = REHEARSED[case]
    settings({**EVERY_STEP, **topics})
    length = "10,1,1,1,5"
    plain = make_trainer(ScalingTrainer, *data, length, plans_name=plans)
    plain.run_training()

    begin, tried = ScalingTrainer.on_train_start, []

    def rehearsed(trainer):
        begin(trainer)
        before = len(tried)
        trainer._rehearse()
        assert set(tried[before:]) == {"segmenter", "learn", "feedback"}
        del tried[before:]

    monkeypatch.setattr(ScalingTrainer, "on_train_start", rehearsed)
    for name, owner, method in (
        ("segmenter", nnUNetTrainer, "train_step"), ("learn", Coupling, "learn"), ("feedback", Coupling, "feedback"),
    ):  # fmt: skip
        own = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *args, name=name, own=own: tried.append(name) or own(*args))
    monkeypatch.setenv("nnUNet_results", str(nnunet / "rehearsed"))
    first = make_trainer(ScalingTrainer, *data, length, plans_name=plans)
    stop_after(first, 5)
    with pytest.raises(StoppedError):
        first.run_training()
    second = resume(ScalingTrainer, *data, length, plans_name=plans)
    second.run_training()

    for name, value in weights_of(plain).items():
        assert torch.equal(weights_of(second)[name], value), name
    assert torch.equal(plain.coupling.rng.get_state(), second.coupling.rng.get_state())
    assert not list(differences(plain.coupling.state(), second.coupling.state()))
    assert not list(differences(plain.grad_scaler.state_dict(), second.grad_scaler.state_dict()))
    assert not list(differences(plain.optimizer.state_dict(), second.optimizer.state_dict()))
    assert plain.progress.rows[-2]["feedback"] == second.progress.rows[-2]["feedback"]


@pytest.fixture
def about_to_train(nnunet, settings):
    settings({})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,0", plans_name=TINY)
    trainer.on_train_start()
    return trainer


@pytest.mark.parametrize("owner, method, remedy", [
    (nnUNetTrainer, "train_step", "start anew with mixing: {share: 0.5}"),
    (Coupling, "learn", "start anew with a smaller generator"),
    (Coupling, "feedback", "feedback: {patches: 1}"),
])  # fmt: skip
def test_memory_that_does_not_hold_a_later_step_is_said_at_once(about_to_train, monkeypatch, owner, method, remedy):
    trainer = about_to_train
    activations = torch.zeros(9)
    alive, own = weakref.ref(activations), [activations]
    del activations

    def full(*args):
        held = own.pop()
        raise RuntimeError(f"CUDNN_STATUS_ALLOC_FAILED {len(held)}")

    def restore(state, own=trainer.coupling.restore):
        assert alive() is None, "what filled the memory is gone before anything is put back"
        own(state)

    monkeypatch.setattr(owner, method, full)
    monkeypatch.setattr(trainer.coupling, "restore", restore)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=f"not hold this training to its end; {remedy}.*ALLOC_FAILED 9"):
        trainer._rehearse()


def test_steps_that_cannot_be_tried_are_said(about_to_train, monkeypatch):
    trainer = about_to_train
    monkeypatch.setattr(Coupling, "draw", Mock(side_effect=FloatingPointError("infinite")))
    trainer._rehearse()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "not all of the largest steps could be tried: infinite" in log


def test_other_errors_of_the_steps_tried_are_not_taken_for_a_lack_of_memory(about_to_train, monkeypatch):
    monkeypatch.setattr(Coupling, "learn", Mock(side_effect=RuntimeError("wrong shape")))
    with pytest.raises(RuntimeError, match="wrong shape"):
        about_to_train._rehearse()


def test_feedback_leaves_the_segmenter_its_own_parameters_and_it_goes_on_learning(nnunet, settings):
    """nnU-Net's decoder holds the encoder under a second name, which functional copies must survive."""
    settings({**EVERY_STEP, "schedule": {"warmup": 0.2, "ramp": 0.0, "tail": 0.0}, "feedback": {"interval": 1, "start": 0.2}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "5,2,1,9,0")
    trainer.initialize()
    own = list(trainer.network.parameters())
    stop_after(trainer, 3)
    with pytest.raises(StoppedError):
        trainer.run_training()
    assert trainer.progress.rows[-1]["hypergradient"] > 0
    assert all(now is before for now, before in zip(trainer.network.parameters(), own, strict=True))
    assert {id(p) for group in trainer.optimizer.param_groups for p in group["params"]} == {id(p) for p in own}
    before = weights_of(trainer)
    trainer.train_step(next(trainer.dataloader_train))
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert not torch.equal(before[name], weights_of(trainer)[name])


@pytest.mark.parametrize("sources", ["other", "batch"])
def test_synthetic_pairs_are_drawn_from_patches_beside_the_batch_or_from_the_batch(nnunet, settings, sources):
    """With changes switched off a synthetic patch is its source."""
    still = {"masks": {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0}, "conditioning": {"mode": "deformation", "tone": 0.0}}
    settings({**still, "feedback": {"enabled": False}, "schedule": {"warmup": 0.0, "ramp": 0.0}, "mixing": {"sources": sources}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,4,1,9,0")
    seen = []
    trainer.on_train_start()
    trainer.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0]))
    for _ in range(4):
        trainer.train_step(next(trainer.dataloader_train))
    halves = [batch.chunk(2) for batch in seen]
    same = [torch.allclose(real, synthetic, atol=1e-5) for real, synthetic in halves]
    assert same == [sources == "batch"] * 4
    assert all(synthetic.std() > 0.5 for _, synthetic in halves)


def test_the_checkpoint_names_the_stock_trainer(nnunet, settings):
    settings({"feedback": {"enabled": False}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "2,1,1,1,0")
    trainer.run_training()
    content = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["init_args"]["configuration"] == "2d"


def test_held_aside_cases_are_not_trained_on_until_the_feedback_has_ended(nnunet, settings):
    settings({"feedback": {"turns": 1}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,2,1,9,0")
    trainer.initialize()
    training, validation = trainer.do_split()
    everything, _ = nnUNetTrainer.do_split(trainer)
    held = set(everything) - set(training)
    assert held == set(trainer._carving.feedback)
    assert held
    assert not held & set(validation)
    assert [trainer._turn_at(iteration) for iteration in range(20)] == [0] * 17 + [None] * 3
    trainer.run_training()
    assert set(trainer.do_split()[0]) == set(everything)


def test_held_aside_cases_are_kept_for_ever_without_release(nnunet, settings):
    settings({"feedback": {"turns": 1, "release": False}})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,2,1,9,0")
    trainer.initialize()
    assert [trainer._turn_at(iteration) for iteration in range(20)] == [0] * 20


def test_every_turn_of_the_feedback_holds_other_cases_aside(nnunet, settings):
    feedback = {"interval": 1, "start": 0.2, "end": 0.8, "turns": 3}
    settings({"schedule": {"warmup": 0.0, "ramp": 0.1, "tail": 0.1}, "feedback": feedback})
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "10,2,1,9,0")
    everything = set(nnUNetTrainer.do_split(trainer)[0])
    train, fed, seen = trainer.train_step, trainer._feedback_batch, []

    def watched_train(batch):
        seen.append((trainer.current_epoch, "train", set(batch["keys"])))
        return train(batch)

    def watched_feedback():
        seen.append((trainer.current_epoch, "held", set(trainer._carving.feedback)))
        return fed()

    trainer.train_step, trainer._feedback_batch, trainer._refresh_pictures = watched_train, watched_feedback, lambda: None
    trainer.run_training()
    held = {epoch: cases for epoch, kind, cases in seen if kind == "held"}
    assert sorted(held) == list(range(2, 8))
    assert held[2] == held[3] != held[4] == held[5] != held[6] == held[7]
    assert [trainer._turn_at(iteration) for iteration in range(16, 20)] == [None] * 4, "then all cases train again"
    assert {"synthetic", "l1"} <= trainer.progress.rows[8].keys(), "the tail has not begun"
    assert "feedback" not in trainer.progress.rows[8]
    assert all(not cases & held.get(epoch, set()) for epoch, kind, cases in seen if kind == "train")
    assert all(cases <= everything for _, _, cases in seen)


def test_resume_with_another_configuration_is_refused_and_names_the_setting(nnunet, settings):
    settings({"seed": 1})
    length = "4,1,1,1,0"
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, length)
    stop_after(trainer, 2)
    with pytest.raises(StoppedError):
        trainer.run_training()
    settings({"seed": 1, "mixing": {"gamma": 0.5}})
    with pytest.raises(ValueError, match=r"another configuration[\s\S]*mixing.gamma: 1.0, there 0.5"):
        resume(GenSegTrainerShort, *PHANTOM_2D, length).run_training()


def test_a_training_is_resumed_with_a_cheaper_feedback(nnunet, settings):
    stages = {"schedule": {"warmup": 0.0, "ramp": 0.0, "tail": 0.0}}
    settings(stages | {"feedback": {"start": 0.5, "interval": 1}})
    length = "4,2,1,1,0"
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, length)
    stop_after(trainer, 2)
    with pytest.raises(StoppedError):
        trainer.run_training()
    settings(stages | {"feedback": {"start": 0.5, "interval": 2, "patches": 1, "method": "last_layers"}})
    second = resume(GenSegTrainerShort, *PHANTOM_2D, length)
    second.run_training()
    assert "feedback" in second.progress.rows[-1]
    recorded = json.loads((Path(second.output_folder) / "genseg_config.json").read_text())
    assert recorded["feedback"]["method"] == "last_layers"


def test_with_the_policy_each_synthetic_patch_weighs_in_training_what_it_weighs_in_the_feedback(nnunet, settings, monkeypatch):
    settings(
        {
            "schedule": {"warmup": 0.0, "ramp": 0.0, "tail": 0.0},
            "feedback": {"parameters": "policy", "interval": 100},
        }
    )
    trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0")
    trainer.initialize()
    with torch.no_grad():
        trainer.coupling.pairs.policy.log_worth.copy_(torch.tensor([2.0, -2.0]))
    drawn, weighed = [], []
    draw, forward = Coupling.draw, trainer.loss.forward

    def watched_draw(self, *arguments):
        pairs = draw(self, *arguments)
        pairs.labels[0].clamp_(max=1)
        pairs.labels[1, 0, 0] = 2  # which the first pair does not show
        drawn.append(pairs)
        return pairs

    def watched_forward(output, target):
        loss = forward(output, target)
        count = len(drawn[-1].labels)
        segmenter = Segmenter(trainer.network, trainer._feedback_loss, trainer._to_input, trainer._to_target)
        weighed.append(trainer.coupling.synthetic_loss([part[-count:] for part in output], drawn[-1].labels, segmenter))
        return loss

    monkeypatch.setattr(Coupling, "draw", watched_draw)
    monkeypatch.setattr(trainer.loss, "forward", watched_forward)
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    torch.testing.assert_close(trainer.loss.synthetic, weighed[0].detach())
    assert (trainer.coupling.worth(drawn[0].labels) != 1).any()


def test_a_checkpoint_that_an_earlier_training_left_is_not_gone_on_with_under_other_settings(nnunet, settings):
    length = "4,1,1,1,0"
    for gamma, epochs in ((1.0, 2), (0.5, 0)):  # the second is stopped before it saves anything
        settings({"mixing": {"gamma": gamma}})
        trainer = make_trainer(GenSegTrainerShort, *PHANTOM_2D, length)
        stop_after(trainer, epochs)
        with pytest.raises(StoppedError):
            trainer.run_training()
    with pytest.raises(ValueError, match="belongs to another training: settings is"):
        resume(GenSegTrainerShort, *PHANTOM_2D, length).run_training()


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


def test_presets_set_what_their_names_say(nnunet):
    short = make_trainer(FiveEpochs, *PHANTOM_2D, "1,1,1,1,0")
    assert short.num_epochs == 5
    assert short.genseg.feedback.enabled
    assert not make_trainer(GenSegTrainerNoFeedback, *PHANTOM_2D, "1,1,1,1,0").genseg.feedback.enabled
    assert make_trainer(GenSegTrainer, *PHANTOM_2D, "1,1,1,1,0").num_epochs == 1000


def test_an_invalid_configuration_stops_before_anything_is_written(nnunet, settings):
    settings({"mixing": {"gama": 1.0}})
    with pytest.raises(ValueError, match="did you mean gamma"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,1,1,1,0")
    assert not (nnunet / "results").exists()


def test_short_trainings_need_their_variable(nnunet):
    with pytest.raises(ValueError, match="five whole numbers"):
        make_trainer(GenSegTrainerShort, *PHANTOM_2D, "1,x,1,1,0".replace("x", "?"))
