"""What the feedback moves, and when it stops (kinds: its step is the optimiser's; a feedback that is zero)."""

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call
from toy import CODECS, CPU, DEFORMATION, ETA, MODES, REDRAW, STILL, Setting, configured, cosine, flat, planned, same, seeded

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.bilevel import feedback as feedback_module
from nnunetv2_genseg.bilevel.feedback import STEP, ZERO_STEPS
from nnunetv2_genseg.bilevel.loop import OFF, BilevelLoop
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.optimiser_step import modelled_step

PARAMETERS = ["architecture", "weights", "policy"]
ONLY_SHIFTED = {"deformation": STILL, "intensity": {"tone": 0.0}}
"""With mode `residual`, no pair depends on the generator but by a shift of intensities."""


def taken(setting):
    """The hypergradient of the first feedback step, from the first moment of Adam."""
    state = setting.loop.feedback.optimizer.state
    return [state[own]["exp_avg"] / 0.5 if own in state else torch.zeros_like(own) for own in setting.loop.feedback.phi]


def next_pairs(setting):
    """The pairs of the next feedback step, with graph; random states stay as they are."""
    slots, own = torch.Generator(), torch.Generator()
    slots.set_state(setting.loop.slot_rng.get_state())
    own.set_state(setting.loop.rng.get_state())
    chosen = setting.loop.feedback.choose(len(setting.image), slots)
    return setting.sampler.replace(setting.image, setting.labels, chosen, own).pairs


def held_out_loss_after_a_step(setting, pairs, eta, shares=None):
    """L_fb after one SGD step of what moves in the segmentation network, with graph to φ; `shares` scale η by weight."""
    theta = dict(setting.network.named_parameters())
    moving = {name: weight for name, weight in theta.items() if weight.requires_grad and (shares is None or name in shares)}
    logits = functional_call(setting.network, theta, (pairs.image,), tie_weights=False)
    value = setting.loss(logits, setting.to_target(pairs.labels))
    slopes = torch.autograd.grad(value, list(moving.values()), create_graph=True)
    rates = {name: eta if shares is None else eta * shares[name] for name in moving}
    ahead = {name: weight - rates[name] * slope for (name, weight), slope in zip(moving.items(), slopes, strict=True)}
    logits = functional_call(setting.network, {**theta, **ahead}, (setting.held_out.network_input,), tie_weights=False)
    return setting.loss(logits, setting.to_target(setting.held_out.labels))


def unrolled(setting, eta=1e-5, shares=None):
    """dL_fb/dφ by autograd through one SGD step, small enough that v is the gradient before it."""
    loss = held_out_loss_after_a_step(setting, next_pairs(setting), eta, shares)
    parts = torch.autograd.grad(loss, setting.loop.feedback.phi, allow_unused=True)
    return [
        torch.zeros_like(own) if part is None else ETA / eta * part
        for own, part in zip(setting.loop.feedback.phi, parts, strict=True)
    ]


def place_of(setting, parameter):
    return next(i for i, own in enumerate(setting.loop.feedback.phi) if own is parameter)


def relative_error(found, expected):
    assert flat(expected).norm() > 0
    return float((flat(found) - flat(expected)).norm() / flat(expected).norm())


@torch.no_grad()
def held_out_loss(setting):
    return setting.loss(setting.network(setting.held_out.network_input), setting.to_target(setting.held_out.labels))


def check_feedback_moves_phi_alone(setting):
    parameters = setting.loop.config.feedback.parameters
    before = setting.tensors()
    segmenter = copy.deepcopy(setting.network.state_dict())
    trained = list(setting.network.parameters())
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert setting.feedback() == ""

    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])
    assert random.getstate() == random_states[2]
    for name, weight in setting.network.state_dict().items():
        assert torch.equal(weight, segmenter[name]), name
    for weight, old in zip(setting.network.parameters(), trained, strict=True):
        assert weight is old, "the segmentation network's optimiser would step on weights that it no longer has"
        assert weight.grad is None
        assert weight.requires_grad

    after = setting.tensors()
    assert not same(before[parameters], after[parameters])
    assert same(before["discriminator"], after["discriminator"])
    assert same(before["policy"], after["policy"]) == (parameters != "policy")
    if parameters == "architecture":
        alphas = {id(alpha) for alpha in setting.generator.architecture()}
        for own, old, new in zip(setting.generator.weights(), before["weights"], after["weights"], strict=True):
            assert torch.equal(old, new) or id(own) in alphas
    if parameters == "policy":
        assert same(before["weights"], after["weights"])
    means = setting.loop.means()
    assert means["hypergradient_norm"] > 0
    assert means["loss_heldout"] == pytest.approx(float(held_out_loss(setting)), rel=1e-5)
    factors = {name: float(value) for name, value in setting.sampler.policy.factors().items()}
    if parameters == "policy":
        assert {name: means[name] for name in factors} == factors
        assert set(factors.values()) != {1.0}
    elif parameters == "architecture":
        assert means["largest_kernel_share"] == max(alpha.softmax(0).max().item() for alpha in setting.generator.architecture())
        assert means["largest_kernel_share"] > 1 / 3
    else:
        assert set(means) == {"hypergradient_norm", "loss_heldout", "loss_synthetic"}


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_feedback_moves_phi_and_nothing_else(parameters):
    check_feedback_moves_phi_alone(Setting(feedback={"parameters": parameters}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("codec, channels", [*((codec, 1) for codec in CODECS), ("labels", 3)])
def test_feedback_works_with_every_kind_of_target(codec, mode, channels):
    check_feedback_moves_phi_alone(Setting(2, channels, codec, redraw={"mode": mode}))


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("mode", MODES)
def test_feedback_in_3d(parameters, mode):
    check_feedback_moves_phi_alone(Setting(3, redraw={"mode": mode}, feedback={"parameters": parameters}))


def test_feedback_with_deep_supervision():
    setting = Setting()
    setting.network.decoder.deep_supervision = True
    full, single = setting.loss, setting.to_target
    setting.loss = lambda logits, targets: sum(
        full(a, b) for a, b in zip(logits if isinstance(logits, list) else [logits], targets, strict=True)
    )
    setting.to_target = lambda labels: [single(labels)]  # a network of two stages has one head
    check_feedback_moves_phi_alone(setting)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parameters", ["architecture", "weights"])
def test_the_hypergradient_is_that_of_unrolled_autograd(parameters, mode, dims):
    setting = Setting(dims, smooth=True, redraw={"mode": mode}, feedback={"parameters": parameters})
    setting.learn(3)
    expected = unrolled(setting)
    before = flat(setting.loop.feedback.phi)
    setting.feedback()
    assert relative_error(taken(setting), expected) < 0.01
    assert setting.loop.means()["hypergradient_norm"] == pytest.approx(float(flat(expected).norm()), rel=0.01)
    moved, clear = flat(setting.loop.feedback.phi) - before, flat(expected).abs() > 0.2 * flat(expected).abs().max()
    assert torch.equal(moved[clear].sign(), -flat(expected)[clear].sign()), "against the gradient"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("sources", [REDRAW, DEFORMATION, {}], ids=["redraw", "deformation", "both"])
def test_the_hypergradient_of_the_style_factor_is_that_of_unrolled_autograd(sources, dims):
    setting = Setting(dims, smooth=True, mixing=sources, feedback={"parameters": "policy"})
    style = place_of(setting, setting.sampler.policy.log_style)
    expected = unrolled(setting)[style]
    setting.feedback()
    assert expected != 0
    assert float(taken(setting)[style]) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize("masks", ["real", "shape_vae"])
@pytest.mark.parametrize("sources", [REDRAW, {"sources": {"deformation": 0.5, "redraw": 0.5}}], ids=["redraw", "both"])
def test_the_slope_over_the_deformation_is_that_of_the_held_out_loss_after_a_real_step(sources, masks):
    setting = Setting(smooth=True, mixing=sources, masks={"source": masks}, feedback={"parameters": "policy"})
    setting.learn(40 if masks == "shape_vae" else 3)
    setting.sampler.deformer.unbound()
    deformation = setting.sampler.policy.log_deformation
    place = place_of(setting, deformation)
    step, losses = ETA / 100, []  # the derivative is taken before the step
    setting.network, float_network = setting.network.double(), setting.network
    for further in (STEP, -STEP):
        with torch.no_grad():
            deformation.fill_(further)
            pairs = next_pairs(setting)
            deformation.fill_(0.0)
        doubled = copy.copy(pairs)
        object.__setattr__(doubled, "image", pairs.image.double())
        held_out = setting.held_out
        setting.held_out = type(held_out)(held_out.network_input.double(), held_out.labels)
        losses.append(float(held_out_loss_after_a_step(setting, doubled, step).detach()))
        setting.held_out = held_out
    setting.network = float_network.float()
    expected = (losses[0] - losses[1]) / (2 * STEP) * ETA / step
    setting.feedback()
    assert expected != 0
    assert float(taken(setting)[place]) == pytest.approx(expected, rel=0.03)


def test_a_feedback_step_draws_as_if_once():
    """The further drawings for the deformation's slope leave the random state alone."""
    states = []
    for parameters in ("architecture", "policy"):
        setting = Setting(mixing=REDRAW, feedback={"parameters": parameters})
        setting.loop.slot_rng.set_state(seeded(3).get_state())
        setting.loop.rng.set_state(seeded(4).get_state())
        setting.feedback()
        states.append(setting.loop.rng.get_state())
    assert torch.equal(*states)


def test_the_slope_over_a_deformation_that_changes_nothing_is_zero(monkeypatch):
    """Rounding of two equal passes, which a GPU may show, would make whole steps of Adam."""
    setting = Setting(feedback={"parameters": "policy"})
    setting.sampler.deformer.largest.zero_()
    monkeypatch.setattr(setting.sampler.deformer, "admits", lambda labels, new, may_leave=None: torch.zeros(len(labels)).bool())
    passed, alignment = [], hypergradient.alignment

    def rounded(*args, **kwargs):
        passed.append(1)
        return alignment(*args, **kwargs) * (1 + 1e-7 * len(passed))

    monkeypatch.setattr(hypergradient, "alignment", rounded)
    setting.feedback()
    assert setting.loop.means()["hypergradient_norm"] > 0
    assert setting.sampler.policy.log_deformation == 0


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_only_a_policy_that_is_moved_costs_further_drawings(parameters, monkeypatch):
    setting = Setting(feedback={"parameters": parameters})
    drawn, replace = [], setting.sampler.replace
    monkeypatch.setattr(setting.sampler, "replace", lambda *args: drawn.append(1) or replace(*args))
    setting.feedback()
    assert len(drawn) == (3 if parameters == "policy" else 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_feedback_is_alive_with_new_shapes(mode, parameters):
    setting = Setting(masks={"source": "shape_vae"}, redraw={"mode": mode}, feedback={"parameters": parameters})
    before = setting.redraw.masks.state_dict()
    before = {name: copy.deepcopy(value) for name, value in before.items()}
    check_feedback_moves_phi_alone(setting)
    for name, weight in setting.redraw.masks.state_dict()["network"].items():
        assert torch.equal(weight, before["network"][name]), "feedback leaves the shapes alone"


# ---------------------------------------------------------------------- frozen weights of the segmentation network


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_frozen_weights_of_the_segmentation_network_take_no_part(parameters):
    """A trainer that trains only some layers makes no step with the others."""
    whole, setting = (
        Setting(smooth=True, mixing=REDRAW, feedback={"parameters": parameters}, deformation=STILL) for _ in range(2)
    )
    for name, weight in setting.network.named_parameters():
        weight.requires_grad_("seg_layers" in name)
    expected = unrolled(setting)
    for each in (whole, setting):
        each.feedback()
    assert cosine(taken(setting), expected) > 0.9999
    assert relative_error(taken(setting), expected) < 0.005
    assert relative_error(taken(whole), expected) > 0.05


def test_the_step_is_that_of_the_optimisers_groups():
    """Groups with other rates, with none, and weights that are in no group."""
    setting = Setting(smooth=True, mixing=REDRAW, feedback={"parameters": "weights"}, deformation=STILL)
    heads, encoder, decoder, _ = (
        [weight for name, weight in setting.network.named_parameters() if name.startswith(prefix)]
        for prefix in ("decoder.seg_layers", "encoder.stages.0", "decoder.stages", "encoder.stages.1")
    )
    groups = [{"params": heads}, {"params": encoder, "lr": ETA / 10}, {"params": decoder, "lr": 0.0}]
    rate, shares = modelled_step(setting.network, torch.optim.AdamW(groups, lr=ETA))
    assert rate == ETA
    assert {name.split(".")[1]: share for name, share in shares.items()} == {"seg_layers": 1.0, "stages": pytest.approx(0.1)}
    expected, ignoring = unrolled(setting, shares=shares), unrolled(setting)
    segmenter = replace(setting.segmenter, shares=shares)
    setting.loop.feedback_step(segmenter, setting.image, setting.labels, setting.held_out, rate)
    assert cosine(taken(setting), expected) > 0.9999
    assert relative_error(taken(setting), expected) < 0.005
    assert relative_error(ignoring, expected) > 0.5


def test_an_optimiser_that_moves_nothing_has_no_step():
    network = torch.nn.Linear(2, 2)
    assert modelled_step(network, torch.optim.SGD(network.parameters(), 0.0)) == (0.0, {})
    rate, shares = modelled_step(network.requires_grad_(False), torch.optim.SGD(network.parameters(), 0.1))
    assert (rate, shares) == (0.0, {})


# ---------------------------------------------------------------------- rates


def distance_to_real(setting):
    """L1 of drawn and real images, with fixed style noise."""
    with torch.no_grad():
        image = setting.image / setting.redraw.deviation
        condition = setting.real_condition(image, setting.labels)
        style = torch.randn(len(image), *setting.generator.style_shape(image.shape[2:]), generator=seeded())
        return float((setting.generator.sample(condition, style) - image).abs().mean())


@pytest.mark.parametrize("rate, spoils", [(None, False), (3e-3, True)], ids=["default", "3e-3"])
def test_at_the_default_rate_feedback_through_weights_does_not_undo_what_the_generator_learned(rate, spoils):
    setting = Setting(mixing=REDRAW, feedback={"parameters": "weights", "learning_rate": rate})
    setting.learn(40)
    setting.vary()
    before = distance_to_real(setting)
    for _ in range(40):
        assert setting.feedback(1) == ""
    rise = distance_to_real(setting) / before - 1
    assert (rise > 0.1) == spoils
    assert spoils or rise < 0.03


def test_rates_by_what_is_moved():
    rates = {parameters: Setting(feedback={"parameters": parameters}).loop.feedback.optimizer for parameters in PARAMETERS}
    assert {name: own.param_groups[0]["lr"] for name, own in rates.items()} == {
        "architecture": 3e-3, "weights": 1e-5, "policy": 3e-3,
    }  # fmt: skip


# ---------------------------------------------------------------------- zero, not finite, refused


def silent(setting):
    """Makes the held-out loss constant, so that feedback is zero."""
    loss = setting.loss
    setting.loss = lambda logits, target: 0.0 * loss(logits, target)
    return loss


@pytest.mark.parametrize("parameters", ["architecture", "policy"])
def test_a_feedback_that_stays_zero_is_switched_off_and_says_so_once(parameters, monkeypatch):
    monkeypatch.setattr(feedback_module, "ZERO_STEPS", 3)
    setting = Setting(feedback={"parameters": parameters})
    loss = silent(setting)
    for _ in range(2):
        assert setting.feedback() == ""
    setting.loss = loss
    assert setting.feedback() == ""
    before = setting.tensors()
    silent(setting)
    assert [setting.feedback() for _ in range(4)] == ["", "", OFF, ""]
    setting.loss = loss
    assert setting.feedback() == "", "it stays off"
    assert all(same(before[name], parts) for name, parts in setting.tensors().items()), "no step by momentum"
    assert not setting.loop.feedback.active
    other = Setting(feedback={"parameters": parameters})
    other.loop.load_state_dict(setting.loop.state_dict())
    assert not other.loop.feedback.active


def test_it_takes_a_hundred_zero_steps():
    setting = Setting()
    setting.loop.feedback.load_state_dict({**setting.loop.feedback.state_dict(), "zero_steps": 98})
    silent(setting)
    assert [setting.feedback(1), setting.feedback(1)] == ["", OFF]
    assert ZERO_STEPS == 100
    assert "100 times in a row" in OFF


def test_a_feedback_that_is_not_finite_returns_to_the_last_state_and_ends_it_in_the_end():
    setting = Setting()
    setting.held_out.network_input[0, 0, 0, 0] = float("nan")
    before = setting.tensors()
    for _ in range(5):
        text = setting.feedback()
        assert "feedback is not finite" in text
        assert "returns to its last finite state" in text
        assert all(same(before[name], parts) for name, parts in setting.tensors().items())
    with pytest.raises(FloatingPointError, match="feedback is not finite"):
        setting.feedback()


def test_hypergradients_are_synchronised_before_use():
    setting = Setting()
    setting.loop.feedback.synchronise = lambda tensors: [tensor.zero_() for tensor in tensors]
    setting.feedback()
    assert setting.loop.means()["hypergradient_norm"] == 0


def test_without_feedback_nothing_is_moved_by_it():
    setting = Setting(feedback={"enabled": False})
    assert setting.loop.feedback is None
    before = setting.tensors()
    assert setting.feedback() == ""
    assert all(same(before[name], parts) for name, parts in setting.tensors().items())
    setting.learn()
    assert not same(before["architecture"], setting.tensors()["architecture"])


@pytest.mark.parametrize("parameters, learned", [("architecture", False), ("weights", True), ("policy", True)])
def test_architecture_is_left_to_the_feedback_only_where_it_is_phi(parameters, learned):
    setting = Setting(feedback={"parameters": parameters})
    before = setting.tensors()
    setting.learn()
    after = setting.tensors()
    assert same(before["architecture"], after["architecture"]) != learned
    assert not same(before["weights"], after["weights"])
    assert not same(before["discriminator"], after["discriminator"])
    assert same(before["policy"], after["policy"])


def test_micro_batches_show_the_generator_in_every_patch():
    setting = Setting()
    assert setting.loop.feedback.choose(3, seeded()) == {"redraw": [0, 1, 2]}


@pytest.mark.parametrize("sources", [{"deformation": 1.0}, {"deformation": 1.0, "redraw": 1.0}])
def test_a_policy_is_moved_by_micro_batches_without_a_style_too(sources):
    """Without a tone curve, deformed pairs have no gradient to the style factor."""
    setting = Setting(mixing={"sources": sources}, intensity={"tone": 0.0}, feedback={"parameters": "policy"})
    for _ in range(8):
        setting.feedback(2)
    assert setting.sampler.policy.log_deformation != 0
    assert (setting.sampler.policy.log_style != 0) == ("redraw" in sources)


def test_micro_batches_of_the_policy_come_from_the_sources_as_in_training():
    setting = Setting(mixing={"sources": {"deformation": 3.0, "redraw": 1.0}}, feedback={"parameters": "policy"})
    chosen = setting.loop.feedback.choose(4000, seeded())
    assert sorted(slot for slots in chosen.values() for slot in slots) == list(range(4000))
    assert len(chosen["deformation"]) == pytest.approx(3000, abs=150)


def built(**sections):
    return BilevelLoop(configured(**sections), planned(2), CODECS["labels"], 1, CPU)


def test_a_policy_that_no_pair_depends_on_is_refused_and_the_error_says_what_to_set():
    still = {"deformation": {"displacement": 0.0}, "intensity": {"tone": 0.0, "shift": 0.0}}
    policy = {"feedback": {"parameters": "policy"}}
    for sources in (DEFORMATION, REDRAW):
        with pytest.raises(GenSegError, match=r"without deformation.displacement, intensity.tone and .* no pair depends on it"):
            built(mixing=sources, **still, **policy)
    assert built(mixing=DEFORMATION, **policy, deformation=still["deformation"]).feedback.phi
    assert built(mixing=DEFORMATION, **policy, intensity=still["intensity"]).feedback.phi
    assert built(mixing=REDRAW, **still, **policy, masks={"source": "shape_vae"}).feedback.phi
    assert built(mixing=REDRAW, **still, **policy, redraw={"mode": "tissue"}).feedback.phi
    assert built(mixing=REDRAW, **policy, deformation=still["deformation"], intensity={"tone": 0.0}).feedback.phi


@pytest.mark.parametrize("parameters", ["architecture", "weights"])
def test_a_generator_that_no_pair_depends_on_is_refused(parameters):
    feedback = {"feedback": {"parameters": parameters}}
    with pytest.raises(GenSegError, match=r"mixing.sources has no source with a generator; add `redraw`"):
        built(mixing=DEFORMATION, **feedback)
    with pytest.raises(GenSegError, match=r"in redraw.mode 'residual' without intensity.shift what the generator draws cancels"):
        built(intensity={"shift": 0.0}, **feedback)
    for shown in ({"redraw": {"mode": "tissue"}}, {"masks": {"source": "shape_vae"}}):
        assert built(intensity={"shift": 0.0}, **feedback, **shown).feedback.phi


@pytest.mark.parametrize("family, parameters", [("gmm", "architecture"), ("gmm", "weights")])
def test_phi_that_a_generator_lacks_is_refused(family, parameters):
    with pytest.raises(GenSegError, match=rf"feedback.parameters is '{parameters}', but generator '{family}' has no such"):
        built(generator={"name": family}, feedback={"parameters": parameters})
