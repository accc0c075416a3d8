import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from toy import CODECS, CPU, REDRAW, configured, planned

from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.synthesis.conditioning import (
    class_intensities,
    compose_scene,
    condition,
    spread,
    tissue_map,
)
from nnunetv2_genseg.synthesis.sampler import PairSampler
from nnunetv2_genseg.synthesis.spatial import one_hot

SHAPES = [(16, 18), (8, 10, 12)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def banded(spatial, channels=1, count=2):
    """Images of bands along the last axis, dark to bright from left to right in the first patch, reversed in the second."""
    ramp = torch.arange(spatial[-1]) * 4 // spatial[-1]
    image = torch.stack([ramp, 3 - ramp])[:count].float().view(count, 1, *(1,) * (len(spatial) - 1), -1)
    image = image.expand(count, channels, *spatial) * 2 + 0.05 * noise(count, channels, *spatial)
    return image, torch.stack([ramp, 3 - ramp])[:count].view(count, *(1,) * (len(spatial) - 1), -1).expand(count, *spatial)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial", SHAPES)
def test_tissues_are_ordered_from_dark_to_bright(spatial, channels):
    image, bands = banded(spatial, channels)
    tissue = tissue_map(image, torch.ones(2, *spatial, dtype=torch.bool), 4)
    assert tissue.dtype == torch.long
    assert torch.equal(tissue, bands)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_tissues_of_unrelated_channels_are_ordered_too(channels):
    for seed in range(5):
        image = noise(3, channels, 20, 20, seed=seed)
        tissue = tissue_map(image, torch.ones(3, 20, 20, dtype=torch.bool), 5)
        brightness = image.mean(dim=1)
        for i in range(3):
            means = torch.stack([brightness[i][tissue[i] == k].mean() for k in range(5)])
            assert (means.diff() > -0.1).all()


@pytest.mark.parametrize("spatial", SHAPES)
def test_tissue_under_a_structure_comes_from_its_surroundings(spatial):
    image, bands = banded(spatial)
    structure = torch.zeros(2, *spatial, dtype=torch.bool)
    structure[(slice(None), *(slice(2, n - 3) for n in spatial[:-1]), slice(0, 2))] = True  # inside the outermost band
    image = torch.where(structure[:, None], 3.0, image)
    tissue = tissue_map(image, ~structure, 4)
    assert not torch.equal(tissue, bands)
    assert torch.equal(spread(tissue, ~structure, 4), bands)


@pytest.mark.parametrize("spatial", SHAPES)
def test_intensity_of_a_structure_does_not_matter(spatial):
    image, _ = banded(spatial)
    structure = torch.zeros(2, *spatial, dtype=torch.bool)
    structure[(slice(None), *(slice(3, -3),) * len(spatial))] = True
    bright, dark = (tissue_map(torch.where(structure[:, None], value, image), ~structure, 4) for value in (50.0, -50.0))
    assert torch.equal(bright[~structure], dark[~structure])
    assert torch.equal(spread(bright, ~structure, 4), spread(dark, ~structure, 4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial", SHAPES)
def test_a_patch_that_is_labelled_all_over_clusters_all_voxels(spatial, channels):
    image, bands = banded(spatial, channels)
    tissue = tissue_map(image, torch.zeros(2, *spatial, dtype=torch.bool), 4)
    assert torch.equal(tissue, bands)


@pytest.mark.parametrize("spatial", SHAPES)
def test_a_single_unlabelled_voxel_is_spread_over_everything(spatial):
    image, _ = banded(spatial)
    unlabelled = torch.zeros(2, *spatial, dtype=torch.bool)
    unlabelled[(slice(None), *(0,) * len(spatial))] = True
    tissue = spread(tissue_map(image, unlabelled, 3), unlabelled, 3)
    assert tissue.shape == (2, *spatial)
    for single in tissue:
        assert (single == single.flatten()[0]).all()


@pytest.mark.parametrize("spatial", [(6, 24, 24), (24, 24, 6)])
def test_a_structure_thicker_than_an_anisotropic_patch_is_spread_under(spatial):
    image, _ = banded(spatial)
    unlabelled = torch.zeros(2, *spatial, dtype=torch.bool)
    unlabelled[(slice(None), *(slice(0, 1) if n == 24 else slice(None) for n in spatial))] = True
    image = torch.where(unlabelled[:, None], -1.0, image)
    tissue = spread(tissue_map(image, unlabelled, 3), unlabelled, 3)
    for single, known in zip(tissue, unlabelled):
        assert (single == single[known][0]).all()


@pytest.mark.parametrize("spatial", [(1, 2), (2, 5), (1, 9, 2)])
def test_tissue_reaches_the_far_corner_of_any_extent(spatial):
    known = torch.zeros(1, *spatial, dtype=torch.bool)
    known[(0, *(0,) * len(spatial))] = True
    tissue = torch.zeros(1, *spatial, dtype=torch.long)
    tissue[known] = 2
    assert (spread(tissue, known, 3) == 2).all()


def test_without_any_known_voxel_tissue_stays():
    tissue = torch.randint(3, (2, 6, 7), generator=seeded())
    assert torch.equal(spread(tissue, torch.zeros(2, 6, 7, dtype=torch.bool), 3), tissue)


def test_what_is_known_stays_and_the_majority_around_is_taken():
    tissue = torch.zeros(1, 5, 5, dtype=torch.long)
    tissue[..., 3:] = 1
    known = torch.ones(1, 5, 5, dtype=torch.bool)
    known[0, 2, 3] = False
    tissue[0, 2, 3] = 0
    found = spread(tissue, known, 2)
    assert found[0, 2, 3] == 1
    assert torch.equal(found[known], tissue[known])


def test_a_constant_image_has_one_tissue():
    tissue = tissue_map(torch.full((1, 1, 8, 8), -0.7), torch.ones(1, 8, 8, dtype=torch.bool), 4)
    assert len(tissue.unique()) == 1


def test_a_large_patch_is_clustered_by_a_part_of_its_voxels():
    image, bands = banded((300, 240))
    assert torch.equal(tissue_map(image, torch.ones(2, 300, 240, dtype=torch.bool), 4), bands)


def test_tissues_of_a_large_patch_are_those_of_all_its_voxels():
    """A ramp along the last axis; a sample by a fixed stride would see two of its 128 positions."""
    image = torch.linspace(-2, 2, 128).expand(1, 1, 128, 128, 128)
    tissue = tissue_map(image, torch.ones(1, 128, 128, 128, dtype=torch.bool), 6)
    sizes = torch.bincount(tissue.flatten(), minlength=6) / tissue.numel()
    torch.testing.assert_close(sizes, torch.full((6,), 1 / 6), rtol=0, atol=0.02)
    centres = torch.stack([image[0][tissue == k].mean() for k in range(6)])
    torch.testing.assert_close(centres, torch.linspace(-5 / 3, 5 / 3, 6), rtol=0, atol=0.05)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tissues", [0, 4])
def test_layout_counts_the_channels_of_the_condition(tissues, channels):
    layout = ConditionLayout(2, tissues, channels)
    scene = torch.randint(layout.scene_classes, (2, 6, 5), generator=seeded())
    intensities = class_intensities(noise(2, channels, 6, 5), scene, layout)
    assert layout.scene_classes == 3 + tissues
    assert layout.channels == (2 if tissues == 0 else 6 + channels)
    assert condition(scene, intensities, layout).shape == (2, layout.channels, 6, 5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_scene_shows_labels_over_tissue_and_ignores_the_ignore_label(spatial):
    layout = ConditionLayout(2, 3, 1)
    labels = torch.randint(4, (2, *spatial), generator=seeded())  # 3 is the ignore label
    tissue = torch.randint(3, (2, *spatial), generator=seeded(1))
    scene = compose_scene(labels, tissue, layout)
    shown = (labels == 1) | (labels == 2)
    assert torch.equal(scene[shown], labels[shown])
    assert torch.equal(scene[~shown], tissue[~shown] + 3)
    bare = compose_scene(labels, None, ConditionLayout(2, 0, 1))
    assert torch.equal(bare, torch.where(shown, labels, 0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial", SHAPES)
def test_class_intensities_are_the_means(spatial, channels):
    layout = ConditionLayout(1, 2, channels)
    image = noise(2, channels, *spatial)
    scene = torch.randint(4, (2, *spatial), generator=seeded())
    scene[0][scene[0] == 3] = 2  # class 3 is absent from the first patch
    scene[scene == 0] = 1  # class 0 from both
    found = class_intensities(image, scene, layout)
    assert found.shape == (2, 4, channels)
    for i in range(2):
        for k in (1, 2):
            torch.testing.assert_close(found[i, k], image[i][:, scene[i] == k].mean(dim=1), rtol=1e-4, atol=1e-5)
    other = image[1][:, scene[1] == 3].mean(dim=1)
    torch.testing.assert_close(found[:, 3], torch.stack([other, other]), rtol=1e-4, atol=1e-5)
    assert not found[:, 0].any()


def blurred(maps):
    """The mean of the 3-voxel neighbourhood, of what lies within the patch."""
    dims = maps.ndim - 2
    pool = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
    return pool(maps, 3, stride=1, padding=1) / pool(torch.ones_like(maps), 3, stride=1, padding=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial", SHAPES)
def test_condition_is_classes_then_painted_intensities(spatial, channels):
    layout = ConditionLayout(2, 3, channels)
    scene = torch.randint(6, (2, *spatial), generator=seeded())
    intensities = noise(2, 6, channels)
    found = condition(scene, intensities, layout)
    assert torch.equal(found[:, :5], one_hot(scene, 6)[:, 1:])
    painted = torch.stack([intensities[i][scene[i]].movedim(-1, 0) for i in range(2)])
    torch.testing.assert_close(found[:, 5:], blurred(painted))


def layout_of(plan):
    """What a training with this plan uses, for two foreground and three tissue classes."""
    return PairSampler(configured(mixing=REDRAW), plan, CODECS["labels"], 1, CPU).sources["redraw"].layout


def test_a_structure_does_not_shine_into_neighbouring_thick_slices():
    layout = layout_of(NetworkPlan((5, 8, 8), (8, 8), ((1, 1, 1), (1, 2, 2)), ((1, 3, 3), (3, 3, 3))))
    scene = torch.full((1, 5, 8, 8), 3)
    scene[:, 2, 2:6, 2:6] = 1
    intensities = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0, 0.0]).view(1, 6, 1)
    painted = condition(scene, intensities, layout)[0, 5]
    torch.testing.assert_close(painted[[0, 1, 3, 4]], torch.ones(4, 8, 8))
    slice_alone = torch.where(scene[:, 2] == 1, 3.0, 1.0)
    torch.testing.assert_close(painted[2], blurred(slice_alone[None])[0, 0])


@pytest.mark.parametrize("dims", [2, 3])
def test_without_thick_slices_intensities_are_blurred_along_every_axis(dims):
    scene = torch.randint(6, (2, *planned(dims).patch_size), generator=seeded())
    intensities = noise(2, 6, 1)
    painted = torch.stack([intensities[i][scene[i]].movedim(-1, 0) for i in range(2)])
    pool = functional.avg_pool2d if dims == 2 else functional.avg_pool3d
    expected = pool(painted, 3, stride=1, padding=1, count_include_pad=False)
    assert torch.equal(condition(scene, intensities, layout_of(planned(dims)))[:, 5:], expected)


def test_mask_condition_knows_nothing_of_the_image():
    layout = ConditionLayout(2, 0, 1)
    scene = torch.randint(3, (2, 6, 6), generator=seeded())
    assert torch.equal(condition(scene, noise(2, 3, 1), layout), one_hot(scene, 3)[:, 1:])


@pytest.mark.parametrize("spatial", SHAPES)
def test_condition_is_differentiable_in_the_intensities(spatial):
    layout = ConditionLayout(1, 2, 1)
    scene = torch.randint(4, (2, *spatial), generator=seeded())
    intensities = noise(2, 4, 1).requires_grad_()
    condition(scene, intensities, layout)[:, 3:].sum().backward()
    shares = blurred(one_hot(scene, 4)).flatten(2).sum(dim=2)
    torch.testing.assert_close(intensities.grad[..., 0], shares, rtol=1e-4, atol=1e-4)


def by_matrix_products(image, scene, layout):
    """Class means and painted channels by one-hot maps: the definition, at a cost that grows with the number of classes."""
    member = one_hot(scene, layout.scene_classes)
    total, size = member.flatten(2) @ image.flatten(2).transpose(1, 2), member.flatten(2).sum(dim=2)[..., None]
    everywhere = (total.sum(dim=0) / size.sum(dim=0).clamp(min=1)).expand_as(total)
    intensities = torch.where(size > 0, total / size.clamp(min=1), everywhere)
    painted = (intensities.transpose(1, 2) @ blurred(member).flatten(2)).view(len(scene), -1, *scene.shape[1:])
    return intensities, torch.cat([member[:, 1:], painted], dim=1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial", SHAPES)
def test_many_classes_give_what_matrix_products_give(spatial, channels):
    layout = ConditionLayout(30, 6, channels)
    image, scene = noise(2, channels, *spatial), torch.randint(37, (2, *spatial), generator=seeded())
    intensities, expected = by_matrix_products(image, scene, layout)
    found = class_intensities(image, scene, layout)
    torch.testing.assert_close(found, intensities, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(condition(scene, found, layout), expected, rtol=1e-5, atol=1e-5)


class Sizes(TorchDispatchMode):
    """Notes the sizes of the results of all operations."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize("foreground", [3, 60])
def test_no_copy_a_class_is_made_beside_the_condition_itself(foreground):
    layout, spatial = ConditionLayout(foreground, 6, 1), (24, 24, 24)
    image, scene = noise(2, 1, *spatial), torch.randint(layout.scene_classes, (2, *spatial), generator=seeded())
    with Sizes() as means:
        intensities = class_intensities(image, scene, layout)
    assert max(means.sizes) <= 2 * image.numel()
    with Sizes() as made:
        condition(scene, intensities, layout)
    large = {size for size in made.sizes if size > 2 * image.numel()}
    assert large == {2 * layout.channels * 24**3}


def test_nothing_waits_for_the_device():
    """Reading a number from a tensor, which stops the host until the device is done, shows as `_local_scalar_dense`."""
    layout = ConditionLayout(2, 6, 2)
    image, labels = noise(2, 2, 20, 20), torch.randint(4, (2, 20, 20), generator=seeded())

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as reads:
        known = labels == 0
        scene = compose_scene(labels, spread(tissue_map(image, known, 6), known, 6), layout)
        condition(scene, class_intensities(image, scene, layout), layout)
    assert reads.count == 0
