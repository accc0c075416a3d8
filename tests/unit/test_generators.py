import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunetv2_genseg.conditioning import ConditionLayout
from nnunetv2_genseg.config import GeneratorConfig
from nnunetv2_genseg.generators import NetworkPlan, build_generator
from nnunetv2_genseg.generators.base import register, registered
from nnunetv2_genseg.generators.networks import MixedKernelCell, MixedKernelUNet, PatchDiscriminator, StyleModulation

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


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(plan, channels=1, count=2):
    condition, image = noise(count, CONDITIONS, *plan.patch_size), noise(count, channels, *plan.patch_size, seed=1)
    return condition, image, noise(count, STYLES, seed=2)


def gan(plan, channels=1, seed=0, separate=False, **settings):
    config = GeneratorConfig(style_channels=STYLES, **settings)
    layout = ConditionLayout(CONDITIONS, 0, channels)
    return build_generator(config, plan, layout, seed=seed, device=CPU, separate_architecture=separate)


def weights(generator):
    return [weight.detach().clone() for weight in generator.weights()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
@EVERY_PLAN
def test_drawn_images_have_the_shape_of_real_ones(plan, channels):
    condition, image, style = inputs(plan, channels)
    drawn = gan(plan, channels).draw(condition, style)
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
    slopes = torch.autograd.grad(generator.draw(condition, style).square().sum(), generator.weights())
    assert all(torch.isfinite(slope).all() and slope.any() for slope in slopes)
    assert len(generator.architecture()) == 2 * len(plan.features) - 1
    assert {id(alpha) for alpha in generator.architecture()} < {id(weight) for weight in generator.weights()}


@EVERY_PLAN
def test_images_change_with_the_condition(plan):
    condition, _, style = inputs(plan)
    generator = gan(plan)
    assert (generator.draw(condition, style) - generator.draw(condition.flip(-1), style)).abs().max() > 1e-3


@EVERY_PLAN
def test_images_change_with_the_style_where_there_is_a_decoder(plan):
    condition, _, style = inputs(plan)
    generator = gan(plan)
    changed = (generator.draw(condition, style) - generator.draw(condition, -style)).abs().max() > 1e-3
    assert changed == (len(plan.features) > 1)


@pytest.mark.parametrize("dims", [2, 3])
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
    generator.learn(condition, image, style)
    assert not same(before, weights(generator))
    assert not same(judge, list(generator.discriminator.parameters()))
    assert all(weight.grad is None for weight in [*generator.weights(), *generator.discriminator.parameters()])


def test_building_is_seeded_and_leaves_the_global_random_state(outside_random_state_untouched):
    first, again, other = (gan(PLANS["2d"], seed=seed) for seed in (1, 1, 2))
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_a_family_is_imported_when_it_is_built_and_not_before():
    code = "import sys; from nnunetv2_genseg.cli import main; main(['generators']); assert 'diffusers' not in sys.modules"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"diffusion", "gan", "gmm", "vae"} <= set(listed)


def test_unknown_generator_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no generator 'gann'; registered are .*gan"):
        gan(PLANS["2d"], name="gann")


def test_a_name_is_registered_once():
    gan(PLANS["2d"])
    with pytest.raises(RuntimeError, match="'gan' is registered twice"):
        register("gan")(lambda *args, **settings: None)


def test_unet_of_the_condition_alone_can_copy_it_to_the_image():
    network = MixedKernelUNet(PLANS["2d"], CONDITIONS, 1, STYLES, 0.5)
    condition, _, style = inputs(PLANS["2d"])
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[0, -1] = 1.0
    torch.testing.assert_close(network(condition, style), condition[:, -1:])


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with an entry point: its metadata and its module, as pip would lay them out."""

    def install(name, module, text):
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[nnunetv2_genseg.generators]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setattr("nnunetv2_genseg.generators.base._REGISTRY", dict(registry()))
    return install


@pytest.fixture(autouse=True, scope="module")
def built_in_families():
    """Imported before a test replaces the registry, for a module registers its family once a process."""
    gan(PLANS["2d"])


def registry():
    from nnunetv2_genseg.generators import base

    return base._REGISTRY


FLAT = """
import torch
from nnunetv2_genseg.generators import register

@register("flat")
class Flat:
    def __init__(self, config, plan, layout, *, separate_architecture, synchronise):
        self.channels = layout.image_channels

    def style_shape(self, spatial):
        return (1,)

    def draw(self, condition, style):
        return torch.zeros(len(condition), self.channels, *condition.shape[2:])
"""


def test_another_package_s_family_is_found_by_its_entry_point(installed):
    installed("flat", "somebodys_flat_generator", FLAT)
    assert registered() == ["diffusion", "flat", "gan", "gmm", "vae"]
    generator = build_generator(
        GeneratorConfig(name="flat"), PLANS["2d"], ConditionLayout(1, 0, 3), seed=0, device=CPU, separate_architecture=False
    )
    assert generator.draw(noise(2, 1, 4, 4), noise(2, 1)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    "text, said", [("import not_there_at_all", "does not import"), ("ready = True", "does not register it")]
)
def test_a_package_whose_family_is_broken_is_named(installed, text, said):
    module = f"somebodys_broken_generator_{len(text)}"
    installed("broken", module, text)
    assert registered() == ["broken", "diffusion", "gan", "gmm", "vae"]
    gan(PLANS["2d"])  # does not mind
    with pytest.raises(ImportError, match=f"'broken': {module} {said}"):
        build_generator(
            GeneratorConfig(name="broken"), PLANS["2d"], ConditionLayout(1, 0, 3), seed=0, device=CPU, separate_architecture=False
        )


def test_the_generator_of_the_documentation_learns_and_resumes(monkeypatch):
    monkeypatch.setattr("nnunetv2_genseg.generators.base._REGISTRY", dict(registry()))
    page = (Path(__file__).parents[2] / "docs" / "how-to-generator.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
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
        losses = [generator.learn(condition, image, style)["l1"] for _ in range(40)]
        assert losses[-1] < 0.5 * losses[0]
        other = build()
        other.restore(generator.state())
        assert torch.equal(other.draw(condition, style), generator.draw(condition, style))
