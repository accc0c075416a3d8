"""What is special to the variational autoencoder; what all families have in common is in test_families.py."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from nnunetv2_genseg.config import GeneratorConfig, checked
from nnunetv2_genseg.generators import NetworkPlan, build_generator
from nnunetv2_genseg.generators import vae as vae_module
from nnunetv2_genseg.generators.divergence import divergence
from nnunetv2_genseg.generators.vae import LATENTS, LatentEncoder
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

CPU = torch.device("cpu")
CONDITIONS = 3
PLANS = {
    "2d": NetworkPlan((16, 16), (8, 8, 16), ((1, 1), (2, 2), (2, 2)), ((3, 3),) * 3),
    "3d": NetworkPlan((8, 8, 8), (8, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2),
}
EVERY_PLAN = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(plan, count=2):
    spatial = plan.patch_size
    return noise(count, CONDITIONS, *spatial), noise(count, 1, *spatial, seed=1), noise(count, LATENTS, seed=2)


def vae(plan, learning_rate=5e-4, l1=10.0):
    config = checked(GeneratorConfig, {"name": "vae", "learning_rate": learning_rate, "l1": l1}, "test")
    return build_generator(config, plan, ConditionLayout(CONDITIONS, 0, 1), seed=0, device=CPU, separate_architecture=False)


@pytest.fixture
def weighed(monkeypatch):
    """Sets the weights of divergence and introspection."""

    def weigh(kl=vae_module.KL, introspection=vae_module.INTROSPECTION):
        monkeypatch.setattr(vae_module, "KL", kl)
        monkeypatch.setattr(vae_module, "INTROSPECTION", introspection)

    return weigh


def test_the_divergence_is_that_of_normal_distributions():
    mean, log_variance = noise(5, LATENTS), noise(5, LATENTS, seed=1)
    found = divergence(mean, log_variance)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(dim=1)
    torch.testing.assert_close(found, expected)
    assert not divergence(torch.zeros(1, 3), torch.zeros(1, 3)).any()


@EVERY_PLAN
def test_the_encoder_looks_at_image_and_condition(plan):
    condition, image, _ = inputs(plan)
    condition.requires_grad_()
    image.requires_grad_()
    mean, log_variance = LatentEncoder(plan, CONDITIONS, 1, LATENTS, 0.5)(condition, image)
    assert mean.shape == log_variance.shape == (2, LATENTS)
    slopes = torch.autograd.grad((mean * log_variance).sum(), [condition, image])
    assert all(slope.any() for slope in slopes)


def gradients(generator, step):
    """What a step asks for: the gradients of encoder and decoder, by the name of their network."""
    asked = []
    generator.synchronise = lambda tensors: asked.extend(tensor.clone() for tensor in tensors)
    generator.training_step(*step)
    (vector,) = asked
    encoder = sum(weight.numel() for weight in generator.encoder.parameters())
    return {"encoder": vector[:encoder], "decoder": vector[encoder:]}


@pytest.mark.parametrize("introspection", [0.0, 0.7])
@EVERY_PLAN
def test_encoder_and_decoder_descend_each_its_own_loss(plan, introspection, weighed):
    """Equation 4 of the paper, term by term, differentiated for either network by itself."""
    condition, image, style = step = inputs(plan)
    weighed(kl=0.3, introspection=introspection)
    generator = vae(plan, l1=2.0)

    def bound(of, latent_noise):
        mean, log_variance = generator.encoder(condition, of)
        again = generator.sample(condition, mean + (log_variance / 2).exp() * latent_noise)
        error = (again - of).abs().flatten(1).mean(dim=1)
        spread = divergence(mean, log_variance)
        return 2.0 * error + 0.3 * spread, spread

    drawn = generator.sample(condition, style)
    real, _ = bound(image, style)
    unlikely, _ = bound(drawn.detach(), style.roll(1, dims=1))
    _, judged = bound(drawn, style)
    encoding = real.mean() + introspection * (-2 * unlikely).exp().mean() / 2
    decoding = real.mean() + introspection * 0.3 * judged.mean()
    expected = {
        "encoder": torch.autograd.grad(encoding, list(generator.encoder.parameters()), retain_graph=True),
        "decoder": torch.autograd.grad(decoding, generator.weights()),
    }
    found = gradients(generator, step)
    for network in ("encoder", "decoder"):
        vector = torch.cat([part.flatten() for part in expected[network]])
        torch.testing.assert_close(found[network], vector, atol=1e-6, rtol=1e-4)


def test_an_introspective_encoder_tells_drawn_images_from_real_ones(weighed):
    plan = PLANS["2d"]
    condition, image, _ = inputs(plan, count=4)
    apart = {}
    for introspection in (0.0, 3.0):
        weighed(kl=1.0, introspection=introspection)
        generator = vae(plan, learning_rate=5e-3, l1=1.0)
        generator.learned = list(generator.encoder.parameters())  # the decoder does not answer
        for i in range(200):
            generator.training_step(condition, image, noise(4, LATENTS, seed=i))
        with torch.no_grad():
            drawn = generator.sample(condition, noise(4, LATENTS, seed=1000))
            real, unreal = (divergence(*generator.encoder(condition, of)).mean() for of in (image, drawn))
        apart[introspection] = unreal - real
    assert apart[3.0] > apart[0.0] + 0.3, apart


def test_a_heavier_divergence_brings_the_latents_nearer_to_the_prior(weighed):
    step = inputs(PLANS["2d"])
    ends = []
    for kl in (0.001, 10.0):
        weighed(kl=kl, introspection=0.0)
        generator = vae(PLANS["2d"], learning_rate=5e-3)
        ends.append([generator.training_step(*step)["kl"] for _ in range(30)][-1])
    assert ends[1] < 0.2 * ends[0]
