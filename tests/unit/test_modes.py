"""How images are made from what a generator draws."""

import pytest
import torch
from toy import REDRAW, Setting, seeded

from nnunetv2_genseg.synthesis.modes import MODES, Redrawing
from nnunetv2_genseg.synthesis.spatial import displacement_field, identity_grid, warp_image

OFF = {"feedback": {"enabled": False}}
DIMS = pytest.mark.parametrize("dims", [2, 3])
FAMILY = pytest.mark.parametrize("family, dims", [("gan", 2), ("gan", 3), ("vae", 2), ("gmm", 3), ("diffusion", 2)])


def redrawing(dims, family="gan", mode="residual", channels=2, shifted=0.0, style_factor=1.0):
    """A deformed patch with its condition, the wanted one shifted where the first class is."""
    setting = Setting(dims, channels, mixing=REDRAW, generator={"name": family}, redraw={"mode": mode}, **OFF)
    setting.learn(3)
    count, spatial = len(setting.image), setting.image.shape[2:]
    present = setting.real_condition(setting.image, setting.labels)
    wanted = present.clone()
    if shifted:
        wanted[:, -channels:] += shifted * (setting.labels == 1)[:, None]
    grid = identity_grid(spatial, torch.device("cpu")) + displacement_field(count, spatial, 0.04, (True,) * dims, seeded(1))
    shape = (count, *setting.generator.style_shape(spatial))
    style = style_factor * torch.randn(shape, generator=seeded(2))
    return Redrawing(setting.image, grid, wanted, present, style, setting.generator)


@FAMILY
def test_residual_without_a_change_is_exactly_the_deformed_image(family, dims):
    what = redrawing(dims, family)
    assert torch.equal(MODES["residual"]().image(what), warp_image(what.image, what.grid))


@FAMILY
def test_residual_adds_what_the_change_adds_to_the_drawing(family, dims):
    what = redrawing(dims, family, shifted=1.0)
    drawn = MODES["residual"]().image(what)
    added = what.generator.sample(what.wanted, what.style) - what.generator.sample(what.present, what.style)
    torch.testing.assert_close(drawn, warp_image(what.image, what.grid) + added, rtol=1e-4, atol=1e-4)
    assert added.abs().max() > 0.01


@DIMS
@pytest.mark.parametrize("mode", ["mask", "tissue"])
def test_other_modes_show_the_drawing_alone(mode, dims):
    what = redrawing(dims, mode=mode)
    assert torch.equal(MODES[mode]().image(what), what.generator.sample(what.wanted, what.style))


@pytest.mark.parametrize("mode", ["residual", "tissue", "mask"])
def test_images_have_a_gradient_to_the_generator_and_the_style(mode):
    what = redrawing(2, mode=mode, shifted=1.0 if mode == "residual" else 0.0)
    style = what.style.clone().requires_grad_()
    with_graph = Redrawing(what.image, what.grid, what.wanted, what.present, style, what.generator)
    image = MODES[mode]().image(with_graph)
    slopes = torch.autograd.grad(image.square().sum(), [style, *what.generator.weights()], allow_unused=True)
    assert slopes[0].any()
    assert all(slope is not None and torch.isfinite(slope).all() for slope in slopes)
    assert any(slope.any() for slope in slopes[1:])


def test_what_modes_say_of_themselves():
    assert {name: (MODES[name].uses_tissues, MODES[name].cancels) for name in MODES.names()} == {
        "mask": (False, False), "residual": (True, True), "tissue": (True, False),
    }  # fmt: skip
