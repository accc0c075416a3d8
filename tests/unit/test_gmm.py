"""What is special to the Gaussian mixture; what all families have in common is in test_families.py."""

import pytest
import torch
from torch.nn import functional

from nnunetv2_genseg.config import GeneratorConfig, GenSegError
from nnunetv2_genseg.generators import NetworkPlan, build_generator
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

CPU = torch.device("cpu")
EVERY_SHAPE = pytest.mark.parametrize("spatial", [(24, 20), (10, 12, 14), (2, 16, 16)])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(spatial, channels, spread=0.5, count=6, kernel=None):
    """Conditions of two foreground and three tissue classes, and images with a spread known for each class."""
    layout = ConditionLayout(2, 3, channels)
    plan = NetworkPlan(spatial, (8, 8), ((1,) * len(spatial), (2,) * len(spatial)), (kernel or (3,) * len(spatial),) * 2)
    generator = build_generator(GeneratorConfig(name="gmm"), plan, layout, seed=0, device=CPU, separate_architecture=False)
    scene = torch.randint(1, 6, (count, *spatial), generator=seeded())
    intensities = torch.randn(count, 6, channels, generator=seeded(1))
    deviation = spread * torch.arange(6.0)
    noise = torch.randn(count, channels, *spatial, generator=seeded(2)) * deviation[scene][:, None]
    painted = torch.stack([intensities[i][scene[i]].movedim(-1, 0) for i in range(count)])
    classes = functional.one_hot(scene, layout.scene_classes).movedim(-1, 1)[:, 1:].float()
    return generator, torch.cat([classes, painted], dim=1), painted + noise, scene


def style_of(generator, image, seed=3):
    return torch.randn(len(image), *generator.style_shape(image.shape[2:]), generator=seeded(seed))


@CHANNELS
@EVERY_SHAPE
def test_drawn_images_have_the_shape_of_real_ones_and_are_finite(spatial, channels):
    generator, conditions, image, _ = setting(spatial, channels)
    style = style_of(generator, image)
    fresh = generator.sample(conditions, style)
    generator.training_step(conditions, image, style)
    drawn = generator.sample(conditions, style)
    assert fresh.shape == drawn.shape == image.shape
    assert torch.isfinite(fresh).all()
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, generator.sample(conditions, style))
    assert not torch.allclose(drawn, generator.sample(conditions, style_of(generator, image, 4)))


@CHANNELS
@EVERY_SHAPE
def test_the_spreads_within_the_classes_are_measured(spatial, channels):
    generator, conditions, image, _ = setting(spatial, channels, count=16)
    for _ in range(3):
        generator.training_step(conditions, image, style_of(generator, image))
    found = generator.spread / generator.observed
    expected = 0.5 * torch.arange(1.0, 6.0)[:, None].expand_as(found)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05)


def test_a_class_that_is_never_seen_has_no_spread():
    generator, conditions, image, _ = setting((12, 12), 1)
    conditions[:, 4] = 0
    generator.training_step(conditions, image, style_of(generator, image))
    assert generator.observed[4] == 0
    assert torch.isfinite(generator.sample(conditions, style_of(generator, image))).all()


@CHANNELS
@EVERY_SHAPE
def test_the_condition_is_obeyed(spatial, channels):
    generator, conditions, image, scene = setting(spatial, channels)
    generator.training_step(conditions, image, style_of(generator, image))
    style = style_of(generator, image)
    brighter = conditions.clone()
    brighter[:, 5:] += 2.0 * (scene == 1)[:, None]
    change = generator.sample(brighter, style) - generator.sample(conditions, style)
    torch.testing.assert_close(change.mean(), 2.0 * (scene == 1).float().mean(), rtol=0.05, atol=0.02)


def test_a_class_with_a_wide_spread_is_drawn_with_one():
    generator, conditions, image, scene = setting((64, 64), 1)
    generator.training_step(conditions, image, style_of(generator, image))
    rest = generator.sample(conditions, style_of(generator, image)) - conditions[:, 5:]
    narrow, wide = (rest[:, 0][scene == label].std() for label in (1, 5))
    assert wide > 1.5 * narrow


def test_images_are_differentiable_in_style_and_intensities():
    generator, conditions, image, _ = setting((12, 12), 1)
    generator.training_step(conditions, image, style_of(generator, image))
    style = style_of(generator, image).requires_grad_()
    conditions.requires_grad_()
    slopes = torch.autograd.grad(generator.sample(conditions, style).square().sum(), [style, conditions])
    assert all(torch.isfinite(slope).all() and slope.any() for slope in slopes)


def test_thick_slices_are_not_blurred_into_each_other():
    """A change of the intensities of one slice is drawn in that slice alone."""
    for kernel, reached in (((1, 3, 3), [2]), ((3, 3, 3), [1, 2, 3])):
        generator, conditions, image, _ = setting((5, 8, 8), 1, kernel=kernel)
        style, brighter = style_of(generator, image), conditions.clone()
        brighter[:, 5:, 2] += 3.0
        change = (generator.sample(brighter, style) - generator.sample(conditions, style)).abs().amax(dim=(0, 1, 3, 4))
        assert change.nonzero().flatten().tolist() == reached


def test_conditions_without_intensities_are_refused():
    plan = NetworkPlan((8, 8), (8,), ((1, 1),), ((3, 3),))
    with pytest.raises(GenSegError, match=r"'gmm' needs the intensities.*redraw.mode to 'tissue' or 'residual'"):
        build_generator(
            GeneratorConfig(name="gmm"), plan, ConditionLayout(2, 0, 1), seed=0, device=CPU, separate_architecture=False
        )


def test_there_is_nothing_for_the_feedback_but_the_policy():
    generator, *_ = setting((12, 12), 1)
    assert generator.weights() == generator.architecture() == []


@EVERY_SHAPE
def test_a_step_that_is_not_finite_is_told_and_measures_nothing(spatial):
    generator, conditions, image, _ = setting(spatial, 1)
    assert generator.training_step(conditions, image, style_of(generator, image))["finite"]
    spread, observed = generator.spread.clone(), generator.observed.clone()
    image[0, 0].view(-1)[3] = float("nan")
    assert not generator.training_step(conditions, image, style_of(generator, image))["finite"]
    assert torch.equal(generator.spread, spread)
    assert torch.equal(generator.observed, observed)
