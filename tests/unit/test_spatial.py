import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.synthesis import spatial as geometry
from nnunetv2_genseg.synthesis.spatial import (
    affine,
    displacement_field,
    identity_grid,
    one_hot,
    per_patch,
    random_affine,
    warp_image,
    warp_labels,
)
from pair_measures import high_frequency_ratio

CPU = torch.device("cpu")
SHAPES = [(24, 24), (17, 29), (12, 12, 12), (7, 17, 13)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def identity(count, spatial):
    return identity_grid(spatial, CPU).expand(count, *spatial, len(spatial))


def random_grid(count, spatial, displacement=0.04, rotation=30.0, scaling=0.25, seed=0, amount=1.0):
    movable, rng = [True] * len(spatial), seeded(seed)
    moved = identity_grid(spatial, CPU) + displacement_field(count, spatial, displacement, movable, rng, amount)
    return affine(moved, random_affine(count, spatial, rotation, scaling, movable, rng))


@pytest.mark.parametrize("spatial", SHAPES)
def test_identity_grid_points_at_the_voxels_themselves(spatial):
    values = torch.arange(3 * math.prod(spatial)).view(3, *spatial)
    assert torch.equal(warp_labels(values, identity(3, spatial)), values)
    image = noise(3, 2, *spatial)
    torch.testing.assert_close(warp_image(image, identity(3, spatial)), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_affine_is_the_matrix_product(spatial):
    dims = len(spatial)
    positions, theta = noise(4, *spatial, dims), noise(4, dims, dims + 1, seed=1)
    expected = torch.einsum("bij,b...j->b...i", theta[..., :-1], positions) + theta[..., -1].view(4, *(1,) * dims, dims)
    torch.testing.assert_close(affine(positions, theta), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(affine(positions[:1], theta)[:1], expected[:1], rtol=1e-4, atol=1e-5)


def test_a_rotation_keeps_distances_in_voxels():
    spatial = (9, 15)
    grid = affine(identity_grid(spatial, CPU), random_affine(64, spatial, 180.0, 0.0, [True, True], seeded()))
    extent = torch.tensor([15.0, 9.0])
    before, after = identity(64, spatial) * extent / 2, grid * extent / 2
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
    angle = 2 * torch.rand(64, generator=seeded()) - 1
    cosine = (before * after).sum(dim=-1)[:, 0, 0] / before.square().sum(dim=-1)[:, 0, 0]
    torch.testing.assert_close(cosine, (angle * torch.pi).cos(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_scaling_stays_in_its_log_uniform_range(dims):
    spatial = (8,) * dims
    grid = affine(identity_grid(spatial, CPU), random_affine(200, spatial, 0.0, 0.3, [True] * dims, seeded()))
    ratio = (grid / identity(200, spatial)).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert 0.7 <= float(ratio.min()) < 0.75
    assert 1.35 < float(ratio.max()) <= 1 / 0.7 + 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_that_is_not_movable_is_not_displaced(axis):
    spatial, movable, rng = (6, 9, 12), [i != axis for i in range(3)], seeded()
    still = identity_grid(spatial, CPU)
    turned = affine(still, random_affine(4, spatial, 60.0, 0.4, movable, rng)) - still
    bent = displacement_field(4, spatial, 0.1, movable, rng)
    for moved in (turned, bent):
        along = moved.abs().amax(dim=(0, 1, 2, 3)).flip(0)
        assert along[axis] < 1e-6
        assert (along[torch.tensor(movable)] > 0.05).all()


@pytest.mark.parametrize("extent", [1, 5, 24])
def test_spline_basis_is_a_partition_of_unity(extent):
    basis = geometry._bspline_basis(extent, 5, CPU)
    assert basis.shape == (extent, 5)
    torch.testing.assert_close(basis.sum(dim=1), torch.ones(extent))
    assert (basis >= 0).all()
    assert ((basis > 0).sum(dim=1) <= 4).all()


def test_spline_basis_reproduces_straight_lines():
    line = geometry._bspline_basis(20, 6, CPU) @ torch.arange(6.0)
    torch.testing.assert_close(line.diff(), torch.full((19,), 3 / 20), rtol=1e-4, atol=1e-5)


def test_gain_of_many_voxels_is_that_of_the_continuous_spline():
    assert geometry._rms_gain(512, 5) == pytest.approx(math.sqrt(151 / 315), rel=1e-4)


@pytest.mark.parametrize("spatial", [(64, 64), (32, 48), (16, 16, 16), (8, 32, 20), (1, 32, 32)])
def test_displacement_is_as_wide_as_configured_and_smooth(spatial):
    dims = len(spatial)
    field = displacement_field(400, spatial, 0.02, [True] * dims, seeded())
    assert field.shape == (400, *spatial, dims)
    deviation = (field / 2).square().flatten(0, -2).mean(dim=0).sqrt()
    torch.testing.assert_close(deviation, torch.full((dims,), 0.02), rtol=0.1, atol=0)
    for axis in range(dims):
        if spatial[axis] > 2:
            second = field.diff(n=2, dim=axis + 1).abs().mean()
            assert second < 30 / spatial[axis] ** 2 * field.abs().mean()


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_of_a_batch_differ_and_a_seed_repeats_them(dims, outside_random_state_untouched):
    spatial = (8,) * dims
    first, again = (displacement_field(2, spatial, 0.1, [True] * dims, seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert (first[0] - first[1]).abs().max() > 0.01


@pytest.mark.parametrize("dims", [2, 3])
def test_amount_scales_the_displacement_and_has_a_gradient(dims):
    spatial = (8,) * dims
    amount = torch.tensor(2.0, requires_grad=True)
    single = displacement_field(2, spatial, 0.004, [True] * dims, seeded())
    double = displacement_field(2, spatial, 0.004, [True] * dims, seeded(), amount)
    torch.testing.assert_close(double, 2 * single)
    (slope,) = torch.autograd.grad(double.square().sum(), amount)
    assert slope > 0


def jacobian(displacement):
    """(B, *spatial minus 1) determinant of the Jacobian of identity plus displacement, by forward differences, in voxels."""
    dims = displacement.shape[-1]
    spatial = displacement.shape[1:-1]
    offset = displacement.flip(-1) / 2 * torch.tensor(spatial)
    inner = (slice(None), *(slice(0, -1),) * dims)
    columns = [
        torch.diff(offset, dim=axis + 1)[tuple(s if i != axis + 1 else slice(None) for i, s in enumerate(inner))]
        for axis in range(dims)
    ]
    return (torch.eye(dims) + torch.stack(columns, dim=-1)).det()


@pytest.mark.parametrize("spatial", [(48, 48), (24, 24, 24), (8, 32, 20)])
def test_the_largest_setting_does_not_fold(spatial, monkeypatch):
    movable = [True] * len(spatial)

    def smallest():
        return min(float(jacobian(displacement_field(50, spatial, 0.2, movable, seeded(s), 3.0)).min()) for s in range(4))

    assert smallest() > 0
    monkeypatch.setattr(geometry, "LARGEST_CONTROL_DISPLACEMENT", 100.0)
    assert smallest() < 0, "the test would see a fold"


@pytest.mark.parametrize("spatial", SHAPES)
def test_labels_stay_integers_of_their_patch(spatial):
    labels = torch.stack([torch.randint(2, spatial, generator=seeded()) * 3 + 4 * i for i in range(4)])
    warped = warp_labels(labels, random_grid(4, spatial))
    assert warped.dtype == labels.dtype
    assert not torch.equal(warped, labels)
    for i in range(4):
        assert set(warped[i].unique().tolist()) <= {4 * i, 4 * i + 3}


@pytest.mark.parametrize("spatial", SHAPES)
def test_a_shift_by_whole_voxels_is_mirrored_at_the_border(spatial):
    shift = torch.zeros(len(spatial))
    shift[0] = 2 * 3 / spatial[-1]
    grid = identity(2, spatial) + shift
    index = torch.arange(3, spatial[-1] + 3)
    index = torch.minimum(index, 2 * spatial[-1] - 1 - index)
    image, labels = noise(2, 2, *spatial), torch.randint(9, (2, *spatial), generator=seeded())
    torch.testing.assert_close(warp_image(image, grid), image[..., index], rtol=0, atol=1e-4)
    assert torch.equal(warp_labels(labels, grid), labels[..., index])


@pytest.mark.parametrize("spatial", SHAPES)
def test_images_keep_to_their_range_and_constant_channels_stay_to_the_bit(spatial):
    image = noise(3, 3, *spatial).sign()
    image[:, 1] = 0.1
    image[2] = torch.tensor([0.1, -0.7, 1000.1]).view(3, *(1,) * len(spatial))
    warped = warp_image(image, random_grid(3, spatial))
    assert torch.equal(warped[:, 1], image[:, 1])
    assert torch.equal(warped[2], image[2])
    assert warped[:2, 0].abs().max() <= 1
    assert warped[:2, 0].abs().min() < 0.9, "between the values there are others"


@pytest.mark.parametrize("spatial", [(1, 9), (2, 3), (1, 8, 8)])
def test_any_extent_can_be_sampled(spatial):
    image = noise(2, 1, *spatial)
    warped = warp_image(image, random_grid(2, spatial))
    assert warped.shape == image.shape
    assert torch.isfinite(warped).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_sampling_is_differentiable_in_the_image(dims):
    spatial = (6,) * dims
    grid = random_grid(2, spatial).double()
    image = noise(2, 1, *spatial).double()
    image[..., 0], image[..., -1] = 5, -5  # no value is clamped

    def inner(middle):
        return warp_image(torch.cat([image[..., :1], middle, image[..., -1:]], dim=-1), grid).clamp(-4, 4)

    assert torch.autograd.gradcheck(inner, image[..., 1:-1].clone().requires_grad_(), eps=1e-6, atol=1e-5)


def phantoms(dims, count):
    rng = np.random.default_rng(0)
    dataset = PhantomDataset(900, dims, 1, 1, extent=64 if dims == 2 else 40)
    return torch.from_numpy(np.stack([dataset._case(rng)[0] for _ in range(count)])).float()[:, None]


def linear(image, grid):
    return functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


@pytest.mark.parametrize("image", [phantoms(2, 32), noise(64, 1, 64, 64), noise(12, 1, 96, 80)])
def test_fine_texture_is_kept_in_2d(image):
    grid = random_grid(len(image), image.shape[2:])
    assert high_frequency_ratio(image, warp_image(image, grid)) > 0.7
    assert high_frequency_ratio(image, linear(image, grid)) < 0.5


def test_an_edge_overshoots_hardly():
    edge = torch.zeros(8, 1, 64, 64)
    edge[..., 20:40] = 1
    edge[..., 0, :2] = torch.tensor([-10.0, 10.0])  # widens the range
    warped = warp_image(edge, random_grid(8, (64, 64)))[..., 8:, :]
    assert warped.quantile(0.999) < 1.12
    assert warped.quantile(0.001) > -0.12


def test_no_less_texture_than_nnunets_own_transform_keeps_in_3d():
    image = noise(16, 1, 28, 32, 24)
    theirs = SpatialTransform(
        (28, 32, 24), 0, False, 0, p_rotation=1, rotation=(-math.pi / 6, math.pi / 6), p_scaling=1, scaling=(0.7, 1.4)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        stock = torch.stack([theirs(image=patch)["image"] for patch in image])
    grid = random_grid(16, (28, 32, 24))
    ratio = high_frequency_ratio(image, warp_image(image, grid))
    assert ratio >= 0.98 * high_frequency_ratio(image, stock)
    assert ratio == high_frequency_ratio(image, linear(image, grid))


@pytest.mark.parametrize("dims", [2, 3])
def test_small_helpers(dims):
    labels = torch.randint(3, (2, *(5,) * dims), generator=seeded())
    maps = one_hot(labels, 4)
    assert torch.equal(maps.argmax(dim=1), labels)
    assert torch.equal(maps.sum(dim=1), torch.ones(2, *(5,) * dims))
    assert per_patch(torch.arange(2), labels).shape == (2, *(1,) * dims)
    mean = neighbourhood_mean(maps)
    middle = (slice(None), slice(None), *(slice(1, 4),) * dims)
    torch.testing.assert_close(mean[(..., *(2,) * dims)], maps[middle].flatten(2).mean(dim=2))
    corner = (slice(None), slice(None), *(slice(0, 2),) * dims)
    torch.testing.assert_close(mean[(..., *(0,) * dims)], maps[corner].flatten(2).mean(dim=2))


@pytest.mark.parametrize("spatial", SHAPES)
def test_nothing_waits_for_the_device(spatial):
    """Reading a number from a tensor, which stops the host until the device is done, shows as `_local_scalar_dense`."""
    image, labels = noise(2, 2, *spatial), torch.randint(4, (2, *spatial), generator=seeded())
    random_grid(2, spatial)  # the small constants are made once

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        grid = random_grid(2, spatial, amount=torch.tensor(1.5))
        warp_image(image, grid), warp_labels(labels, grid)
    assert reads.count == 0
