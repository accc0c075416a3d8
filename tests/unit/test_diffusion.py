"""What is special to flow matching; what all families have in common is in test_families.py."""

import pytest
import torch
from torch import nn

from nnunetv2_genseg.config import GeneratorConfig, checked
from nnunetv2_genseg.generators import NetworkPlan, averaging, build_generator
from nnunetv2_genseg.generators import diffusion as diffusion_module
from nnunetv2_genseg.generators.averaging import MovingAverage
from nnunetv2_genseg.generators.diffusion import TimedUNet
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

PLANS = {
    "2d": NetworkPlan((16, 16), (8, 8, 16), ((1, 1), (2, 2), (2, 2)), ((3, 3),) * 3),
    "3d": NetworkPlan((8, 8, 8), (8, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2),
}
EVERY_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
CONDITIONS = 3
PINNED = [("2d", [-1.1877, 0.5552, -1.7552]), ("3d", [-1.8568, 1.1494, -1.6562])]
"""First voxels of seeded draws in three steps."""


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(plan, channels=1, count=2):
    image = noise(count, channels, *plan.patch_size, seed=1)
    return noise(count, CONDITIONS, *plan.patch_size), image, noise(*image.shape, seed=2)


def diffusion(plan, channels=1, seed=0, learning_rate=5e-4, **settings):
    config = checked(GeneratorConfig, {"name": "diffusion", "learning_rate": learning_rate, "diffusion": settings}, "test")
    layout = ConditionLayout(CONDITIONS, 0, channels)
    return build_generator(config, plan, layout, seed=seed, device=torch.device("cpu"), separate_architecture=False)


class Velocity(nn.Module):
    """A network without weights whose velocity is known."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, sample, timestep):
        found = self.velocity(sample[:, : sample.shape[1] - CONDITIONS], timestep / 1000)
        return type("Output", (), {"sample": found})


def exchange(generator, network):
    generator.network, generator.average = network, MovingAverage(network)


@pytest.mark.parametrize("steps", [1, 2, 5])
@EVERY_PLAN
def test_the_exact_velocity_of_a_pair_leads_from_its_noise_to_its_image(plan, steps):
    condition, image, style = inputs(plan)
    generator = diffusion(plan, sampling_steps=steps)
    exchange(generator, Velocity(lambda sample, sigma: style - image))
    torch.testing.assert_close(generator.sample(condition, style), image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps, pinned", [(1, 1.5), (2, 1.9), (50, None)])
def test_the_velocity_of_a_normal_distribution_leads_to_it(steps, pinned):
    """Images N(1.5, 0.5²) of independent voxels: the flow is x ↦ 1.5 + 0.5 · noise, by 1 step the mean.

    By 2 steps: the velocity at σ = ½ is 2 (x − D), D = 1.5 + ¼ · ½ / (¼ · ¼ + ¼) · (x − ½ · 1.5) = 1.5 + 0.4 (x − 0.75), at
    x = ½ · 1.5 + ½ noise; the image is D = 1.5 + 0.2 noise; and 1.9 for noise 2.
    """
    mean, spread = 1.5, 0.5

    def velocity(sample, sigma):
        variance = ((1 - sigma) * spread) ** 2 + sigma**2
        expected = mean + (1 - sigma) * spread**2 / variance * (sample - (1 - sigma) * mean)
        return (sample - expected) / sigma

    plan = PLANS["2d"]
    generator = diffusion(plan, sampling_steps=steps)
    exchange(generator, Velocity(velocity))
    drawn = generator.sample(inputs(plan)[0], torch.full((2, 1, 16, 16), 2.0))
    expected = torch.full_like(drawn, mean + spread * 2.0 if pinned is None else pinned)
    torch.testing.assert_close(drawn, expected, atol=0.03 if pinned is None else 1e-5, rtol=0)


@pytest.mark.parametrize("name, pinned", PINNED)
def test_seeded_draws_are_pinned(name, pinned):
    condition, _, style = inputs(PLANS[name])
    drawn = diffusion(PLANS[name], sampling_steps=3).sample(condition, style)
    torch.testing.assert_close(drawn.flatten()[:3], torch.tensor(pinned), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps, last", [(1, 1), (4, 1), (4, 2), (4, 4)])
@EVERY_PLAN
def test_the_gradient_is_that_of_the_last_steps_alone(plan, steps, last, monkeypatch):
    monkeypatch.setattr(diffusion_module, "FEEDBACK_STEPS", last)
    condition, _, style = inputs(plan)
    style.requires_grad_()
    condition.requires_grad_()
    generator = diffusion(plan, sampling_steps=steps)
    sources = [style, condition, *generator.weights()]
    drawn = generator.sample(condition, style)
    found = torch.autograd.grad(drawn.square().sum(), sources)

    image = style
    for step in range(steps):
        sigma = torch.tensor(1 - step / steps)
        velocity = generator.network(torch.cat([image, condition], dim=1), 1000 * sigma).sample
        image = image - (velocity if step >= steps - last else velocity.detach()) / steps
    torch.testing.assert_close(drawn, image, atol=1e-5, rtol=1e-5)
    for one, expected in zip(found, torch.autograd.grad(image.square().sum(), sources)):
        torch.testing.assert_close(one, expected, atol=1e-3, rtol=1e-3)


def test_without_gradients_a_draw_leaves_no_graph():
    condition, _, style = inputs(PLANS["2d"])
    generator = diffusion(PLANS["2d"])
    with torch.no_grad():
        assert not generator.sample(condition, style).requires_grad
    assert generator.sample(condition, style).requires_grad


@EVERY_PLAN
def test_images_are_drawn_with_a_moving_average_that_feedback_moves_one_for_one(plan, monkeypatch):
    monkeypatch.setattr(averaging, "DECAY", 0.7)
    generator = diffusion(plan, learning_rate=0.01)
    average = [weight.detach().clone() for weight in generator.weights()]
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
        found = generator.average.weights()
        for name, expected in zip(found, average, strict=True):
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-5)
    assert max(lag.abs().max() for lag in generator.average.lag.values()) > 1e-3


def test_without_decay_images_are_drawn_with_the_weights_themselves(monkeypatch):
    monkeypatch.setattr(averaging, "DECAY", 0.0)
    generator = diffusion(PLANS["2d"])
    generator.training_step(*inputs(PLANS["2d"]))
    assert not any(lag.any() for lag in generator.average.lag.values())


@EVERY_PLAN
def test_learning_is_told_the_velocity_and_the_denoised_image(plan):
    """At the golden ratio's first σ, 1, the sample is the noise; the second patch is at σ = 1 − 0.618."""
    condition, image, style = inputs(plan)
    generator = diffusion(plan)
    seen = []
    generator.network.register_forward_pre_hook(lambda network, arguments: seen.extend(arguments))
    losses = generator.training_step(condition, image, style)
    sample, timestep = seen
    sigma = torch.tensor([1.0, 1 - (5**0.5 - 1) / 2])
    torch.testing.assert_close(timestep, 1000 * sigma)
    share = sigma.view(-1, *(1,) * (image.ndim - 1))
    torch.testing.assert_close(sample, torch.cat([(1 - share) * image + share * style, condition], dim=1))
    assert losses.keys() == {"flow", "l1", "finite"}


def test_sigmas_are_spread_evenly():
    generator = diffusion(PLANS["2d"])
    sigmas = []
    for generator.steps in range(50):
        sigmas.append(generator._sigma(2, torch.device("cpu")))
    sigmas = torch.cat(sigmas)
    assert (sigmas > 0).all() and (sigmas <= 1).all()
    assert torch.histc(sigmas, 10, 0, 1).sub(10).abs().max() <= 1


@pytest.mark.parametrize("patch, halvings", [((16, 16), 2), ((8, 24), 2), ((12, 16), 2), ((6, 16), 1), ((7, 16), 0)])
def test_the_2d_network_has_as_many_levels_as_both_axes_can_be_halved(patch, halvings):
    plan = NetworkPlan(patch, (8, 8, 16), ((1, 1), (1, 2), (2, 2)), ((3, 3),) * 3)
    generator = diffusion(plan)
    assert len(generator.network.config.block_out_channels) == 1 + halvings
    condition, image, style = inputs(plan)
    assert generator.sample(condition, style).shape == image.shape


def test_anisotropic_3d_follows_the_plan():
    strides, kernels = ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    plan = NetworkPlan((4, 16, 16), (8, 8, 8), strides, kernels)
    generator = diffusion(plan)
    condition, image, style = inputs(plan)
    assert isinstance(generator.network, TimedUNet)
    assert generator.sample(condition, style).shape == image.shape


@EVERY_PLAN
def test_the_velocity_depends_on_the_time(plan):
    condition, _, style = inputs(plan)
    network = diffusion(plan).network
    sample = torch.cat([style, condition], dim=1)
    early, late = (network(sample, torch.tensor(1000 * sigma)).sample for sigma in (1.0, 0.25))
    assert (early - late).abs().max() > 1e-3
