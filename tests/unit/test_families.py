"""What every generator family must do, in every shape of problem; what is special to one stands in its own file."""

import copy
import functools
import io
from types import SimpleNamespace

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.func import functional_call
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_genseg import hypergradient
from nnunetv2_genseg.config import GeneratorConfig, checked
from nnunetv2_genseg.generators import NetworkPlan, build_generator
from nnunetv2_genseg.generators.optimisation import adam, exclude, load_optimiser
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

CPU = torch.device("cpu")
ETA = 0.05
TRAINED = ["diffusion", "gan", "vae"]
"""The families that have weights."""
FAMILIES = [*TRAINED, "gmm"]
FAMILY = pytest.mark.parametrize("family", FAMILIES)
TRAINED_FAMILY = pytest.mark.parametrize("family", TRAINED)
DIMS = pytest.mark.parametrize("dims", [2, 3], ids=["2d", "3d"])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])
CONTENT = pytest.mark.parametrize("channels, ignore", [(1, False), (3, True)], ids=["one channel", "ignore label"])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def style_of(generator, image, seed=0):
    return noise(len(image), *generator.style_shape(image.shape[2:]), seed=seed)


def real_pairs(spatial, channels, ignore, count=3):
    """Images whose intensity follows the class, with noise; the ignore label in a corner if there is one."""
    labels = torch.zeros(count, *spatial, dtype=torch.long)
    quarter = spatial[0] // 4
    for i in range(count):
        start = quarter // 2 + i % 2
        labels[(i, *(slice(start, start + 2 * quarter),) * len(spatial))] = 1
        labels[(i, *(slice(start, start + quarter),) * len(spatial))] = 2
        if ignore:
            labels[(i, *(slice(-quarter, None),) * len(spatial))] = 3
    return noise(count, channels, *spatial) * 0.3 + labels[:, None] % 3, labels


def scene_of(image, labels, layout):
    """Classes, and tissue classes by brightness where nothing is labelled."""
    tissue = torch.bucketize(image.mean(dim=1), torch.tensor([-0.15, 0.15]))
    return torch.where((labels > 0) & (labels <= layout.foreground), labels, tissue + 1 + layout.foreground)


def conditions_of(image, scene, layout, shift=None):
    """Conditions with the mean intensities of the batch's classes, each shifted by `shift` of the class."""
    channels = nn.functional.one_hot(scene, layout.scene_classes).movedim(-1, 1).float()
    member = channels.flatten(2)
    means = torch.einsum("bkn,bcn->kc", member, image.flatten(2)) / member.sum(dim=(0, 2)).clamp(min=1)[:, None]
    if shift is not None:
        means = means + shift[:, None]
    pool = nn.functional.avg_pool2d if scene.ndim == 3 else nn.functional.avg_pool3d
    painted = torch.einsum("bk...,kc->bc...", pool(channels, 3, 1, 1, count_include_pad=False), means)
    return torch.cat([channels[:, 1:], painted], dim=1)


def planned(dims):
    return NetworkPlan((16,) * dims if dims == 2 else (8,) * dims, (8, 8), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)


def case(family, dims=2, channels=1, ignore=False, separate=False, **settings):
    """A family's generator, and conditions and images of real pairs."""
    layout, plan = ConditionLayout(2, 3, channels), planned(dims)
    config = checked(GeneratorConfig, {"name": family, "width": 0.5, **settings}, "test")

    def build(device=CPU):
        return build_generator(config, plan, layout, seed=0, device=device, separate_architecture=separate)

    image, labels = real_pairs(plan.patch_size, channels, ignore)
    scene = scene_of(image, labels, layout)
    generator = build()
    return SimpleNamespace(
        generator=generator,
        build=build,
        image=image,
        labels=labels,
        scene=scene,
        layout=layout,
        conditions=conditions_of(image, scene, layout),
        style=style_of(generator, image),
    )


def step_of(setting):
    return setting.conditions, setting.image, setting.style


def through_a_file(state):
    """What a checkpoint makes of it; fails for anything but plain tensors, numbers, strings, lists and dictionaries."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@functools.cache
def trained(family, dims, channels, ignore):
    """A generator that learned one pair for a few dozen steps; the L1 distance of what it drew before and after."""
    setting = case(family, dims, channels, ignore, width=1.0, learning_rate=5e-3)
    generator, image, conditions = setting.generator, setting.image[:1], setting.conditions[:1]
    distances = []
    for steps in (0, 50):
        for i in range(steps):
            generator.training_step(conditions, image, style_of(generator, image, seed=i))
        with torch.no_grad():
            drawn = [generator.sample(conditions, style_of(generator, image, seed=1000 + i)) for i in range(3)]
        distances.append(sum((one - image).abs().mean() for one in drawn) / 3)
    return generator, distances


@CONTENT
@DIMS
@FAMILY
def test_images_are_like_real_ones_and_the_style_alone_chooses_among_them(family, dims, ignore, channels):
    setting = case(family, dims, channels, ignore)
    generator, image, conditions = setting.generator, setting.image, setting.conditions
    generator.training_step(*step_of(setting))
    style = style_of(generator, image, seed=1)
    drawn = generator.sample(conditions, style)
    assert drawn.shape == image.shape
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, generator.sample(conditions, style))
    assert (drawn - generator.sample(conditions, style_of(generator, image, seed=2))).abs().max() > 1e-3


@DIMS
@FAMILY
def test_patches_of_a_batch_are_drawn_each_by_itself(family, dims):
    setting = case(family, dims)
    generator, conditions = setting.generator, setting.conditions
    generator.training_step(*step_of(setting))
    style = style_of(generator, setting.image, seed=1)
    torch.testing.assert_close(generator.sample(conditions, style)[1:2], generator.sample(conditions[1:2], style[1:2]))


@CONTENT
@DIMS
@TRAINED_FAMILY
def test_one_pair_is_learned(family, dims, ignore, channels):
    _, (before, after) = trained(family, dims, channels, ignore)
    assert after < (0.75 if family == "diffusion" else 0.6) * before


@CONTENT
@DIMS
@FAMILY
def test_a_recoloured_class_changes_the_image_there(family, dims, ignore, channels):
    generator = trained(family, dims, channels, ignore)[0]
    setting = case(family, dims, channels, ignore)
    image, scene = setting.image[:1], setting.scene[:1]
    brighter = torch.zeros(setting.layout.scene_classes)
    brighter[2] = 1.0
    style = style_of(generator, image, seed=1)
    with torch.no_grad():
        drawn = [generator.sample(conditions_of(image, scene, setting.layout, shift), style) for shift in (None, brighter)]
    change, there = (drawn[1] - drawn[0]).abs().mean(dim=1), scene == 2
    assert change[there].mean() > 2 * change[~there].mean()


@DIMS
@CHANNELS
@FAMILY
def test_a_restored_generator_draws_and_learns_the_same(family, channels, dims):
    setting = case(family, dims, channels)
    original, resumed, conditions = setting.generator, setting.build(), setting.conditions
    original.steps = 14  # so 17 in the state: at 0, unlike at 17, the GAN takes its gradient penalty
    for _ in range(3):
        original.training_step(*step_of(setting))
    state = through_a_file(original.state_dict())
    assert not torch.equal(original.sample(conditions, setting.style), resumed.sample(conditions, setting.style))
    resumed.load_state_dict(state)
    for _ in range(2):
        drawn = [generator.sample(conditions, setting.style) for generator in (original, resumed)]
        assert torch.equal(*drawn)
        losses = [generator.training_step(*step_of(setting)) for generator in (original, resumed)]
        assert losses[0].keys() == losses[1].keys()
        assert same(losses[0].values(), losses[1].values())


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
    setting = case(family, dims)
    setting.generator.training_step(*step_of(setting))
    resumed = setting.build(torch.device("meta"))
    resumed.load_state_dict(through_a_file(setting.generator.state_dict()))
    devices = {"step": set(), "rng": set(), "other": set()}
    for name, tensor in named_tensors(resumed.state_dict()):
        devices[name if name in devices else "other"].add(tensor.device.type)
    assert devices["other"] == {"meta"}
    assert devices["step"] <= {"cpu"}, "Adam waits for the device at every step if its counters lie there"
    assert devices["rng"] <= {"cpu"}


@pytest.mark.parametrize("spoilt", ["condition", "image", "style"])
@DIMS
@TRAINED_FAMILY
def test_a_step_that_is_not_finite_is_told_and_leaves_a_finite_state(family, dims, spoilt):
    setting = case(family, dims)
    generator = setting.generator
    step = dict(zip(("condition", "image", "style"), step_of(setting), strict=True))
    step[spoilt] = step[spoilt].clone()
    step[spoilt].view(-1)[0] = float("nan")
    before, drawn = through_a_file(generator.state_dict()), generator.sample(setting.conditions, setting.style)
    assert not generator.training_step(*step.values())["finite"]
    if (family, spoilt) != ("gan", "image"):  # there only the discriminator's gradient is not finite
        assert same(before["network"].values(), generator.state_dict()["network"].values())  # there is no momentum yet
        assert torch.equal(drawn, generator.sample(setting.conditions, setting.style))

    assert generator.training_step(*step_of(setting))["finite"]
    assert not generator.training_step(*step.values())["finite"]
    assert all(tensor.isfinite().all() for _, tensor in named_tensors(generator.state_dict()))
    assert generator.training_step(*step_of(setting))["finite"]


@pytest.mark.parametrize("spoilt", [0, 1], ids=["discriminator", "generator"])
@DIMS
def test_a_fault_of_either_network_of_the_gan_is_told(dims, spoilt):
    setting, calls = case("gan", dims), []

    def spoil(tensors):
        calls.append(len(calls))
        if calls[-1] == spoilt:
            tensors[0][-1] = float("inf")

    setting.generator.synchronise = spoil
    assert not setting.generator.training_step(*step_of(setting))["finite"]
    assert setting.generator.training_step(*step_of(setting))["finite"]
    assert calls == [0, 1, 2, 3]


@DIMS
@TRAINED_FAMILY
def test_gradients_are_averaged_over_processes_before_the_step(family, dims):
    setting = case(family, dims)
    generator = setting.generator
    generator.synchronise = lambda tensors: [tensor.zero_() for tensor in tensors]
    before = [weight.detach().clone() for weight in generator.weights()]
    generator.training_step(*step_of(setting))
    assert same(before, generator.weights())
    assert all(weight.grad is None for weight in generator.weights())


class Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU; those within an optimiser's step, on the CPU, not."""

    OPERATIONS = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten.equal.default,
    )

    def __init__(self):
        super().__init__()
        self.count, self.inside = 0, False
        self.hooks = [
            register_optimizer_step_pre_hook(lambda *arguments: self.enter(True)),
            register_optimizer_step_post_hook(lambda *arguments: self.enter(False)),
        ]

    def enter(self, inside):
        self.inside = inside

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation in self.OPERATIONS and not self.inside
        return operation(*args, **(kwargs or {}))

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)


@DIMS
@FAMILY
def test_nothing_waits_for_the_device(family, dims):
    setting = case(family, dims)
    with Waits() as waits:
        losses = [setting.generator.training_step(*step_of(setting)) for _ in range(2)]
        setting.generator.sample(setting.conditions, setting.style)
        assert waits.count == 0
        assert losses[-1]["finite"]
        assert waits.count == 1  # the counter counts
    for values in losses:
        assert all(value.ndim == 0 and not value.requires_grad for value in values.values())


@pytest.mark.parametrize("separate", [True, False], ids=["architecture", "weights"])
@DIMS
@TRAINED_FAMILY
def test_learning_leaves_the_architecture_to_the_feedback_if_that_moves_it(family, dims, separate):
    setting = case(family, dims, separate=separate)
    generator = setting.generator
    before = [alpha.detach().clone() for alpha in generator.architecture()]
    assert bool(before) == ((family, dims) != ("diffusion", 2))
    others = [weight.detach().clone() for weight in exclude(generator.weights(), generator.architecture())]
    for _ in range(2):
        generator.training_step(*step_of(setting))
    assert not before or same(before, generator.architecture()) == separate
    assert not same(others, exclude(generator.weights(), generator.architecture()))


def segmenter(dims, channels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PlainConvUNet(
            channels, 2, (4, 8), nn.Conv2d if dims == 2 else nn.Conv3d, 3, (1, 2), 1, 3, 1, conv_bias=True,
            norm_op=nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU, deep_supervision=False,
        )  # fmt: skip


def loss_of(labels):
    return lambda logits: nn.functional.cross_entropy(logits, labels)


def hypergradients(network, image, labels, held, phi, ratio=1e-6):
    """dL_fb/dφ through one step of the network on drawn images."""
    theta, loss = dict(network.named_parameters()), loss_of(labels)
    slopes = torch.autograd.grad(loss(network(image.detach())), list(theta.values()))
    ahead = {name: (weight - ETA * slope).detach().requires_grad_() for (name, weight), slope in zip(theta.items(), slopes)}
    direction = hypergradient.segmenter_gradient(network, ahead, held, loss)
    return hypergradient.hypergradient(network, theta, direction, phi, image, loss, ETA, ratio)


def unrolled_hypergradients(network, image, labels, held, phi):
    """The same with the whole graph through the step: the independent reference."""
    theta, loss = dict(network.named_parameters()), loss_of(labels)
    slopes = torch.autograd.grad(loss(functional_call(network, theta, (image,))), list(theta.values()), create_graph=True)
    ahead = {name: weight - ETA * slope for (name, weight), slope in zip(theta.items(), slopes)}
    return torch.autograd.grad(loss(functional_call(network, ahead, (held,))), phi)


FED_BACK = [
    (family, parameters, dims)
    for dims in (2, 3)
    for family in TRAINED
    for parameters in ("architecture", "weights")
    if (family, parameters, dims) != ("diffusion", "architecture", 2)
]


@CHANNELS
@pytest.mark.parametrize("family, parameters, dims", FED_BACK)
def test_feedback_reaches_what_it_shall_move_and_the_images_follow(family, parameters, dims, channels):
    setting = case(family, dims, channels, separate=parameters == "architecture")
    generator = setting.generator
    generator.training_step(*step_of(setting))
    style = style_of(generator, setting.image, seed=1)
    drawn = generator.sample(setting.conditions, style)
    phi = generator.architecture() if parameters == "architecture" else generator.weights()
    found = hypergradients(segmenter(dims, channels), drawn, setting.labels % 3, setting.image, phi, hypergradient.RATIO)
    assert all(torch.isfinite(part).all() for part in found)
    assert sum(part.abs().max() > 0 for part in found) > 0.8 * len(found)
    assert all(weight.grad is None for weight in generator.weights())
    optimiser = torch.optim.Adam(phi, 3e-3)
    for part, slope in zip(phi, found, strict=True):
        part.grad = slope
    optimiser.step()
    assert (generator.sample(setting.conditions, style) - drawn).abs().max() > 1e-6


@CHANNELS
@DIMS
@TRAINED_FAMILY
def test_hypergradient_equals_unrolled_autograd(family, dims, channels):
    """In float64, through a network that is smooth."""
    plan = NetworkPlan((8,) * dims, (4, 4), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)
    torch.set_default_dtype(torch.float64)
    try:
        config = checked(GeneratorConfig, {"name": family, "width": 1.0}, "test")
        layout = ConditionLayout(2, 0, channels)
        generator = build_generator(config, plan, layout, seed=0, device=CPU, separate_architecture=False)
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(convolution(channels, 4, 3, padding=1), nn.SiLU(), convolution(4, 3, 3, padding=1))
    finally:
        torch.set_default_dtype(torch.float32)
    image = noise(2, channels, *plan.patch_size, seed=2).double()
    conditions, style = noise(2, 2, *plan.patch_size).double(), style_of(generator, image, seed=3).double()
    generator.training_step(conditions, image, style)
    labels = torch.randint(3, (2, *plan.patch_size), generator=torch.Generator().manual_seed(4))
    for phi in filter(None, (generator.weights(), generator.architecture())):
        found, unrolled = (
            torch.cat([part.flatten() for part in method(network, generator.sample(conditions, style), labels, image, phi)])
            for method in (hypergradients, unrolled_hypergradients)
        )
        assert unrolled.norm() > 0
        assert (found - unrolled).norm() < 1e-6 * unrolled.norm()


@pytest.mark.parametrize("family", ["gan", "gmm", "vae"])
def test_settings_of_another_family_are_refused(family):
    with pytest.raises(ValueError, match=f"generator.diffusion are not read by generator '{family}'; remove them"):
        checked(GeneratorConfig, {"name": family, "diffusion": {"sampling_steps": 4}}, "test")
    assert (
        checked(GeneratorConfig, {"name": "diffusion", "diffusion": {"sampling_steps": 4}}, "test").diffusion.sampling_steps == 4
    )


def test_an_optimiser_s_state_is_loaded_whatever_its_step_was_fused_with():
    """A state from a GPU has fused steps; on a machine without one the optimiser keeps its own kind of step."""
    weights = [nn.Parameter(noise(3)), nn.Parameter(noise(2, seed=1))]
    optimiser = adam(weights, 0.1)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimiser.step()
    state = copy.deepcopy(optimiser.state_dict())
    state["param_groups"][0]["fused"] = True
    other = adam([nn.Parameter(noise(3)), nn.Parameter(noise(2, seed=1))], 0.2)
    load_optimiser(other, state)
    assert other.param_groups[0]["fused"] is None
    assert other.param_groups[0]["lr"] == 0.1
    moments = [[state["exp_avg"] for state in of.state.values()] for of in (optimiser, other)]
    assert same(*moments)
    assert state["param_groups"][0]["fused"] is True, "the caller's state is left as it is"
