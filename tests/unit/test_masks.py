import pytest
import torch

from nnunetv2_genseg.config import DeformationConfig
from nnunetv2_genseg.synthesis.bounds import class_sizes, within_sizes
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.masks import SMALLEST, MaskDeformer
from nnunetv2_genseg.synthesis.spatial import identity_grid

CPU = torch.device("cpu")
SHAPES = [(24, 24), (17, 29), (12, 12, 12), (7, 17, 13)]
STILL = DeformationConfig(displacement=0.0, rotation=0.0, scaling=0.0)
STRONG = DeformationConfig(displacement=0.2, rotation=90.0, scaling=0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def deformer(dims, config, foreground=3, ignore=None, movable=None):
    """A deformer without bounds on sizes from above."""
    codec = LabelCodec.from_labels(range(1, foreground + 1), ignore)
    made = MaskDeformer(config, codec, [True] * dims if movable is None else movable, CPU)
    made.unbound()
    return made


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


def new_masks(labels, config, seed=0, **settings):
    return deformer(labels.ndim - 1, config).sample(labels, seeded(seed), **settings).deformed()


@pytest.mark.parametrize("spatial", SHAPES)
def test_new_masks_are_integers_of_the_old_classes(spatial):
    labels = nested_boxes(spatial)
    labels[labels == 2] = 0  # class 2 is absent
    for seed in range(5):
        new = new_masks(labels, DeformationConfig(), seed)
        assert new.dtype == torch.long
        assert new.shape == labels.shape
        assert set(new.unique().tolist()) == {0, 1, 3}


@pytest.mark.parametrize("spatial", SHAPES)
def test_new_masks_are_seeded_and_differ_from_the_real_ones(spatial, outside_random_state_untouched):
    labels = nested_boxes(spatial)
    first, again, other = (new_masks(labels, DeformationConfig(), seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, labels)


@pytest.mark.parametrize("spatial", SHAPES)
def test_no_deformation_gives_the_real_masks_and_other_masks_take_their_place(spatial):
    labels = nested_boxes(spatial)
    start = labels.clone()
    start[(slice(None), *(n // 3 for n in spatial))] = 3
    assert torch.equal(new_masks(labels, STILL), labels)
    assert torch.equal(new_masks(labels, STILL, start=start), start)


@pytest.mark.parametrize("spatial", SHAPES)
def test_a_rejected_mask_is_the_real_one_not_deformed(spatial):
    labels = nested_boxes(spatial)
    lost = labels.masked_fill(labels == 2, 1)
    change = deformer(len(spatial), DeformationConfig()).sample(labels, seeded(), start=lost)
    assert not change.accepted.any()
    assert torch.equal(change.deformed(), labels)
    assert torch.equal(change.grid, identity_grid(spatial, CPU).expand_as(change.grid))


@pytest.mark.parametrize("spatial", SHAPES)
def test_labels_never_vanish_nor_shrink_below_the_bound(spatial):
    labels = nested_boxes(spatial)
    real = class_sizes(labels, 4)
    changed = 0
    for seed in range(20):
        new = new_masks(labels, STRONG, seed)
        sizes = class_sizes(new, 4)
        assert (sizes >= SMALLEST * real)[:, 1:3].all()
        assert (sizes[:, 1:].sum(dim=1) >= SMALLEST * real[:, 1:].sum(dim=1)).all(), "class 3 lies at the border and may leave"
        changed += int((new != labels).any())
    assert changed > 0


@pytest.mark.parametrize("spatial", SHAPES)
def test_no_structure_exceeds_the_largest_one_seen(spatial):
    labels = nested_boxes(spatial)
    bounded, free = (deformer(len(spatial), DeformationConfig(scaling=0.5)) for _ in range(2))
    bounded.largest.zero_()
    bounded.observe(labels)
    bounded.observe(labels[:1])  # the largest of all batches counts
    largest = class_sizes(labels, 4).amax(dim=0)
    assert torch.equal(bounded.largest, largest)

    def sizes(made):
        return torch.stack([class_sizes(made.sample(labels, seeded(seed)).deformed(), 4) for seed in range(20)])

    assert (sizes(bounded) <= largest)[..., 1:].all()
    assert (sizes(free) > largest)[..., 1:].any()


@pytest.mark.parametrize("spatial", SHAPES)
def test_the_ignore_label_may_be_of_any_size(spatial):
    """Else a band of it, which is a few voxels larger after every second rotation, would reject half of the new masks."""
    labels = torch.zeros(8, *spatial, dtype=torch.long)
    labels[:, 3:-3, 3:-3] = 1
    labels[..., -2:] = 2

    def accepted(foreground, ignore):
        made = deformer(len(spatial), DeformationConfig(), foreground, ignore)
        made.largest[2] = class_sizes(labels, 3)[0, 2]
        return torch.cat([made.sample(labels, seeded(i)).accepted for i in range(5)])

    assert accepted(1, 2).all()
    assert not accepted(2, None).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_without_any_label_stay_empty(dims):
    labels = torch.zeros(3, *(9,) * dims, dtype=torch.long)
    assert not new_masks(labels, STRONG).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_that_is_not_movable_is_not_displaced(axis):
    spatial = (6, 9, 12)
    movable = [i != axis for i in range(3)]
    labels = torch.zeros(4, *spatial, dtype=torch.long)
    grid = deformer(3, STRONG, movable=movable).sample(labels, seeded()).grid
    along = (grid - identity_grid(spatial, CPU)).abs().amax(dim=(0, 1, 2, 3)).flip(0)
    assert along[axis] < 1e-5
    assert (along[torch.tensor(movable)] > 0.05).all()


@pytest.mark.parametrize("spatial", SHAPES)
def test_amount_scales_the_displacement_alone(spatial):
    labels = torch.zeros(4, *spatial, dtype=torch.long)
    identity = identity_grid(spatial, CPU)
    elastic = DeformationConfig(displacement=0.005, rotation=0.0, scaling=0.0)
    made = deformer(len(spatial), elastic)
    none, single, double = (made.sample(labels, seeded(), amount).grid - identity for amount in (0.0, 1.0, torch.tensor(2.0)))
    assert none.abs().max() < 1e-6
    assert single.abs().max() > 0.005
    torch.testing.assert_close(double, 2 * single, rtol=1e-3, atol=1e-5)
    rotated = deformer(len(spatial), DeformationConfig()).sample(labels, seeded(), 0.0).grid - identity
    assert rotated.abs().max() > 0.05


@pytest.mark.parametrize("dims", [2, 3])
def test_structures_that_the_border_cuts_do_not_keep_a_patch_of_many_from_changing(dims):
    spatial, classes = (32,) * dims, 14
    labels = torch.zeros(8, *spatial, dtype=torch.long)
    labels[(slice(None), *(slice(10, 22) for _ in spatial))] = 1
    for value in range(2, classes):  # a sliver of every other class, two voxels deep, along the first face
        start = 2 * (value - 2)
        labels[(slice(None), slice(0, 2), slice(start, start + 2))] = value
    change = deformer(dims, DeformationConfig(), foreground=classes - 1).sample(labels, seeded())
    assert change.accepted.all()
    new = class_sizes(change.deformed(), classes)
    assert (new[:, 1] >= SMALLEST * 12**dims).all()
    assert (new[:, 2:] == 0).any(), "some of the slivers left the patch"


def test_bounds_survive_a_checkpoint():
    first, resumed = (MaskDeformer(STILL, LabelCodec.from_labels([1, 2, 3], None), [True] * 2, CPU) for _ in range(2))
    first.observe(nested_boxes((12, 12)))
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(resumed.largest, first.largest)
    assert first.largest.any()
    resumed.unbound()
    assert first.largest.isfinite().all(), "they share no memory"


def test_with_65_small_structures_most_new_masks_are_accepted():
    """Each class is judged by itself: as a whole, hardly a mask would be."""
    classes = 65
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    centres = 4 + 88 * torch.rand(classes, 2, generator=seeded())
    labels = torch.zeros(24, 96, 96, dtype=torch.long)
    for patch, wobble in zip(labels, torch.rand(24, classes, 3, generator=seeded(1)), strict=True):
        for i in range(classes):
            (y, x), radius = centres[i] + 3 * wobble[i, :2], 1.5 + 3 * wobble[i, 2]
            patch[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = i + 1
    made = deformer(2, DeformationConfig(), classes)
    made.largest.zero_()
    made.observe(labels)
    found = torch.cat([made.sample(labels, seeded(i)).accepted for i in range(4)])
    assert found.float().mean() > 0.4
    made.admits = lambda real, new, may_leave=None: within_sizes(real, new, SMALLEST, made.largest, None, may_leave)
    found = torch.cat([made.sample(labels, seeded(i)).accepted for i in range(4)])
    assert found.float().mean() < 0.1
