"""What every generator family must do, in every shape of problem; what is special to one stands in its own file."""

import functools

import pytest
import torch
from test_coupling import Setting, same, through_a_file
from test_hypergradient import Problem, relative_error

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.conditioning import ConditionLayout, class_intensities, compose_scene, condition
from nnunetv2_genseg.config import GeneratorConfig, checked
from nnunetv2_genseg.generators import NetworkPlan, build_generator
from nnunetv2_genseg.generators.base import BUILT_IN

TRAINED = ["diffusion", "gan", "vae"]
"""The families that have weights."""
FAMILY = pytest.mark.parametrize("family", sorted(BUILT_IN))
TRAINED_FAMILY = pytest.mark.parametrize("family", TRAINED)
DIMS = pytest.mark.parametrize("dims", [2, 3], ids=["2d", "3d"])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])
CODEC = pytest.mark.parametrize("codec", ["labels", "regions", "ignore"])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def style_of(generator, image, seed=0):
    return noise(len(image), *generator.style_shape(image.shape[2:]), seed=seed)


def case(family, dims=2, channels=1, codec="labels", parameters=None, **settings):
    """A coupling with the family's generator, and conditions and images of real pairs."""
    parameters = parameters or ("policy" if family == "gmm" else "weights")
    setting = Setting(
        dims,
        channels,
        codec,
        generator={"name": family, **settings},
        conditioning={"mode": "tissue"},
        feedback={"parameters": parameters},
    )
    return setting, setting.coupling.generator, setting.coupling.pairs.real_condition(setting.image, setting.labels)


@functools.cache
def trained(family, dims, channels, codec):
    """A generator that learned one pair for a few dozen steps; the L1 distance of what it drew before and after."""
    setting, generator, conditions = case(family, dims, channels, codec, width=1.0, learning_rate=5e-3)
    image, conditions = setting.image[:1], conditions[:1]
    distances = []
    for steps in (0, 50):
        for i in range(steps):
            generator.learn(conditions, image, style_of(generator, image, seed=i))
        with torch.no_grad():
            drawn = [generator.draw(conditions, style_of(generator, image, seed=1000 + i)) for i in range(3)]
        distances.append(sum((one - image).abs().mean() for one in drawn) / 3)
    return generator, distances


@CHANNELS
@CODEC
@DIMS
@FAMILY
def test_images_are_like_real_ones_and_the_style_alone_chooses_among_them(family, dims, codec, channels):
    setting, generator, conditions = case(family, dims, channels, codec)
    image = setting.image
    generator.learn(conditions, image, style_of(generator, image))
    style = style_of(generator, image, seed=1)
    drawn = generator.draw(conditions, style)
    assert drawn.shape == image.shape
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, generator.draw(conditions, style))
    assert (drawn - generator.draw(conditions, style_of(generator, image, seed=2))).abs().max() > 1e-3


@DIMS
@FAMILY
def test_patches_of_a_batch_are_drawn_each_by_itself(family, dims):
    setting, generator, conditions = case(family, dims)
    generator.learn(conditions, setting.image, style_of(generator, setting.image))
    style = style_of(generator, setting.image, seed=1)
    torch.testing.assert_close(generator.draw(conditions, style)[1:2], generator.draw(conditions[1:2], style[1:2]))


@CHANNELS
@CODEC
@DIMS
@TRAINED_FAMILY
def test_one_pair_is_learned(family, dims, codec, channels):
    _, (before, after) = trained(family, dims, channels, codec)
    assert after < (0.75 if family == "diffusion" else 0.6) * before


@CHANNELS
@CODEC
@DIMS
@FAMILY
def test_a_recoloured_class_changes_the_image_there(family, dims, codec, channels):
    generator = trained(family, dims, channels, codec)[0]
    setting, _, _ = case(family, dims, channels, codec)
    image, labels, layout = setting.image[:1], setting.labels[:1], setting.coupling.pairs.layout
    scene = compose_scene(labels, setting.coupling.pairs._tissue(image, labels), layout)
    means = class_intensities(image, scene, layout)
    brighter = means.clone()
    brighter[:, 2] += 1.0
    style = style_of(generator, image, seed=1)
    with torch.no_grad():
        drawn = [generator.draw(condition(scene, intensities, layout), style) for intensities in (means, brighter)]
    change, there = (drawn[1] - drawn[0]).abs().mean(dim=1), scene == 2
    assert change[there].mean() > 2 * change[~there].mean()


@DIMS
@CHANNELS
@FAMILY
def test_a_restored_generator_draws_and_learns_the_same(family, channels, dims):
    setting, original, conditions = case(family, dims, channels)
    _, resumed, _ = case(family, dims, channels)
    step = conditions, setting.image, style_of(original, setting.image)
    for _ in range(3):
        original.learn(*step)
    state = through_a_file(original.state())
    drawn = original.draw(conditions, step[2])
    assert not torch.equal(drawn, resumed.draw(conditions, step[2]))
    resumed.restore(state)
    for _ in range(2):
        assert torch.equal(original.draw(conditions, step[2]), resumed.draw(conditions, step[2]))
        assert original.learn(*step) == resumed.learn(*step)


def named_tensors(state, name=""):
    """Every tensor of nested dictionaries and lists, with the key that it stands under."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from named_tensors(value, key)


@pytest.mark.filterwarnings("ignore:.*which is a no-op")  # a device without memory stands for a GPU
@DIMS
@FAMILY
def test_a_state_from_another_device_is_put_where_the_generator_lives(family, dims):
    setting, original, conditions = case(family, dims)
    original.learn(conditions, setting.image, style_of(original, setting.image))
    config, plan, layout = setting.coupling.config.generator, setting.coupling.plan, setting.coupling.pairs.layout
    meta = torch.device("meta")
    resumed = build_generator(config, plan, layout, seed=0, device=meta, separate_architecture=False)
    resumed.restore(through_a_file(original.state()))
    devices = {"step": set(), "other": set()}
    for name, tensor in named_tensors(resumed.state()):
        devices[name if name == "step" else "other"].add(tensor.device.type)
    assert devices["other"] == {"meta"}
    assert devices["step"] <= {"cpu"}, "Adam waits for the device at every step if its counters lie there"


@pytest.mark.parametrize("spoilt", ["condition", "image", "style"])
@DIMS
@TRAINED_FAMILY
def test_a_step_that_is_not_finite_is_an_error_and_moves_nothing(family, dims, spoilt):
    setting, generator, conditions = case(family, dims)
    step = {"condition": conditions, "image": setting.image.clone(), "style": style_of(generator, setting.image)}
    generator.learn(*step.values())
    before = through_a_file(generator.state())
    drawn = generator.draw(conditions, step["style"])
    step[spoilt] = step[spoilt].clone()
    step[spoilt].view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError, match="not finite; its loss is nan"):
        generator.learn(*step.values())
    after = through_a_file(generator.state())
    assert before.keys() == after.keys()
    assert same(before["network"].values(), after["network"].values())
    assert torch.equal(drawn, generator.draw(conditions, style_of(generator, setting.image)))


@DIMS
@TRAINED_FAMILY
def test_gradients_are_averaged_over_processes_before_the_step(family, dims):
    setting, generator, conditions = case(family, dims)
    generator.synchronise = lambda tensors: [tensor.zero_() for tensor in tensors]
    before = [weight.detach().clone() for weight in generator.weights()]
    generator.learn(conditions, setting.image, style_of(generator, setting.image))
    assert same(before, generator.weights())
    assert all(weight.grad is None for weight in generator.weights())


@pytest.mark.parametrize("parameters", ["architecture", "weights"])
@DIMS
@TRAINED_FAMILY
def test_learning_leaves_the_architecture_to_the_feedback_if_that_moves_it(family, dims, parameters):
    if (family, dims, parameters) == ("diffusion", 2, "architecture"):
        with pytest.raises(ValueError, match="generator 'diffusion' has no such parameters"):
            case(family, dims, parameters=parameters)
        return
    setting, generator, conditions = case(family, dims, parameters=parameters)
    before = [alpha.detach().clone() for alpha in generator.architecture()]
    for _ in range(2):
        generator.learn(conditions, setting.image, style_of(generator, setting.image))
    assert (family, dims) == ("diffusion", 2) or same(before, generator.architecture()) == (parameters == "architecture")


FED_BACK = [
    (family, parameters, dims)
    for dims in (2, 3)
    for family in sorted(BUILT_IN)
    for parameters in ("architecture", "weights", "policy")
    if parameters == "policy" or (family != "gmm" and (family, parameters, dims) != ("diffusion", "architecture", 2))
]


@CHANNELS
@CODEC
@pytest.mark.parametrize("family, parameters, dims", FED_BACK)
def test_feedback_reaches_what_it_shall_move_and_the_images_follow(family, parameters, dims, codec, channels):
    setting, generator, conditions = case(family, dims, channels, codec, parameters)
    generator.learn(conditions, setting.image, style_of(generator, setting.image))
    style = style_of(generator, setting.image, seed=1)
    drawn, phi = generator.draw(conditions, style), [part.detach().clone() for part in setting.coupling.phi]
    segmenter = [weight.detach().clone() for weight in setting.network.parameters()]
    setting.feedback()
    assert setting.coupling.report()["hypergradient"] > 0
    assert not same(phi, setting.coupling.phi)
    assert torch.equal(drawn, generator.draw(conditions, style)) == (parameters == "policy")
    assert same(segmenter, setting.network.parameters())
    assert all(part.grad is None for part in [*setting.coupling.phi, *generator.weights()])


def smooth_problem(family, dims, channels=1, **settings):
    """The bilevel problem of test_hypergradient.py in float64, its generator exchanged for one of a family."""
    problem = Problem(dims, channels, extent=8)
    plan = NetworkPlan((8,) * dims, (4, 4), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)
    config = checked(GeneratorConfig, {"name": family, "style_channels": 2, "width": 1.0, **settings}, "test")
    torch.set_default_dtype(torch.float64)
    try:
        generator = build_generator(
            config, plan, ConditionLayout(2, 0, channels), seed=0, device=torch.device("cpu"), separate_architecture=False
        )
    finally:
        torch.set_default_dtype(torch.float32)
    style = noise(2, *generator.style_shape(plan.patch_size), seed=3).double()
    problem.generator = lambda conditions: generator.draw(conditions, style)
    return problem, generator


@CHANNELS
@DIMS
@TRAINED_FAMILY
def test_hypergradient_equals_unrolled_autograd(family, dims, channels):
    problem, generator = smooth_problem(family, dims, channels)
    for phi in filter(None, (generator.weights(), generator.architecture())):
        problem.phi = phi
        unrolled = torch.autograd.grad(problem.loss_after_step(), phi)
        assert relative_error(problem.hypergradient(hypergradient.exact), unrolled) < 1e-6
        assert relative_error(problem.hypergradient(hypergradient.finite_difference), unrolled) < 1e-3


@pytest.mark.parametrize("family", ["gan", "gmm"])
def test_settings_of_another_family_are_refused(family):
    for topic, settings in (("diffusion", {"sampling_steps": 4}), ("vae", {"kl": 1.0})):
        with pytest.raises(ValueError, match=f"generator.{topic} are not read by generator '{family}'; remove them"):
            checked(GeneratorConfig, {"name": family, topic: settings}, "test")
        assert getattr(checked(GeneratorConfig, {"name": topic, topic: settings}, "test"), topic) is not None
