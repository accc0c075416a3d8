import pytest
import torch

from nnunetv2_genseg.config import DeformationConfig
from nnunetv2_genseg.synthesis import masks
from nnunetv2_genseg.synthesis.bounds import class_sizes
from nnunetv2_genseg.synthesis.spatial import identity_grid, warp_labels

SHAPES = [(24, 24), (17, 29), (12, 12, 12), (7, 17, 13)]
STILL = MaskConfig(elastic=0.0, rotation=0.0, scaling=0.0, growth=0.0, recombination=0.0)
UNBOUNDED = torch.full((4,), torch.inf)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def nested_boxes(spatial, count=4):
    """Class 1 with class 2 inside it and class 3 in the far corner; patch i is shifted by i % 2 voxels."""
    labels = torch.zeros(count, *spatial, dtype=torch.long)
    for i in range(count):
        outer = tuple(slice(n // 6 + i % 2, n // 6 + i % 2 + n // 2) for n in spatial)
        inner = tuple(slice(n // 4 + i % 2, n // 4 + i % 2 + max(n // 4, 2)) for n in spatial)
        labels[(i, *outer)] = 1
        labels[(i, *inner)] = 2
        labels[(i, *(slice(-max(n // 4, 2), None) for n in spatial))] = 3
    return labels


def box(spatial, starts, size, value=1):
    labels = torch.zeros(spatial, dtype=torch.long)
    labels[tuple(slice(start, start + size) for start in starts)] = value
    return labels


def new_masks(labels, config, seed=0, largest=UNBOUNDED, **settings):
    change = masks.draw_change(labels, 4, config, largest, seeded(seed), **settings)
    return warp_labels(change.labels, change.grid.detach())


@pytest.mark.parametrize("spatial", SHAPES)
def test_new_masks_are_integers_of_the_old_classes(spatial):
    labels = nested_boxes(spatial)
    labels[labels == 2] = 0  # class 2 is absent
    for seed in range(5):
        new = new_masks(labels, MaskConfig(recombination=1.0), seed)
        assert new.dtype == torch.long
        assert new.shape == labels.shape
        assert set(new.unique().tolist()) == {0, 1, 3}


@pytest.mark.parametrize("spatial", SHAPES)
def test_new_masks_are_seeded_and_differ_from_the_real_ones(spatial, outside_random_state_untouched):
    labels = nested_boxes(spatial)
    config = MaskConfig(smallest=0.01)
    assert torch.equal(new_masks(labels, config, 3), new_masks(labels, config, 3))
    assert not torch.equal(new_masks(labels, config, 3), new_masks(labels, config, 4))
    assert not torch.equal(new_masks(labels, config, 3), labels)


@pytest.mark.parametrize("spatial", SHAPES)
def test_no_amount_of_change_gives_the_real_masks(spatial):
    labels = nested_boxes(spatial)
    change = masks.draw_change(labels, 4, STILL, torch.zeros(4), seeded())
    assert torch.equal(warp_labels(change.labels, change.grid), labels)
    assert change.donors.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spatial", SHAPES)
def test_labels_never_vanish_nor_shrink_below_the_bound(spatial):
    labels = nested_boxes(spatial)
    config = MaskConfig(elastic=0.2, rotation=90.0, scaling=0.5, growth=0.4, recombination=0.5, smallest=0.6)
    real = class_sizes(labels, 4)
    changed = 0
    for seed in range(20):
        new = new_masks(labels, config, seed)
        sizes = class_sizes(new, 4)
        assert (sizes >= 0.6 * real)[:, 1:3].all()
        assert (sizes[:, 1:].sum(dim=1) >= 0.6 * real[:, 1:].sum(dim=1)).all(), "class 3 lies at the border and may leave"
        changed += int((new != labels).any())
    assert changed > 0


@pytest.mark.parametrize("spatial", SHAPES)
def test_no_structure_exceeds_the_largest_one_seen(spatial):
    labels = nested_boxes(spatial)
    real = class_sizes(labels, 4)
    config = MaskConfig(scaling=0.5, smallest=0.01)
    largest = 1.1 * real.amax(dim=0)
    bounded = torch.stack([class_sizes(new_masks(labels, config, seed, largest), 4) for seed in range(20)])
    free = torch.stack([class_sizes(new_masks(labels, config, seed), 4) for seed in range(20)])
    assert (bounded <= largest)[..., 1:].all()
    assert (free > largest)[..., 1:].any()


@pytest.mark.parametrize("spatial", SHAPES)
def test_the_ignore_label_may_be_of_any_size(spatial):
    """Else a band of it, which is a few voxels larger after every second turn, would discard half of the new masks."""
    labels = torch.zeros(8, *spatial, dtype=torch.long)
    labels[:, 3:-3, 3:-3] = 1
    labels[..., -2:] = 2
    largest = torch.tensor([torch.inf, torch.inf, float(class_sizes(labels, 3)[0, 2])])

    def kept(frozen_class):
        changes = (masks.draw_change(labels, 3, MaskConfig(), largest, seeded(i), frozen_class=frozen_class) for i in range(5))
        return torch.cat([change.kept for change in changes])

    assert kept(2).all()
    assert not kept(None).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_without_any_label_stay_empty(dims):
    labels = torch.zeros(3, *(9,) * dims, dtype=torch.long)
    assert not new_masks(labels, MaskConfig(recombination=1.0, growth=0.4)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_that_is_not_movable_is_not_displaced(axis):
    spatial = (6, 9, 12)
    movable = [i != axis for i in range(3)]
    config = MaskConfig(rotation=60.0, scaling=0.4, elastic=0.2, smallest=0.01)
    labels = torch.zeros(4, *spatial, dtype=torch.long)
    change = masks.draw_change(labels, 4, config, UNBOUNDED, seeded(), movable_axes=movable)
    displacement = change.grid - identity_grid(spatial, labels.device)
    along = displacement.abs().amax(dim=(0, 1, 2, 3)).flip(0)
    assert along[axis] < 1e-5
    assert (along[torch.tensor(movable)] > 0.05).all()


@pytest.mark.parametrize("spatial", SHAPES)
def test_amount_scales_the_elastic_displacement(spatial):
    labels = nested_boxes(spatial)
    config = STILL.model_copy(update={"elastic": 0.02, "smallest": 0.01})
    single, double = (
        masks.draw_change(labels, 4, config, UNBOUNDED, seeded(), amount=amount).grid for amount in (1.0, 2.0)
    )
    identity = identity_grid(spatial, labels.device)
    assert (single - identity).abs().max() > 0.005
    torch.testing.assert_close(double - identity, 2 * (single - identity), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_structures_that_the_border_cuts_do_not_keep_a_patch_of_many_from_changing(dims):
    spatial, classes = (32,) * dims, 14
    labels = torch.zeros(8, *spatial, dtype=torch.long)
    labels[(slice(None), *(slice(10, 22) for _ in spatial))] = 1
    for value in range(2, classes):  # a sliver of every other class, two voxels deep, along the first face
        start = 2 * (value - 2)
        labels[(slice(None), slice(0, 2), slice(start, start + 2))] = value
    config, unbounded = MaskConfig(), torch.full((classes,), torch.inf)
    change = masks.draw_change(labels, classes, config, unbounded, seeded())
    assert change.kept.all()
    new = class_sizes(warp_labels(change.labels, change.grid), classes)
    assert (new[:, 1] >= config.smallest * 12**dims).all()
    assert (new[:, 2:] == 0).any(), "some of the slivers left the patch"
