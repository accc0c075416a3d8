import contextlib
import copy
import io
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn
from torch.func import functional_call

from nnunetv2_genseg import coupling, hypergradient
from nnunetv2_genseg.config import GenSegConfig, checked
from nnunetv2_genseg.coupling import FURTHER, LARGEST_SHARE, Coupling, Segmenter, stage_at
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import ImageKind
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.masks import class_sizes
from nnunetv2_genseg.policy import FACTORS

CPU = torch.device("cpu")
ETA = 0.01
CODECS = {
    "labels": LabelCodec.from_labels([1, 2], None),
    "regions": LabelCodec.from_regions([[1, 2], 2], False),
    "ignore": LabelCodec.from_labels([1, 2], 3),
    "regions+ignore": LabelCodec.from_regions([[1, 2], 2], True),
}
MODES = ["mask", "tissue", "differential"]


def configured(**topics):
    settings = {"generator": {"width": 0.5, "style_channels": 3}, "conditioning": {"tissue_classes": 3}}
    for topic, values in topics.items():
        settings[topic] = {**settings.get(topic, {}), **values} if isinstance(values, dict) else values
    return checked(GenSegConfig, settings, "test")


def planned(dims):
    return NetworkPlan((16,) * dims if dims == 2 else (8,) * dims, (8, 8), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)


def real_pairs(codec, dims, channels, count=3, seed=0):
    """Images whose intensity follows the class, with noise; the ignore label in a corner where the codec has one."""
    noise = torch.Generator().manual_seed(seed)
    extent = planned(dims).patch_size[0]
    labels = torch.zeros(count, *planned(dims).patch_size, dtype=torch.long)
    quarter = extent // 4
    for i in range(count):
        start = quarter // 2 + i % 2
        labels[(i, *(slice(start, start + 2 * quarter),) * dims)] = 1
        labels[(i, *(slice(start, start + quarter),) * dims)] = 2
        if codec.has_ignore:
            labels[(i, *(slice(-quarter, None),) * dims)] = 3
    image = torch.randn(count, channels, *labels.shape[1:], generator=noise) * 0.3 + labels[:, None] % 3
    return image, labels


class Setting:
    """A coupling beside a tiny network of nnU-Net's and nnU-Net's loss."""

    def __init__(self, dims=2, channels=1, codec="labels", **topics):
        self.codec = CODECS[codec]
        self.coupling = Coupling(configured(**topics), planned(dims), self.codec, channels, CPU)
        outputs = 2 if self.codec.regions is not None else 3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.network = PlainConvUNet(
                channels, 2, (4, 8), nn.Conv2d if dims == 2 else nn.Conv3d, 3, (1, 2), 1, outputs, 1, conv_bias=True,
                norm_op=nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
                nonlin=nn.LeakyReLU, deep_supervision=False,
            )  # fmt: skip
        dice = {"batch_dice": True, "smooth": 1e-5, "ddp": False}
        if self.codec.regions is not None:
            self.loss = DC_and_BCE_loss({}, {**dice, "do_bg": True}, use_ignore_label=self.codec.has_ignore,
                                        dice_class=MemoryEfficientSoftDiceLoss)  # fmt: skip
        else:
            ignore = 3 if self.codec.has_ignore else None
            self.loss = DC_and_CE_loss({**dice, "do_bg": False}, {}, ignore_label=ignore,
                                       dice_class=MemoryEfficientSoftDiceLoss)  # fmt: skip
        self.image, self.labels = real_pairs(self.codec, dims, channels)
        self.held_image, self.held_labels = real_pairs(self.codec, dims, channels, count=2, seed=1)
        self.coupling.pairs.observe(self.image, self.labels)

    def to_target(self, labels):
        return self.codec.to_target(labels, torch.bool if self.codec.regions is not None else torch.int16)

    @property
    def segmenter(self):
        return Segmenter(self.network, self.loss, lambda image, labels: image, self.to_target)

    def feedback(self, gamma=1.0):
        self.coupling.feedback(self.segmenter, self.image, self.labels, self.held_image, self.held_labels, gamma, ETA)

    def tensors(self):
        """All parameters of the generator, its discriminator and the policy, by what they belong to."""
        generator, policy = self.coupling.generator, self.coupling.pairs.policy
        groups = {
            "architecture": generator.architecture(),
            "weights": generator.weights(),
            "discriminator": list(generator.discriminator.parameters()),
            "policy": list(policy.parameters()),
        }
        return {name: [part.detach().clone() for part in parts] for name, parts in groups.items()}


def through_a_file(state):
    """What a checkpoint makes of it; fails for anything but plain tensors, numbers, strings, lists and dictionaries."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_stages_over_the_schedule():
    config = configured(
        schedule={"warmup": 0.2, "ramp": 0.2, "tail": 0.2}, mixing={"gamma": 2.0}, feedback={"start": 0.5}
    )
    gammas = {0.0: 0.0, 0.19: 0.0, 0.2: 0.0, 0.3: 1.0, 0.4: 2.0, 0.79: 2.0, 0.8: 0.0, 0.99: 0.0}
    assert {at: stage_at(at, config).gamma for at in gammas} == pytest.approx(gammas)
    assert [stage_at(at, config).feedback for at in (0.0, 0.3, 0.49, 0.5, 0.79, 0.81)] == [False] * 3 + [True] * 2 + [False]
    assert [stage_at(at, config).tail for at in (0.0, 0.5, 0.79, 0.81, 0.99)] == [False] * 3 + [True] * 2


def test_gamma_never_falls_before_the_tail():
    config = configured()
    gammas = [stage_at(i / 1000, config).gamma for i in range(849)]
    assert gammas == sorted(gammas)
    assert gammas[-1] == config.mixing.gamma


def test_without_a_ramp_full_weight_follows_the_warmup():
    config = configured(schedule={"warmup": 0.2, "ramp": 0.0, "tail": 0.0})
    assert [stage_at(at, config).gamma for at in (0.19, 0.2, 0.999)] == [0.0, 1.0, 1.0]
    assert not stage_at(0.999, config).tail


def test_feedback_ends_while_synthetic_pairs_go_on():
    config = configured(feedback={"start": 0.4, "end": 0.6})
    assert [stage_at(at, config).feedback for at in (0.39, 0.4, 0.59, 0.6, 0.8)] == [False, True, True, False, False]
    assert stage_at(0.6, config).gamma == stage_at(0.8, config).gamma == config.mixing.gamma


def test_feedback_waits_for_the_warmup_and_for_being_enabled():
    early = configured(schedule={"warmup": 0.4}, feedback={"start": 0.1})
    assert not stage_at(0.3, early).feedback
    assert stage_at(0.5, early).feedback
    assert not stage_at(0.5, configured(feedback={"enabled": False})).feedback


@pytest.mark.parametrize("share, batch, expected", [(1.0, 2, 2), (0.5, 4, 2), (0.1, 2, 1), (2.0, 3, 6)])
def test_synthetic_count_is_the_share_and_at_least_one(share, batch, expected):
    assert Setting(mixing={"share": share}).coupling.synthetic_count(batch) == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_drawn_pairs_are_finite_seeded_and_without_graph(dims, channels, codec, mode):
    first, again, other = (
        Setting(dims, channels, codec, conditioning={"mode": mode}, seed=seed) for seed in (5, 5, 6)
    )
    pairs = first.coupling.draw(first.image, first.labels, 5)
    assert pairs.image.shape == (5, *first.image.shape[1:])
    assert pairs.labels.shape == (5, *first.labels.shape[1:])
    assert pairs.labels.dtype == torch.long
    assert torch.isfinite(pairs.image).all()
    assert not pairs.image.requires_grad
    for i in range(5):
        assert set(pairs.labels[i].unique().tolist()) <= set(first.labels[i % 3].unique().tolist())
    repeated = again.coupling.draw(again.image, again.labels, 5)
    assert torch.equal(repeated.image, pairs.image)
    assert torch.equal(repeated.labels, pairs.labels)
    assert not torch.equal(other.coupling.draw(other.image, other.labels, 5).image, pairs.image)
    assert not torch.equal(first.coupling.draw(first.image, first.labels, 5).image, pairs.image)


def test_fewer_pairs_than_patches_are_drawn_from_the_last_which_hold_foreground():
    still = {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0}
    plain = {"mode": "deformation", "intensity_shift": 0.0, "tone": 0.0}
    setting = Setting(conditioning=plain, masks=still, feedback={"enabled": False})
    setting.coupling.pairs.observe(setting.image, setting.labels)
    pairs = setting.coupling.draw(setting.image, setting.labels, 2)
    torch.testing.assert_close(pairs.image, setting.image[-2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("intensity", [float("nan"), float("inf"), -1e37, 1e5])
def test_draw_refuses_a_broken_generator(intensity):
    setting = Setting(conditioning={"mode": "tissue"})
    with torch.no_grad():
        setting.coupling.generator.network.head.bias.fill_(intensity)
    with pytest.raises(FloatingPointError, match="a synthetic image holds NaN, infinity or intensities far from the real ones"):
        setting.coupling.draw(setting.image, setting.labels, 1)


@pytest.mark.parametrize("mode", MODES)
def test_learning_lowers_the_distance_to_the_real_images(mode):
    setting = Setting(conditioning={"mode": mode}, generator={"learning_rate": 5e-3})
    setting.coupling.learn(setting.image, setting.labels)
    first = setting.coupling.report()["l1"]
    for _ in range(40):
        setting.coupling.learn(setting.image, setting.labels)
    setting.coupling.report()
    setting.coupling.learn(setting.image, setting.labels)
    assert setting.coupling.report()["l1"] < 0.7 * first


@pytest.mark.parametrize("mode", ["tissue", "differential"])
@pytest.mark.parametrize("family", ["gan", "vae", "diffusion", "gmm"])
def test_the_units_of_the_intensities_do_not_matter(family, mode):
    """nnU-Net's normalisations leave images in [0, 1], or as they are in the file; powers of two keep the bits."""
    off = {"feedback": {"enabled": False}, "generator": {"name": family}, "conditioning": {"mode": mode, "intensity_shift": 0.5}}
    drawn = []
    for units in ((1.0, 1.0), (256.0, 0.125)):
        setting, scale = Setting(channels=2, **off), torch.tensor(units).view(2, 1, 1)
        setting.coupling.pairs.variance.zero_()
        setting.coupling.pairs.observed.zero_()
        for _ in range(3):
            setting.coupling.learn(scale * setting.image, setting.labels)
        drawn.append(setting.coupling.draw(scale * setting.image, setting.labels, 4).image / scale)
    assert torch.equal(*drawn)


def test_learning_takes_note_of_the_largest_structures():
    setting = Setting()
    setting.coupling.pairs.largest.zero_()
    setting.coupling.learn(setting.image, setting.labels)
    assert torch.equal(setting.coupling.pairs.largest, class_sizes(setting.labels, 3).amax(dim=0))


def check_feedback_moves_phi_alone(setting):
    parameters = setting.coupling.config.feedback.parameters
    before = setting.tensors()
    segmenter = copy.deepcopy(setting.network.state_dict())
    trained = list(setting.network.parameters())
    random_states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    setting.feedback()

    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert np.array_equal(np.random.get_state()[1], random_states[1])
    assert random.getstate() == random_states[2]
    for name, weight in setting.network.state_dict().items():
        assert torch.equal(weight, segmenter[name]), name
    for weight, old in zip(setting.network.parameters(), trained, strict=True):
        assert weight is old, "the segmenter's optimiser would step on weights that the network no longer has"
        assert weight.grad is None
        assert weight.requires_grad

    after = setting.tensors()
    assert not same(before[parameters], after[parameters])
    assert same(before["discriminator"], after["discriminator"])
    assert same(before["policy"], after["policy"]) == (parameters != "policy")
    if parameters == "architecture":
        alphas = {id(alpha) for alpha in setting.coupling.generator.architecture()}
        for own, old, new in zip(setting.coupling.generator.weights(), before["weights"], after["weights"], strict=True):
            assert torch.equal(old, new) or id(own) in alphas
    if parameters == "policy":
        assert same(before["weights"], after["weights"])
    report = setting.coupling.report()
    assert report["hypergradient"] > 0
    assert np.isfinite(report["feedback"])
    chosen = {name: value for name, value in report.items() if name in (*FACTORS, LARGEST_SHARE)}
    if parameters == "policy":
        assert chosen == setting.coupling.pairs.policy.factors()
    elif parameters == "architecture":
        share = max(alpha.softmax(0).max().item() for alpha in setting.coupling.generator.architecture())
        assert chosen == {LARGEST_SHARE: share}
        assert share > 1 / 3
    else:
        assert not chosen


@pytest.mark.parametrize("method", ["exact", "finite_difference", "last_layers"])
@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_feedback_moves_phi_and_nothing_else(parameters, method):
    check_feedback_moves_phi_alone(Setting(feedback={"parameters": parameters, "method": method}))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_feedback_works_with_every_kind_of_target(codec, mode, channels):
    check_feedback_moves_phi_alone(Setting(2, channels, codec, conditioning={"mode": mode}))


@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
@pytest.mark.parametrize("mode", MODES)
def test_feedback_in_3d(parameters, mode):
    check_feedback_moves_phi_alone(Setting(3, conditioning={"mode": mode}, feedback={"parameters": parameters}))


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
@pytest.mark.parametrize("mode", MODES)
def test_feedback_descends_the_unrolled_loss(mode, method, lookahead):
    """Adam's first step is −learning rate · sign of the gradient, which unrolled autograd finds on its own."""
    setting = Setting(
        conditioning={"mode": mode}, feedback={"parameters": "weights", "method": method, "lookahead": lookahead}
    )
    setting.network.apply(lambda part: setattr(part, "negative_slope", 1.0) if hasattr(part, "negative_slope") else None)
    phi = setting.coupling.phi
    rng = torch.Generator().manual_seed(0)
    rng.set_state(setting.coupling.rng.get_state())
    pairs = setting.coupling.pairs.draw(setting.coupling.generator, setting.image, setting.labels, rng)
    theta = dict(setting.network.named_parameters())
    logits = functional_call(setting.network, theta, (pairs.image,), tie_weights=False)
    value = setting.loss(logits, setting.to_target(pairs.labels))
    slopes = torch.autograd.grad(0.5 * value, list(theta.values()), create_graph=True)
    v_at = {name: weight - ETA * slope * lookahead for (name, weight), slope in zip(theta.items(), slopes)}
    logits = functional_call(setting.network, v_at, (setting.held_image,), tie_weights=False)
    held = setting.loss(logits, setting.to_target(setting.held_labels))
    v = torch.autograd.grad(held, list(v_at.values()), retain_graph=True)
    product = sum((slope * part.detach()).sum() for slope, part in zip(slopes, v))
    expected = torch.cat([-ETA * part.flatten() for part in torch.autograd.grad(product, phi)])

    before = torch.cat([weight.detach().flatten() for weight in phi])
    setting.feedback(gamma=0.5)
    moved = torch.cat([weight.detach().flatten() for weight in phi]) - before
    clear = expected.abs() > 0.2 * expected.abs().max()
    assert clear.sum() >= 3
    assert torch.equal(moved[clear].sign(), -expected[clear].sign())
    torch.testing.assert_close(setting.coupling.report()["hypergradient"], float(expected.norm()), rtol=0.02, atol=0)


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize(
    "mode, masks", [("deformation", "deformed"), *((mode, masks) for mode in MODES for masks in ("deformed", "learned"))]
)
def test_the_slope_over_the_deformation_is_that_of_the_feedback_loss_after_a_real_step(mode, masks, lookahead):
    setting = Setting(
        conditioning={"mode": mode},
        masks={"smallest": 0.01, **({"source": "learned", "elastic": 0.0} if masks == "learned" else {})},
        feedback={"parameters": "policy", "lookahead": lookahead},
    )
    for _ in range(60 if masks == "learned" else 3):
        setting.coupling.learn(setting.image, setting.labels)
    setting.coupling.pairs.largest *= 2  # so that masks of other sizes and forms are taken
    setting.coupling.pairs.topology.fewest.fill_(0)
    setting.coupling.pairs.topology.most.fill_(1000)
    deformation, state = setting.coupling.pairs.policy.log_deformation, setting.coupling.rng.get_state()

    step = ETA if lookahead else ETA / 100  # the derivative is taken after the step or before it

    def held_loss_after_a_step(further):
        rng = torch.Generator()
        rng.set_state(state)
        with torch.no_grad():
            deformation.fill_(further)
            pairs = setting.coupling.pairs.draw(setting.coupling.generator, setting.image, setting.labels, rng)
            deformation.fill_(0.0)
        stepped = copy.deepcopy(setting.network).double()
        loss = setting.coupling.synthetic_loss(stepped(pairs.image.double()), pairs.labels, setting.segmenter)
        slopes = torch.autograd.grad(loss, list(stepped.parameters()))
        with torch.no_grad():
            for weight, slope in zip(stepped.parameters(), slopes, strict=True):
                weight -= step * slope
            return float(setting.loss(stepped(setting.held_image.double()), setting.to_target(setting.held_labels))), rng

    (further, after), (less, _) = held_loss_after_a_step(FURTHER), held_loss_after_a_step(-FURTHER)
    expected = (further - less) / (2 * FURTHER) * ETA / step
    setting.feedback()
    found = float(setting.coupling.phi_optimizer.state[deformation]["exp_avg"]) / 0.5  # Adam's after one step
    assert expected != 0
    assert found == pytest.approx(expected, rel=0.1 if lookahead else 0.02)
    assert torch.equal(setting.coupling.rng.get_state(), after.get_state()), "as if drawn once"


def test_the_slope_over_a_deformation_that_changes_nothing_is_nothing(monkeypatch):
    """Rounding of two equal passes, which a GPU may show, would make whole steps of Adam."""
    setting = Setting(feedback={"parameters": "policy"})
    monkeypatch.setattr(setting.coupling.pairs.policy, "deforming", lambda further: contextlib.nullcontext())
    passed, alignment = [], hypergradient.alignment

    def rounded(*args, **kwargs):
        passed.append(1)
        return alignment(*args, **kwargs) * (1 + 1e-7 * len(passed))

    monkeypatch.setattr(hypergradient, "alignment", rounded)
    setting.feedback()
    assert setting.coupling.report()["hypergradient"] > 0
    assert setting.coupling.pairs.policy.log_deformation == 0


@pytest.mark.parametrize("parameters", ["architecture", "weights"])
def test_a_policy_that_is_not_moved_costs_no_further_drawing(parameters, monkeypatch):
    setting = Setting(feedback={"parameters": parameters})
    drawn, draw = [], setting.coupling.pairs.draw
    monkeypatch.setattr(setting.coupling.pairs, "draw", lambda *args: drawn.append(1) or draw(*args))
    setting.feedback()
    assert len(drawn) == 1


def test_feedback_with_deep_supervision():
    setting = Setting()
    setting.network.decoder.deep_supervision = True
    full = setting.loss
    setting.loss = lambda logits, targets: sum(full(a, b) for a, b in zip(logits, targets, strict=True))
    single = setting.to_target
    setting.to_target = lambda labels: [single(labels)]  # a network of two stages has one head
    check_feedback_moves_phi_alone(setting)


@pytest.mark.parametrize("parameters", ["architecture", "policy"])
@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_a_feedback_that_stays_zero_stops_the_training(parameters, method, monkeypatch):
    monkeypatch.setattr(coupling, "ZERO_STEPS", 3)
    setting = Setting(feedback={"parameters": parameters, "method": method})
    before = setting.tensors()
    for gamma in (0.0, 0.0, 1.0, 0.0, 0.0):
        setting.feedback(gamma)
        if gamma:
            before = setting.tensors()
        assert all(same(before[name], parts) for name, parts in setting.tensors().items())
        setting.coupling.report()
    with pytest.raises(RuntimeError, match="feedback is zero"):
        setting.feedback(0.0)


def test_a_feedback_that_is_zero_now_and_then_is_none():
    """Without a transplant in the micro-batch nothing that the generator draws shows in mode `differential`."""
    changes = {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0, "recombination": 0.5}
    setting = Setting(conditioning={"intensity_shift": 0.0, "tone": 0.0}, masks=changes)
    norms = []
    for _ in range(12):
        setting.feedback()
        norms.append(setting.coupling.losses["hypergradient"][-1])
    assert min(norms) == 0 < max(norms)
    assert setting.coupling.report()["hypergradient"] > 0


def test_a_feedback_that_is_not_finite_stops_the_training():
    setting = Setting()
    setting.held_image[0, 0, 0, 0] = float("nan")
    before = setting.tensors()
    with pytest.raises(FloatingPointError, match="feedback is not finite"):
        setting.feedback()
    assert all(same(before[name], parts) for name, parts in setting.tensors().items())


def test_hypergradients_are_synchronised_before_use():
    setting = Setting()
    setting.coupling.synchronise = lambda tensors: [tensor.zero_() for tensor in tensors]
    setting.feedback()
    assert setting.coupling.losses["hypergradient"] == [0]


def test_without_feedback_there_is_no_phi():
    setting = Setting(feedback={"enabled": False})
    assert setting.coupling.phi == []
    with pytest.raises(RuntimeError, match="not enabled"):
        setting.feedback()
    before = setting.tensors()
    setting.coupling.learn(setting.image, setting.labels)
    assert not same(before["architecture"], setting.tensors()["architecture"])


@pytest.mark.parametrize("parameters, learnt", [("architecture", False), ("weights", True), ("policy", True)])
def test_architecture_is_left_to_the_feedback_only_where_it_is_phi(parameters, learnt):
    setting = Setting(feedback={"parameters": parameters})
    before = setting.tensors()
    setting.coupling.learn(setting.image, setting.labels)
    after = setting.tensors()
    assert same(before["architecture"], after["architecture"]) != learnt
    assert not same(before["weights"], after["weights"])
    assert not same(before["discriminator"], after["discriminator"])
    assert same(before["policy"], after["policy"])


@pytest.mark.parametrize("codec", ["labels", "ignore"])
def test_policy_weighs_every_pair_by_its_classes(codec):
    setting = Setting(codec=codec, feedback={"parameters": "policy"})
    labels = setting.labels[:2].clone()
    labels[1][labels[1] == 2] = 1
    with torch.no_grad():
        setting.coupling.pairs.policy.log_worth.copy_(torch.tensor([0.5, -0.8]))
        logits = setting.network(setting.image[:2])
        found = setting.coupling.synthetic_loss(logits, labels, setting.segmenter)
        single = [setting.loss(logits[i : i + 1], setting.to_target(labels[i : i + 1])) for i in range(2)]
        bound = np.log(3)
        both, first = (float(np.exp(bound * np.tanh(value / bound))) for value in (-0.15, 0.5))
    torch.testing.assert_close(found, (both * single[0] + first * single[1]) / (both + first))


def test_policy_weighs_lists_of_logits():
    setting = Setting(feedback={"parameters": "policy"})
    with torch.no_grad():
        setting.coupling.pairs.policy.log_worth.copy_(torch.tensor([0.5, -0.8]))
        logits = setting.network(setting.image)
        alone = setting.coupling.synthetic_loss(logits, setting.labels, setting.segmenter)
        deep = Segmenter(
            setting.network, lambda z, t: setting.loss(z[0], t[0]), lambda x, y: x, lambda y: [setting.to_target(y)]
        )
        listed = setting.coupling.synthetic_loss([logits], setting.labels, deep)
    torch.testing.assert_close(alone, listed)


@pytest.mark.parametrize("parameters", ["architecture", "weights"])
def test_worth_is_used_only_where_the_policy_is_phi(parameters):
    setting = Setting(feedback={"parameters": parameters})
    with torch.no_grad():
        setting.coupling.pairs.policy.log_worth.copy_(torch.tensor([0.7, -0.7]))
        logits = setting.network(setting.image)
        found = setting.coupling.synthetic_loss(logits, setting.labels, setting.segmenter)
        assert torch.equal(found, setting.loss(logits, setting.to_target(setting.labels)))


def test_a_policy_that_no_pair_depends_on_is_refused_and_the_error_says_what_to_set():
    without = {"conditioning": {"mode": "deformation", "tone": 0.0}, "masks": {"elastic": 0.0}}
    policy = without | {"feedback": {"parameters": "policy"}}

    def build(classes=1, **changes):
        topics = {topic: values | changes.get(topic, {}) for topic, values in policy.items()}
        return Coupling(configured(**topics), planned(2), LabelCodec.from_labels(range(1, 1 + classes), None), 1, CPU)

    for hidden in ({}, {"mode": "differential", "intensity_shift": 0.0}):
        with pytest.raises(ValueError, match=r"without conditioning.tone and masks.elastic, .* no pair depends on it; set one"):
            build(conditioning=hidden)
        assert build(conditioning=hidden, classes=2).phi
        assert build(conditioning=hidden, masks={"elastic": 0.1}).phi
        assert build(conditioning=hidden | {"tone": 0.1}).phi
    assert build(conditioning={"mode": "differential"}).phi
    assert build(conditioning={"mode": "differential", "intensity_shift": 0.0}, masks={"growth": 0.1}).phi


@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_a_restored_coupling_continues_as_if_nothing_had_happened(parameters):
    def advance(setting):
        setting.coupling.learn(setting.image, setting.labels)
        setting.feedback()

    topics = {"feedback": {"parameters": parameters}}
    original, resumed = Setting(**topics), Setting(**topics, seed=9)
    advance(original)
    resumed.coupling.restore(through_a_file(original.coupling.state()))
    for setting in (original, resumed):
        advance(setting)
    for name, parts in original.tensors().items():
        assert same(parts, resumed.tensors()[name]), name
    assert torch.equal(original.coupling.pairs.largest, resumed.coupling.pairs.largest)
    drawn, again = (setting.coupling.draw(setting.image, setting.labels, 4) for setting in (original, resumed))
    assert torch.equal(drawn.image, again.image)
    assert torch.equal(drawn.labels, again.labels)


def test_processes_start_alike_and_draw_differently():
    setting = Setting()
    other = Coupling(setting.coupling.config, planned(2), setting.codec, 1, CPU, rank=1)
    other.pairs.observe(setting.image, setting.labels)
    assert same([*other.generator.weights()], [*setting.coupling.generator.weights()])
    first = setting.coupling.draw(setting.image, setting.labels, 2)
    assert not torch.equal(first.image, other.draw(setting.image, setting.labels, 2).image)
    other.restore(through_a_file(setting.coupling.state()))
    first = setting.coupling.draw(setting.image, setting.labels, 2)
    assert not torch.equal(first.image, other.draw(setting.image, setting.labels, 2).image)


def test_resumed_processes_do_not_repeat_what_they_drew_before():
    setting = Setting()
    other = Coupling(setting.coupling.config, planned(2), setting.codec, 1, CPU, rank=1)
    drawn = []
    for _ in range(2):
        drawn.append(other.rng.get_state())
        setting.coupling.learn(setting.image, setting.labels)
        other.restore(through_a_file(setting.coupling.state()))
    drawn.append(other.rng.get_state())
    first = [torch.rand(4, generator=torch.Generator().set_state(state)).tolist() for state in drawn]
    assert first[0] != first[1] != first[2] != first[0]


def test_report_averages_and_empties():
    coupling = Setting().coupling
    coupling.note("a", 1.0)
    coupling.note("a", 4.0)
    coupling.note("b", 7.0)
    assert coupling.report() == {"a": 2.5, "b": 7.0}
    assert coupling.report() == {}


def test_nothing_is_drawn_from_the_global_random_state(outside_random_state_untouched):
    setting = Setting()
    setting.coupling.learn(setting.image, setting.labels)
    assert setting.coupling.draw(setting.image, setting.labels, 2).image.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_coupling_starts_from_a_kept_generator_and_goes_back_to_it(dims, tmp_path):
    images = ImageKind(("T1",), ("ZScoreNormalization",), (False,), (1.0, 0.5, 0.5)[-dims:])

    def alone(seed):
        return Coupling(configured(seed=seed), planned(dims), CODECS["labels"], 1, CPU)

    original, other = alone(0), alone(1)
    image, labels = real_pairs(CODECS["labels"], dims, 1)
    original.learn(image, labels)
    original.keep_generator(tmp_path / "generator", images, {"Dataset901_Phantom2D": ["tr_000"]})
    expected = [weight.detach().clone() for weight in original.generator.weights()]

    def differs():
        return any(not torch.equal(one, two) for one, two in zip(expected, other.generator.weights(), strict=True))

    assert differs()
    with pytest.raises(ValueError, match=r"spacing is .* there"):
        other.start_from(tmp_path / "generator", replace(images, spacing=(3.0,) * dims))
    assert differs()
    assert other.start_from(tmp_path / "generator", images) == {"Dataset901_Phantom2D": ["tr_000"]}
    assert not differs()
    other.learn(image, labels)
    assert differs()
    other.recovery.undo("a fault")
    assert not differs()


def test_nothing_is_kept_where_nothing_draws(tmp_path):
    coupling = Coupling(
        configured(conditioning={"mode": "deformation"}, feedback={"enabled": False}), planned(2), CODECS["labels"], 1, CPU
    )
    for use in (partial(coupling.keep_generator, cases={}), coupling.start_from):
        with pytest.raises(ValueError, match="'deformation' has no generator to train or load; choose another mode"):
            use(tmp_path / "generator", ImageKind(("T1",), ("ZScoreNormalization",), (False,), (1.0, 1.0)))
    assert list(tmp_path.iterdir()) == []


def test_phi_that_a_generator_lacks_is_refused(monkeypatch):
    from nnunetv2_genseg.generators.gan import GanGenerator

    monkeypatch.setattr(GanGenerator, "architecture", lambda self: [])
    with pytest.raises(ValueError, match=r"feedback.parameters is 'architecture'.*choose another"):
        Setting()


LEARNED = {"source": "learned"}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dims", [2, 3])
def test_learned_masks_of_every_kind_of_target(dims, codec):
    first, again = (Setting(dims, codec=codec, masks={**LEARNED, "smallest": 0.05}) for _ in range(2))
    for setting in (first, again):
        for _ in range(60):
            setting.coupling.learn(setting.image, setting.labels)
        setting.coupling.pairs.largest *= 1.3  # all real structures are of one size, which no other shape has
    report = first.coupling.report()
    assert report["shape"] < 0.5
    assert report["shape_kl"] > 0
    pairs, repeated = (setting.coupling.draw(setting.image, setting.labels, 6) for setting in (first, again))
    assert torch.equal(pairs.labels, repeated.labels)
    assert torch.equal(pairs.image, repeated.image)
    assert pairs.learned > 0
    for i in range(6):
        assert set(pairs.labels[i].unique().tolist()) <= set(first.labels[i % 3].unique().tolist())


def test_patches_without_structures_do_not_count_as_masks_that_were_not_learned():
    setting = Setting(masks=LEARNED)
    setting.coupling.learn(setting.image, setting.labels)
    assert setting.coupling.draw(setting.image, setting.labels, 3).learned is not None
    assert setting.coupling.draw(setting.image, torch.zeros_like(setting.labels), 3).learned is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_feedback_is_alive_with_learned_masks(mode, parameters):
    setting = Setting(masks=LEARNED, conditioning={"mode": mode}, feedback={"parameters": parameters})
    before = [weight.clone() for weight in setting.coupling.shapes.network.parameters()]
    check_feedback_moves_phi_alone(setting)
    assert same(before, list(setting.coupling.shapes.network.parameters())), "feedback leaves the shapes alone"


def test_learned_masks_show_the_generator_where_nothing_else_does():
    """Without a shift of intensities and with deformation alone, mode `differential` cancels what is drawn."""
    nothing = {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0}
    unshifted = {"intensity_shift": 0.0, "tone": 0.0}
    with pytest.raises(ValueError, match=r"masks.source to 'learned'"):
        Setting(conditioning=unshifted, masks=nothing)
    setting = Setting(conditioning=unshifted, masks={**nothing, **LEARNED, "smallest": 0.05})
    for _ in range(60):
        setting.coupling.learn(setting.image, setting.labels)
    setting.coupling.report()
    setting.coupling.pairs.largest *= 1.3  # all real structures are of one size, which no other shape has
    for _ in range(4):
        setting.feedback()
    assert setting.coupling.report()["hypergradient"] > 0


def test_a_restored_coupling_with_learned_masks_continues_as_if_nothing_had_happened():
    original, resumed = Setting(masks=LEARNED), Setting(masks=LEARNED, seed=9)
    resumed.coupling.pairs.topology = type(resumed.coupling.pairs.topology)(2, CPU)
    for _ in range(3):
        original.coupling.learn(original.image, original.labels)
    resumed.coupling.restore(through_a_file(original.coupling.state()))
    for name in ("fewest", "most"):
        assert torch.equal(getattr(original.coupling.pairs.topology, name), getattr(resumed.coupling.pairs.topology, name))
    for setting in (original, resumed):
        setting.coupling.learn(setting.image, setting.labels)
    weights = [list(setting.coupling.shapes.average.parameters()) for setting in (original, resumed)]
    assert same(*weights)
    drawn, again = (setting.coupling.draw(setting.image, setting.labels, 4) for setting in (original, resumed))
    assert torch.equal(drawn.image, again.image)
    assert torch.equal(drawn.labels, again.labels)


def test_what_shapes_learnt_goes_back_with_the_generator():
    setting = Setting(masks=LEARNED)
    setting.coupling.learn(setting.image, setting.labels)
    setting.coupling.recovery.keep()
    good = [weight.clone() for weight in setting.coupling.shapes.network.parameters()]
    setting.coupling.learn(setting.image, setting.labels)
    assert not same(good, list(setting.coupling.shapes.network.parameters()))
    setting.coupling.recovery.undo("a test")
    assert same(good, list(setting.coupling.shapes.network.parameters()))


def test_learned_masks_draw_nothing_from_the_global_random_state(outside_random_state_untouched):
    setting = Setting(masks=LEARNED)
    setting.coupling.learn(setting.image, setting.labels)
    assert setting.coupling.draw(setting.image, setting.labels, 2).learned is not None
