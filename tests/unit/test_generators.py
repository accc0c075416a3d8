"""The networks that the families share, and the GAN; what all families have in common is in test_families.py."""

import copy
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators import GENERATORS, NetworkPlan, averaging, build_generator
from nnunetv2_genseg.generators import gan as gan_module
from nnunetv2_genseg.generators.augmentation import BRIGHTNESS, CONTRAST, augment
from nnunetv2_genseg.generators.averaging import MovingAverage
from nnunetv2_genseg.generators.flat_style import flat_length, split_style
from nnunetv2_genseg.generators.gan import R1_INTERVAL, STYLE_CHANNELS, gradient_penalty
from nnunetv2_genseg.generators.networks import (
    MIXED_CHANNELS,
    MixedKernelCell,
    MixedKernelUNet,
    NoiseInput,
    PatchDiscriminator,
    StyleModulation,
)
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

CPU = torch.device("cpu")
PLANS = {
    "2d": NetworkPlan((16, 16), (8, 8, 16), ((1, 1), (2, 2), (2, 2)), ((3, 3),) * 3),
    "2d elongated": NetworkPlan((8, 24), (8, 8), ((1, 1), (2, 4)), ((3, 3),) * 2),
    "3d": NetworkPlan((8, 8, 8), (8, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2),
    "3d anisotropic": NetworkPlan((4, 16, 16), (8, 8, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 3))),
    "one stage": NetworkPlan((8, 8), (8,), ((1, 1),), ((3, 3),)),
}
EVERY_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
CONDITIONS, STYLES = 3, 4
DIMS = pytest.mark.parametrize("dims", [2, 3], ids=["2d", "3d"])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(plan, channels=1, count=2, seed=0):
    """Condition, image and the GAN's style."""
    length = STYLE_CHANNELS + sum(noise(*extent).numel() for extent in plan.extents(plan.patch_size)[:-1])
    condition = noise(count, CONDITIONS, *plan.patch_size, seed=seed)
    image = noise(count, channels, *plan.patch_size, seed=seed + 1)
    return condition, image, noise(count, length, seed=seed + 2)


def gan(plan, channels=1, seed=0, separate=False, **settings):
    config, layout = GeneratorConfig(**settings), ConditionLayout(CONDITIONS, 0, channels)
    return build_generator(config, plan, layout, seed=seed, device=CPU, separate_architecture=separate)


def weights(generator):
    return [weight.detach().clone() for weight in generator.weights()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
@EVERY_PLAN
def test_drawn_images_have_the_shape_of_real_ones(plan, channels):
    condition, image, style = inputs(plan, channels)
    drawn = gan(plan, channels).sample(condition, style)
    assert drawn.shape == image.shape
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("channels", [1, 3])
@EVERY_PLAN
def test_discriminator_gives_one_coarse_map_of_scores(plan, channels):
    condition, image, _ = inputs(plan, channels)
    scores = PatchDiscriminator(plan, CONDITIONS, channels, 0.5)(condition, image)
    assert scores.shape[:2] == (2, 1)
    assert scores.ndim == image.ndim
    assert all(0 < coarse <= fine for coarse, fine in zip(scores.shape[2:], image.shape[2:]))


@EVERY_PLAN
def test_discriminator_looks_at_image_and_condition(plan):
    condition, image, _ = inputs(plan)
    condition.requires_grad_()
    image.requires_grad_()
    discriminator = PatchDiscriminator(plan, CONDITIONS, 1, 0.5)
    slopes = torch.autograd.grad(discriminator(condition, image).sum(), [condition, image])
    assert all(slope.any() for slope in slopes)


@EVERY_PLAN
def test_every_parameter_of_the_unet_receives_a_gradient(plan):
    condition, _, style = inputs(plan)
    generator = gan(plan)
    slopes = torch.autograd.grad(generator.sample(condition, style).square().sum(), generator.weights())
    assert all(torch.isfinite(slope).all() and slope.any() for slope in slopes)
    assert len(generator.architecture()) == 2 * len(plan.features) - 1
    assert {id(alpha) for alpha in generator.architecture()} < {id(weight) for weight in generator.weights()}


@EVERY_PLAN
def test_images_change_with_the_condition(plan):
    condition, _, style = inputs(plan)
    generator = gan(plan)
    assert (generator.sample(condition, style) - generator.sample(condition.flip(-1), style)).abs().max() > 1e-3


@EVERY_PLAN
def test_images_change_with_the_style_where_there_is_a_decoder(plan):
    condition, _, style = inputs(plan)
    generator = gan(plan)
    changed = (generator.sample(condition, style) - generator.sample(condition, -style)).abs().max() > 1e-3
    assert changed == (len(plan.features) > 1)


@DIMS
def test_zero_style_changes_nothing(dims):
    x = noise(2, 5, *(4,) * dims)
    modulation = StyleModulation(STYLES, 5)
    assert torch.equal(modulation(x, torch.zeros(2, STYLES)), x)
    assert not torch.allclose(modulation(x, noise(2, STYLES)), x)


def test_alpha_chooses_among_the_kernels():
    cell = MixedKernelCell(2, 4, (3, 3), (1, 1))
    x = noise(1, 2, 9, 9)
    for chosen, candidate in enumerate(cell.candidates):
        with torch.no_grad():
            cell.alpha.fill_(-100.0)
            cell.alpha[chosen] = 100.0
        torch.testing.assert_close(cell(x), cell.activation(cell.norm(candidate(x))))


@pytest.mark.parametrize("chosen, reach", [(0, 0), (1, 1), (2, 2)])
def test_kernels_reach_as_far_as_they_say(chosen, reach):
    candidate = MixedKernelCell(1, 1, (3, 3), (1, 1)).candidates[chosen]
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    (slope,) = torch.autograd.grad(candidate(x)[0, 0, 4, 4], x)
    reached = slope[0, 0].nonzero() - 4
    assert int(reached.abs().max()) == reach


def test_a_planned_kernel_of_one_keeps_slices_apart():
    cell = MixedKernelCell(1, 2, (1, 3, 3), (1, 1, 1))
    x = torch.zeros(1, 1, 5, 5, 5, requires_grad=True)
    mixed = sum(candidate(x) for candidate in cell.candidates)
    (slope,) = torch.autograd.grad(mixed[0, :, 2].sum(), x)
    assert slope[0, 0, 2].any()
    assert not slope[0, 0, [0, 1, 3, 4]].any()


@pytest.mark.parametrize("plan, movable", [("2d", (True, True)), ("3d", (True,) * 3), ("3d anisotropic", (False, True, True))])
def test_plan_says_which_axes_are_movable(plan, movable):
    assert PLANS[plan].movable_axes == movable
    assert PLANS[plan].dims == len(movable)


def test_width_scales_the_channels_down_to_four():
    assert PLANS["2d"].scaled(0.75) == (6, 6, 12)
    assert PLANS["2d"].scaled(0.1) == (4, 4, 4)
    assert sum(weight.numel() for weight in gan(PLANS["2d"], width=1.0).weights()) > sum(
        weight.numel() for weight in gan(PLANS["2d"], width=0.5).weights()
    )


@EVERY_PLAN
def test_learning_moves_both_networks_and_leaves_no_gradient(plan):
    condition, image, style = inputs(plan)
    generator = gan(plan)
    before, judge = weights(generator), [weight.detach().clone() for weight in generator.discriminator.parameters()]
    generator.training_step(condition, image, style)
    assert not same(before, weights(generator))
    assert not same(judge, list(generator.discriminator.parameters()))
    assert all(weight.grad is None for weight in [*generator.weights(), *generator.discriminator.parameters()])


def test_building_is_seeded_and_leaves_the_global_random_state(outside_random_state_untouched):
    first, again, other = (gan(PLANS["2d"], seed=seed) for seed in (1, 1, 2))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_unet_of_the_condition_alone_can_copy_it_to_the_image():
    network = MixedKernelUNet(PLANS["2d"], CONDITIONS, 1, STYLES, 0.5)
    condition, style = inputs(PLANS["2d"])[0], noise(2, STYLES)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[0, -1] = 1.0
    torch.testing.assert_close(network(condition, style), condition[:, -1:])


def taken_apart(cell, x):
    """The cell's output with every candidate convolved by itself."""
    mixed = sum(share * candidate(x) for share, candidate in zip(cell.alpha.softmax(dim=0), cell.candidates))
    return cell.activation(cell.norm(mixed))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (3, 3, 3), (1, 3, 3), (3, 1, 3), (1, 1, 3)], ids=str)
def test_mixed_kernels_give_what_the_candidates_give_one_by_one(kernel, stride):
    strides = tuple(stride if size > 1 else 1 for size in kernel)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = MixedKernelCell(3, 4, kernel, strides).double()
    with torch.no_grad():
        cell.alpha.copy_(torch.tensor([0.3, -0.5, 0.8]))
    x = noise(2, 3, *(7, 6, 9)[: len(kernel)]).double().requires_grad_()
    sources = [x, *cell.parameters()]
    found, expected = cell(x), taken_apart(cell, x)
    assert len(cell.mixed_kernels()) == 2  # convolutions instead of 3
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    weight = noise(*found.shape, seed=1)
    slopes = [torch.autograd.grad((output * weight).sum(), sources) for output in (found, expected)]
    assert slopes[0][1].abs().min() > 1e-4  # of alpha
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", PLANS)
def test_the_extents_of_the_stages_are_those_of_the_maps(name):
    plan, seen = PLANS[name], []
    network = MixedKernelUNet(plan, CONDITIONS, 1, STYLES, 0.5)
    for cell in network.encoder:
        cell.register_forward_hook(lambda cell, arguments, output: seen.append(tuple(output.shape[2:])))
    larger = tuple(2 * size for size in plan.patch_size)
    network(noise(1, CONDITIONS, *larger), noise(1, STYLES))
    assert plan.extents(larger) == seen


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_many_condition_channels_are_mixed_into_few_and_all_of_them_count(name):
    plan, few, many = PLANS[name], 2 * MIXED_CHANNELS, 120
    image, sizes = noise(1, 1, *plan.patch_size), {}
    for channels in (few, many):
        network, discriminator = MixedKernelUNet(plan, channels, 1, STYLES, 0.5), PatchDiscriminator(plan, channels, 1, 0.5)
        sizes[channels] = [
            sum(weight.numel() for weight in part.parameters()) for part in (network.encoder, discriminator.layers)
        ]
        condition = noise(1, channels, *plan.patch_size).requires_grad_()
        for output in (network(condition, noise(1, STYLES)), discriminator(discriminator.entry(condition), image)):
            (slope,) = torch.autograd.grad(output.square().sum(), condition)
            assert (slope.abs().flatten(2).amax(dim=2) > 0).all()
    assert all(one < other for one, other in zip(sizes[many], sizes[few], strict=True))
    assert all(
        isinstance(part(plan, few, 1, *further).entry, nn.Identity)
        for part, further in ((MixedKernelUNet, (STYLES, 0.5)), (PatchDiscriminator, (0.5,)))
    )


@DIMS
def test_noise_is_added_with_a_factor_for_every_channel(dims):
    x, grains = noise(2, 3, *(4,) * dims), noise(2, 1, *(4,) * dims, seed=1)
    added = NoiseInput(3)
    assert torch.equal(added(x, grains), x)
    with torch.no_grad():
        added.factor.copy_(torch.tensor([0.0, 1.0, -2.0]))
    torch.testing.assert_close(
        added(x, grains), torch.stack([x[:, 0], x[:, 1] + grains[:, 0], x[:, 2] - 2 * grains[:, 0]], dim=1)
    )


def test_a_flat_style_is_split_into_its_parts():
    shapes = [(2,), (1, 2, 3), (3, 1)]
    style = torch.arange(2 * flat_length(shapes)).view(2, -1)
    parts = split_style(style, shapes)
    assert [tuple(part.shape[1:]) for part in parts] == shapes
    assert torch.equal(torch.cat([part.flatten(1) for part in parts], dim=1), style)


NOISY = [name for name in PLANS if name != "one stage"]


@pytest.mark.parametrize("name", NOISY)
def test_noise_has_no_effect_at_the_start_and_reaches_the_image_after_training(name):
    plan = PLANS[name]
    generator = gan(plan, learning_rate=5e-3)
    condition, image, style = inputs(plan)
    other = style.clone()
    other[:, STYLE_CHANNELS:] = noise(*other[:, STYLE_CHANNELS:].shape, seed=9)
    assert torch.equal(generator.sample(condition, style), generator.sample(condition, other))
    for step in range(12):
        generator.training_step(condition, image, inputs(plan, seed=step)[2])
    factors = [cell.noise.factor for cell in generator.network.decoder]
    assert all(factor.abs().min() > 0 for factor in factors)
    for start, end in pairwise([STYLE_CHANNELS, *torch.tensor(lengths(plan)).cumsum(0).add(STYLE_CHANNELS).tolist()]):
        changed = style.clone()
        changed[:, start:end] = other[:, start:end]
        assert (generator.sample(condition, changed) - generator.sample(condition, style)).abs().max() > 1e-4


def lengths(plan):
    return [noise(*extent).numel() for extent in reversed(plan.extents(plan.patch_size)[:-1])]


@EVERY_PLAN
def test_the_style_has_a_noise_map_for_every_stage_of_the_decoder(plan):
    larger = tuple(2 * size for size in plan.patch_size)
    (length,) = gan(plan).style_shape(larger)
    assert length == STYLE_CHANNELS + 2**plan.dims * sum(lengths(plan))
    assert torch.isfinite(gan(plan).sample(noise(1, CONDITIONS, *larger), noise(1, length))).all()


class Draws:
    """Stands for random numbers that are known."""

    device = CPU

    def __init__(self, monkeypatch, shift, factor, places):
        values = [torch.stack([shift, factor]).add(1).div(2), (torch.tensor(places) + 0.5).div(5)]
        monkeypatch.setattr(torch, "rand", lambda *shape, generator, device: values.pop(0).view(shape))


@DIMS
def test_augmentation_translates_image_and_condition_alike(dims, monkeypatch):
    extent, zeros = (16, 18, 14)[:dims], torch.zeros(2)
    condition, image = noise(2, 3, *extent), noise(2, 2, *extent, seed=1)
    places = [4, 0, 3][:dims]  # of the shifts -2, ..., 2
    rng = Draws(monkeypatch, zeros, zeros, places)
    moved = augment(condition, image, rng)
    for before, after in zip((condition, image), moved, strict=True):
        expected = before
        for axis, shift in enumerate([2, -2, 1][:dims], start=2):
            expected = expected.roll(shift, axis)
            expected.narrow(axis, 0 if shift > 0 else expected.shape[axis] + shift, abs(shift)).zero_()
        torch.testing.assert_close(after, expected)


@DIMS
def test_augmentation_changes_brightness_and_contrast_of_every_patch_of_the_image(dims, monkeypatch):
    condition, image = noise(2, 3, *(16,) * dims), noise(2, 2, *(16,) * dims, seed=1)
    shift, factor = torch.tensor([1.0, -0.5]), torch.tensor([-1.0, 0.5])
    same_condition, changed = augment(condition, image, Draws(monkeypatch, shift, factor, [2] * dims))
    assert torch.equal(same_condition, condition)
    for before, after, one, other in zip(image, changed, shift, factor, strict=True):
        torch.testing.assert_close(after.mean(), before.mean() + BRIGHTNESS * one)
        torch.testing.assert_close(after.std(), before.std() * (1 + CONTRAST * other))


@DIMS
def test_augmentation_is_drawn_from_its_generator_alone_and_is_differentiable(dims, outside_random_state_untouched):
    condition, image = noise(2, 1, *(16,) * dims), noise(2, 1, *(16,) * dims, seed=1).requires_grad_()
    rng = torch.Generator()
    drawn = [augment(condition, image, rng.manual_seed(seed)) for seed in range(6)]
    again = augment(condition, image, rng.manual_seed(0))
    assert torch.equal(drawn[0][0], again[0]) and torch.equal(drawn[0][1], again[1])
    assert all(not torch.equal(one[1], other[1]) for one, other in pairwise(drawn))
    assert len({one[0].sum().item() for one in drawn}) > 2
    (slope,) = torch.autograd.grad(drawn[0][1].sum(), image)
    assert slope.abs().max() > 0


def test_a_patch_of_few_voxels_is_augmented():
    condition, image = augment(noise(1, 2, 2, 3, 1), noise(1, 1, 2, 3, 1), torch.Generator())
    assert condition.shape == (1, 2, 2, 3, 1)
    assert torch.isfinite(image).all()


@DIMS
def test_the_gradient_penalty_is_the_squared_slope_of_every_score(dims):
    """Of a convolution with known weights whose neighbourhoods do not overlap, the slope of every score is the kernel."""
    convolution = (nn.Conv2d if dims == 2 else nn.Conv3d)(2, 1, 2, stride=2)
    image = noise(3, 2, *(8,) * dims).requires_grad_()
    penalty = gradient_penalty(convolution(image), image)
    torch.testing.assert_close(penalty, convolution.weight.square().sum())
    (slope,) = torch.autograd.grad(penalty, convolution.weight)
    torch.testing.assert_close(slope, 2 * convolution.weight)


def asked(generator, step):
    """The gradients of the discriminator and those of the U-Net that a step asks for, as vectors."""
    found = []
    generator.synchronise = lambda tensors: found.extend(tensor.clone() for tensor in tensors)
    generator.training_step(*step)
    return found


@pytest.mark.parametrize("steps", [0, 1, R1_INTERVAL])
@EVERY_PLAN
def test_both_networks_descend_their_losses(plan, steps):
    """The losses written down once more, differentiated for either network by itself; R1 in every 16th step."""
    condition, image, style = step = inputs(plan)
    generator = gan(plan, l1=3.0)
    generator.steps = steps
    state, rng = copy.deepcopy(generator.discriminator.state_dict()), generator.rng.get_state()
    found = asked(generator, step)
    judging = list(generator.discriminator.parameters())
    generator = gan(plan, l1=3.0)  # weights before the step
    judge, random = generator.discriminator, torch.Generator().manual_seed(0)
    judge.load_state_dict(state)
    assert torch.equal(random.get_state(), rng)
    drawn = generator.sample(condition, style)
    real_condition, real = augment(condition, image, random)
    other_condition, unreal = augment(condition, drawn.detach(), random)
    real.requires_grad_()
    scores = judge(torch.cat([real_condition, other_condition]), torch.cat([real, unreal]))
    count = len(image)
    loss = functional.relu(1 - scores[:count]).mean() + functional.relu(1 + scores[count:]).mean()
    if steps % 16 == 0:
        (slope,) = torch.autograd.grad(scores[:count].sum(), real, create_graph=True)
        loss = loss + 16 * 10 / 2 * slope.square().sum() / scores[:count].numel()
    expected = torch.autograd.grad(loss, list(judge.parameters()))
    torch.testing.assert_close(found[0], torch.cat([part.flatten() for part in expected]), atol=1e-5, rtol=1e-4)

    generator.discriminator.load_state_dict(judging_state(generator, state, judging))
    loss = -generator.discriminator(*augment(condition, drawn, random)).mean() + 3 * (drawn - image).abs().mean()
    expected = torch.autograd.grad(loss, generator.weights())
    torch.testing.assert_close(found[1], torch.cat([part.flatten() for part in expected]), atol=1e-5, rtol=1e-4)


def judging_state(generator, state, judging):
    """The discriminator's state as the U-Net's loss met it: after the discriminator's step, one power iteration on."""
    current = generator.discriminator.state_dict()
    names = [name for name, _ in generator.discriminator.named_parameters()]
    return {**current, **dict(zip(names, judging, strict=True))}


@DIMS
def test_the_gradient_penalty_keeps_the_discriminator_flat(dims, monkeypatch):
    plan = PLANS[f"{dims}d"]
    slopes = {}
    for weight in (0.0, 5.0):
        monkeypatch.setattr(gan_module, "R1_WEIGHT", weight)
        generator = gan(plan, learning_rate=2e-3)
        for step in range(50):
            generator.training_step(*inputs(plan, seed=3 * step))
        condition, image, _ = inputs(plan)
        image.requires_grad_()
        slopes[weight] = gradient_penalty(generator.discriminator(condition, image), image).item()
    assert slopes[5.0] < 0.5 * slopes[0.0], slopes


@EVERY_PLAN
def test_a_moving_average_is_that_of_the_formula_and_follows_other_changes_of_the_weights(plan, monkeypatch):
    monkeypatch.setattr(averaging, "DECAY", 0.7)
    generator = gan(plan, learning_rate=0.01)
    average = weights(generator)
    condition, image, style = inputs(plan)
    for step in range(12):
        generator.training_step(condition, image, style)
        decay = min(0.7, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new.detach() for old, new in zip(average, generator.weights())]
        if step % 3 == 0:  # as the feedback's optimiser does
            for i, weight in enumerate(generator.weights()):
                move = 0.01 * noise(*weight.shape, seed=i)
                weight.data += move
                average[i] = average[i] + move
        for found, expected in zip(generator.average.weights().values(), average, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert max(lag.abs().max() for lag in generator.average.lag.values()) > 1e-3
    with torch.no_grad():
        drawn = generator.sample(condition, style)
        for weight, value in zip(generator.weights(), average, strict=True):
            weight.copy_(value)
        generator.average.reset()
        torch.testing.assert_close(generator.sample(condition, style), drawn)


@EVERY_PLAN
def test_the_slope_for_alpha_is_that_at_the_averaged_weights(plan):
    generator = gan(plan, learning_rate=0.01, separate=True)
    condition, image, style = inputs(plan)
    for _ in range(8):
        generator.training_step(condition, image, style)
    found = torch.autograd.grad(generator.sample(condition, style).square().sum(), generator.architecture())
    averaged = copy.deepcopy(generator.network)
    averaged.load_state_dict(generator.average.weights())
    assert not same(averaged.parameters(), generator.weights())
    modulation, *grains = split_style(style, [(STYLE_CHANNELS,), *averaged.noise_shapes(plan.patch_size)])
    drawn = averaged(condition, modulation, grains)
    expected = torch.autograd.grad(drawn.square().sum(), averaged.architecture())
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 1e-6
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_an_average_without_updates_is_the_network():
    network = nn.Linear(3, 2)
    assert same(MovingAverage(network).weights().values(), network.parameters())


def test_the_generator_of_the_documentation_learns_and_resumes(monkeypatch):
    monkeypatch.setattr(GENERATORS, "_parts", dict(GENERATORS._parts))
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "custom_generator.py"))
    for plan in (PLANS["2d"], PLANS["3d"]):

        def build(plan=plan):
            return build_generator(
                GeneratorConfig(name="linear", learning_rate=0.05),
                plan,
                ConditionLayout(2, 3, 1),
                seed=0,
                device=CPU,
                separate_architecture=False,
            )

        generator = build()
        condition = noise(2, 6, *plan.patch_size)
        image, style = condition[:, 5:], noise(2, *generator.style_shape(plan.patch_size), seed=1)
        losses = [generator.training_step(condition, image, style)["l1"] for _ in range(40)]
        assert losses[-1] < 0.5 * losses[0]
        other = build()
        other.load_state_dict(generator.state_dict())
        assert torch.equal(other.sample(condition, style), generator.sample(condition, style))
