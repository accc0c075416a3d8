import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from nnunetv2_genseg import hypergradient

ETA = 0.05
SHORT = 1e-7
"""A difference so short, in float64, that it is the derivative where there are no kinks."""
CLASSES = 3


def convolution(dims):
    return nn.Conv2d if dims == 2 else nn.Conv3d


class SmoothSegmenter(nn.Module):
    """Smooth everywhere, so that difference quotients converge; with heads at two resolutions if `deep`."""

    def __init__(self, dims, channels, deep):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        self.deep = deep
        self.first = nn.Sequential(conv(channels, 4, 3, padding=1), norm(4, affine=True), nn.SiLU())
        self.second = nn.Sequential(conv(4, 4, 3, padding=1), norm(4, affine=True), nn.Softplus())
        self.head = conv(4, CLASSES, 1)
        self.low_head = conv(4, CLASSES, 1, stride=2)

    def forward(self, x):
        x = self.first(x)
        low = self.low_head(x)
        full = self.head(self.second(x))
        return [full, low] if self.deep else full


def cross_entropy(target):
    def loss(logits):
        if isinstance(logits, torch.Tensor):
            return functional.cross_entropy(logits, target)
        low = target[(slice(None), *(slice(None, None, 2),) * (target.ndim - 1))]
        return functional.cross_entropy(logits[0], target) + 0.5 * functional.cross_entropy(logits[1], low)

    return loss


class Problem:
    """A smooth bilevel problem in float64: φ are the weights of a tiny smooth image generator."""

    def __init__(self, dims=2, channels=1, deep=False, extent=6, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            spatial = (extent,) * dims
            self.network = SmoothSegmenter(dims, channels, deep).double()
            conv = convolution(dims)
            self.generator = nn.Sequential(conv(2, 4, 3, padding=1), nn.SiLU(), conv(4, channels, 3, padding=1)).double()
            self.noise = torch.randn(2, 2, *spatial, dtype=torch.float64)
            self.held = torch.randn(2, channels, *spatial, dtype=torch.float64)
            self.on_synthetic = cross_entropy(torch.randint(CLASSES, (2, *spatial)))
            self.on_held = cross_entropy(torch.randint(CLASSES, (2, *spatial)))
        self.phi = list(self.generator.parameters())
        self.theta = dict(self.network.named_parameters())

    def direction(self):
        return hypergradient.segmenter_gradient(self.network, self.theta, self.held, self.on_held)

    def hypergradient(self, direction=None, ratio=SHORT):
        direction = self.direction() if direction is None else direction
        return self.found(self.generator(self.noise), self.phi, direction, ratio)

    def found(self, image, phi, direction, ratio=SHORT):
        return hypergradient.hypergradient(self.network, self.theta, direction, phi, image, self.on_synthetic, ETA, ratio)

    def loss_after_step(self, eta=ETA):
        """L_fb after one SGD step of the weights that move on L_syn(φ), with the whole graph to φ: the reference."""
        moving = {name: weight for name, weight in self.theta.items() if weight.requires_grad}
        value = self.on_synthetic(self.logits(self.theta, self.generator(self.noise)))
        slopes = torch.autograd.grad(value, list(moving.values()), create_graph=True, allow_unused=True, materialize_grads=True)
        ahead = {name: weight - eta * slope for (name, weight), slope in zip(moving.items(), slopes)}
        return self.on_held(self.logits({**self.theta, **ahead}, self.held))

    def logits(self, theta, image):
        return functional_call(self.network, theta, (image,), tie_weights=False)

    def unrolled(self):
        """dL_fb/dφ at v = ∇L_fb(θ): the derivative of `loss_after_step` for η → 0, divided by η, times η."""
        tiny = 1e-7
        parts = torch.autograd.grad(self.loss_after_step(tiny), self.phi)
        return [ETA / tiny * part for part in parts]


def reverse_over_reverse(network, theta, direction, phi, image, loss):
    """The hypergradient without forward-mode AD."""
    value = loss(functional_call(network, theta, (image,), tie_weights=False))
    chosen = [theta[name] for name in direction]
    slopes = torch.autograd.grad(value, chosen, create_graph=True, allow_unused=True, materialize_grads=True)
    product = sum((slope * part).sum() for slope, part in zip(slopes, direction.values()))
    return [-ETA * part for part in torch.autograd.grad(product, phi)]


def relative_error(found, expected):
    found, expected = (torch.cat([part.flatten() for part in parts]) for parts in (found, expected))
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


class LinearModel(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x @ self.weight.T


def test_hypergradient_of_a_quadratic_is_the_closed_form():
    """z = W x, L_syn = ½ ‖W x − t‖², x = A φ: ⟨∇_W L_syn, V⟩ = (W x − t)ᵀ V x, differentiated by hand."""
    noise = torch.Generator().manual_seed(1)
    w, v, a, t, phi = (
        torch.randn(*shape, generator=noise, dtype=torch.float64) for shape in [(2, 3), (2, 3), (3, 4), (2,), (4,)]
    )
    phi.requires_grad_()
    x = (a @ phi)[None]
    model, loss = LinearModel(w), lambda z: 0.5 * ((z[0] - t) ** 2).sum()
    found = hypergradient.hypergradient(model, {"weight": w}, {"weight": v}, [phi], x, loss, ETA, 1e-4)
    point = (a @ phi).detach()
    closed = -ETA * a.T @ (w.T @ v @ point + v.T @ (w @ point - t))
    torch.testing.assert_close(found[0], closed, rtol=1e-8, atol=1e-12)


def test_segmenter_gradient_is_that_of_a_backward_pass():
    problem = Problem()
    found = hypergradient.segmenter_gradient(problem.network, problem.theta, problem.held, problem.on_held)
    trained = copy.deepcopy(problem.network)
    problem.on_held(trained(problem.held)).backward()
    own = {name: torch.zeros_like(weight) if weight.grad is None else weight.grad for name, weight in trained.named_parameters()}
    assert list(found) == list(own)
    for name, part in own.items():
        torch.testing.assert_close(found[name], part, rtol=1e-12, atol=1e-14)
        assert not found[name].requires_grad


def test_segmenter_gradient_is_zero_for_an_unused_head():
    problem = Problem(deep=False)
    found = hypergradient.segmenter_gradient(problem.network, problem.theta, problem.held, problem.on_held)
    assert not found["low_head.weight"].any()
    assert found["head.weight"].any()


@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_hypergradient_equals_unrolled_autograd(dims, channels, deep):
    problem = Problem(dims, channels, deep)
    assert relative_error(problem.hypergradient(), problem.unrolled()) < 1e-6


@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_short_difference_equals_reverse_over_reverse(dims, deep):
    problem = Problem(dims, deep=deep)
    direction = problem.direction()
    image = problem.generator(problem.noise)
    reverse = reverse_over_reverse(problem.network, problem.theta, direction, problem.phi, image, problem.on_synthetic)
    assert relative_error(problem.hypergradient(direction), reverse) < 1e-6


def test_a_step_against_the_hypergradient_lowers_the_feedback_loss():
    problem = Problem()
    before = problem.loss_after_step().item()
    gradient = problem.hypergradient()
    squared = sum((part**2).sum() for part in gradient).item()
    step = 0.02 / squared**0.5
    with torch.no_grad():
        for weight, part in zip(problem.phi, gradient):
            weight -= step * part
    change = problem.loss_after_step().item() - before
    assert change < 0
    assert change == pytest.approx(-step * squared, rel=0.1)


def test_nothing_is_changed_and_no_gradient_is_left():
    problem = Problem(deep=True)
    parameters = [*problem.network.parameters(), *problem.phi]
    before = [weight.detach().clone() for weight in parameters]
    assert any(part.any() for part in problem.hypergradient())
    for weight, old in zip(parameters, before):
        assert torch.equal(weight, old)
        assert weight.grad is None
        assert weight.requires_grad


def nnunet(dims, deep, batch_norm=False):
    """nnU-Net's network, whose blocks are registered under several names each."""
    norm = (nn.BatchNorm2d, nn.BatchNorm3d) if batch_norm else (nn.InstanceNorm2d, nn.InstanceNorm3d)
    return PlainConvUNet(
        1, 3, (4, 8, 8), convolution(dims), 3, (1, 2, 2), 1, CLASSES, 1, conv_bias=True,
        norm_op=norm[dims - 2], norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, deep_supervision=deep,
    ).double()  # fmt: skip


class NnunetProblem(Problem):
    """nnU-Net's network as it is, LeakyReLU and all."""

    def __init__(self, dims, deep=False):
        super().__init__(dims, deep=deep, extent=8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nnunet(dims, deep)
            self.theta = dict(self.network.named_parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_networks_of_nnunet_keep_the_very_same_parameters(dims):
    network, problem = nnunet(dims, deep=False), Problem(dims, extent=8)
    theta = dict(network.named_parameters())
    before = {name: weight.detach().clone() for name, weight in theta.items()}
    direction = hypergradient.segmenter_gradient(network, theta, problem.held, lambda z: (z**2).mean())
    image = problem.generator(problem.noise)
    assert hypergradient.hypergradient(network, theta, direction, problem.phi, image, lambda z: (z**2).mean(), ETA)[0].any()
    after = dict(network.named_parameters())
    assert list(after) == list(theta)
    for name, weight in after.items():
        assert weight is theta[name], name
        assert torch.equal(weight, before[name]), name
        assert weight.grad is None


def test_running_statistics_stay_as_they_are():
    network, problem = nnunet(2, deep=False, batch_norm=True).train(), Problem(2, extent=8)
    theta, statistics = dict(network.named_parameters()), dict(network.named_buffers())
    before = {name: values.clone() for name, values in statistics.items()}
    direction = hypergradient.segmenter_gradient(network, theta, problem.held, lambda z: (z**2).mean())
    image = problem.generator(problem.noise)
    assert hypergradient.hypergradient(network, theta, direction, problem.phi, image, lambda z: (z**2).mean(), ETA)[0].any()
    assert statistics
    for name, values in network.named_buffers():
        assert values is statistics[name], name
        assert torch.equal(values, before[name]), name


def test_detached_image_raises():
    problem = Problem()
    image = problem.generator(problem.noise).detach()
    with pytest.raises(RuntimeError, match="detached"):
        problem.found(image, problem.phi, problem.direction())


def test_phi_that_the_image_does_not_depend_on_raises():
    problem = Problem()
    stranger = torch.ones(3, dtype=torch.float64, requires_grad=True)
    image = problem.generator(problem.noise)
    with pytest.raises(RuntimeError, match="detached"):
        problem.found(image, [stranger], problem.direction())


def test_part_of_phi_that_is_not_reached_gets_zero():
    problem = Problem()
    stranger = torch.ones(3, dtype=torch.float64, requires_grad=True)
    image = problem.generator(problem.noise)
    phi = [stranger, *problem.phi]
    found = problem.found(image, phi, problem.direction())
    assert torch.equal(found[0], torch.zeros(3, dtype=torch.float64))
    assert found[1].any()


class Attention(SmoothSegmenter):
    """Every voxel attends to all, with dropout, as in nnU-Net's transformers."""

    def __init__(self, dropout):
        super().__init__(2, 1, False)
        self.project = nn.Conv2d(1, 12, 1)
        self.out = nn.Conv2d(4, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.fused = True

    def forward(self, x):
        query, key, value = self.project(x).view(len(x), 3, 1, 4, -1).transpose(3, 4).contiguous().unbind(1)
        if self.fused:
            attended = functional.scaled_dot_product_attention(query, key, value)
        else:
            attended = (query @ key.transpose(-2, -1) / 2).softmax(dim=-1) @ value
        attended = attended[:, 0].transpose(1, 2).reshape(len(x), 4, *x.shape[2:])
        return super().forward(x + self.dropout(self.out(attended)))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_networks_with_attention_and_dropout(dropout):
    """What was dropped on one side of the difference is dropped on the other."""
    problem = Problem()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        problem.network = Attention(dropout).double()
        problem.theta = dict(problem.network.named_parameters())
        direction = problem.direction()

        def found(seed):
            torch.manual_seed(seed)
            return problem.hypergradient(direction)

        torch.manual_seed(1)
        problem.network.fused = False  # torch's fused attention cannot be differentiated twice
        image = problem.generator(problem.noise)
        reverse = reverse_over_reverse(problem.network, problem.theta, direction, problem.phi, image, problem.on_synthetic)
        problem.network.fused = True
        assert relative_error(found(1), reverse) < 1e-6
        assert (relative_error(found(2), reverse) > 0.01) == (dropout > 0)


def test_norm():
    assert hypergradient.finite_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == pytest.approx(5.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_hypergradient_that_is_not_finite_raises(bad):
    with pytest.raises(FloatingPointError, match=r"not finite.*the hypergradient"):
        hypergradient.finite_norm([torch.zeros(2), torch.tensor([0.0, bad])])


def test_along_a_vanishing_direction_it_is_zero():
    problem = Problem()
    direction = {name: torch.zeros_like(weight) for name, weight in problem.theta.items()}
    assert not any(part.any() for part in problem.hypergradient(direction))


@pytest.mark.parametrize("dims", [2, 3])
def test_frozen_weights_take_no_part(dims):
    """A frozen weight makes no step, so that the held-out loss does not depend on φ through it."""
    problem = NnunetProblem(dims)
    whole = problem.hypergradient()
    for name, weight in problem.theta.items():
        weight.requires_grad_("seg_layers" in name)
    found = problem.hypergradient()
    assert relative_error(found, problem.unrolled()) < 1e-6
    assert relative_error(found, whole) > 0.05
    assert all(weight.requires_grad == ("seg_layers" in name) for name, weight in problem.network.named_parameters())


@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_short_difference_equals_unrolled_autograd_on_nnunets_own_network(dims, deep):
    problem = NnunetProblem(dims, deep=deep)
    assert any(isinstance(module, nn.LeakyReLU) for module in problem.network.modules())
    assert relative_error(problem.hypergradient(), problem.unrolled()) < 1e-5


class Kinks(nn.Module):
    """|θ + x| has a kink where a value of the image is -θ."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return (self.weight + x).abs()


def test_the_difference_holds_what_kinks_contribute_and_the_derivative_does_not():
    """x = φ + n with n uniform in [-2, 0]: the slope of mean |θ + x| by θ, mean sign(1 + x), grows by the density of n: 2 / 2."""
    network, phi = Kinks(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    image = phi + torch.linspace(-2, 0, 20000, dtype=torch.float64).view(1, 1, 100, 200)
    theta, direction = dict(network.named_parameters()), {"weight": torch.ones((), dtype=torch.float64)}

    def found(ratio):
        return hypergradient.hypergradient(network, theta, direction, [phi], image, torch.mean, ETA, ratio)[0].item()

    assert found(1e-6) == 0
    assert found(0.05) == pytest.approx(-ETA, rel=0.01)
