import pytest
import torch

from nnunetv2_genseg.conditioning import ConditionLayout, class_intensities, compose_scene, condition, tissue_map
from nnunetv2_genseg.masks import identity_grid, one_hot

SHAPES = [(16, 18), (8, 10, 12)]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    assert torch.equal(tissue, bands)


@pytest.mark.parametrize("spatial", SHAPES)
def test_intensity_of_a_structure_does_not_matter(spatial):
    image, _ = banded(spatial)
    structure = torch.zeros(2, *spatial, dtype=torch.bool)
    structure[(slice(None), *(slice(3, -3),) * len(spatial))] = True
    bright, dark = (torch.where(structure[:, None], value, image) for value in (50.0, -50.0))
    assert torch.equal(tissue_map(bright, ~structure, 4), tissue_map(dark, ~structure, 4))


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
    tissue = tissue_map(image, unlabelled, 3)
    assert tissue.shape == (2, *spatial)
    for single in tissue:
        assert (single == single.flatten()[0]).all()


@pytest.mark.parametrize("spatial", [(6, 24, 24), (24, 24, 6)])
def test_a_structure_thicker_than_an_anisotropic_patch_is_spread_under(spatial):
    image, _ = banded(spatial)
    unlabelled = torch.zeros(2, *spatial, dtype=torch.bool)
    unlabelled[(slice(None), *(slice(0, 1) if n == 24 else slice(None) for n in spatial))] = True
    image = torch.where(unlabelled[:, None], -1.0, image)
    tissue = tissue_map(image, unlabelled, 3)
    for single, known in zip(tissue, unlabelled):
        assert (single == single[known][0]).all()


def test_a_constant_image_has_one_tissue():
    tissue = tissue_map(torch.full((1, 1, 8, 8), -0.7), torch.ones(1, 8, 8, dtype=torch.bool), 4)
    assert len(tissue.unique()) == 1


def test_a_large_patch_is_clustered_by_a_part_of_its_voxels():
    image, bands = banded((300, 240))
    assert torch.equal(tissue_map(image, torch.ones(2, 300, 240, dtype=torch.bool), 4), bands)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("tissues", [0, 4])
def test_layout_counts_the_channels_of_the_condition(tissues, channels):
    layout = ConditionLayout(2, tissues, channels)
    scene = torch.randint(layout.scene_classes, (2, 6, 5), generator=torch.Generator().manual_seed(0))
    intensities = class_intensities(noise(2, channels, 6, 5), scene, layout)
    assert layout.scene_classes == 3 + tissues
    assert layout.channels == (2 if tissues == 0 else 6 + channels)
    assert condition(scene, intensities, layout).shape == (2, layout.channels, 6, 5)


@pytest.mark.parametrize("spatial", SHAPES)
def test_scene_shows_labels_over_tissue_and_ignores_the_ignore_label(spatial):
    layout = ConditionLayout(2, 3, 1)
    labels = torch.randint(4, (2, *spatial), generator=torch.Generator().manual_seed(0))  # 3 is the ignore label
    tissue = torch.randint(3, (2, *spatial), generator=torch.Generator().manual_seed(1))
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
    scene = torch.randint(4, (2, *spatial), generator=torch.Generator().manual_seed(0))
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
    scene = torch.randint(6, (2, *spatial), generator=torch.Generator().manual_seed(0))
    intensities = noise(2, 6, channels)
    found = condition(scene, intensities, layout)
    assert torch.equal(found[:, :5], one_hot(scene, 6)[:, 1:])
    painted = torch.stack([intensities[i][scene[i]].movedim(-1, 0) for i in range(2)])
    torch.testing.assert_close(found[:, 5:], blurred(painted))


def test_mask_condition_knows_nothing_of_the_image():
    layout = ConditionLayout(2, 0, 1)
    scene = torch.randint(3, (2, 6, 6), generator=torch.Generator().manual_seed(0))
    assert torch.equal(condition(scene, noise(2, 3, 1), layout), one_hot(scene, 3)[:, 1:])


@pytest.mark.parametrize("spatial", SHAPES)
def test_condition_is_differentiable_in_the_intensities(spatial):
    layout = ConditionLayout(1, 2, 1)
    scene = torch.randint(4, (2, *spatial), generator=torch.Generator().manual_seed(0))
    intensities = noise(2, 4, 1).requires_grad_()
    condition(scene, intensities, layout)[:, 3:].sum().backward()
    shares = blurred(one_hot(scene, 4)).flatten(2).sum(dim=2)
    torch.testing.assert_close(intensities.grad[..., 0], shares, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", SHAPES)
def test_condition_is_deformed_with_the_grid(spatial):
    layout = ConditionLayout(1, 2, 1)
    scene = torch.randint(4, (1, *spatial), generator=torch.Generator().manual_seed(0))
    intensities = noise(1, 4, 1)
    shift = torch.zeros(len(spatial))
    shift[0] = 2 / spatial[-1]  # one voxel along the last axis
    found = condition(scene, intensities, layout, identity_grid(spatial, scene.device) + shift)
    plain = condition(scene, intensities, layout)
    inner = (..., *(slice(2, -2),) * len(spatial))
    torch.testing.assert_close(found[..., :-1][inner], plain[..., 1:][inner], rtol=0, atol=1e-5)
