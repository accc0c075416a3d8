import pytest
import torch
from torch.nn import functional

from nnunetv2_genseg import masks
from nnunetv2_genseg.config import MaskConfig

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
    return masks.warp(change.labels, change.grid.detach())


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
    assert torch.equal(masks.warp(change.labels, change.grid), labels)
    assert change.donors.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spatial", SHAPES)
def test_labels_never_vanish_nor_shrink_below_the_bound(spatial):
    labels = nested_boxes(spatial)
    config = MaskConfig(elastic=0.2, rotation=90.0, scaling=0.5, growth=0.4, recombination=0.5, smallest=0.6)
    real = masks.class_sizes(labels, 4)
    changed = 0
    for seed in range(20):
        new = new_masks(labels, config, seed)
        sizes = masks.class_sizes(new, 4)
        assert (sizes >= 0.6 * real)[:, 1:3].all()
        assert (sizes[:, 1:].sum(dim=1) >= 0.6 * real[:, 1:].sum(dim=1)).all(), "class 3 lies at the border and may leave"
        changed += int((new != labels).any())
    assert changed > 0


@pytest.mark.parametrize("spatial", SHAPES)
def test_no_structure_exceeds_the_largest_one_seen(spatial):
    labels = nested_boxes(spatial)
    real = masks.class_sizes(labels, 4)
    config = MaskConfig(scaling=0.5, smallest=0.01)
    largest = 1.1 * real.amax(dim=0)
    bounded = torch.stack([masks.class_sizes(new_masks(labels, config, seed, largest), 4) for seed in range(20)])
    free = torch.stack([masks.class_sizes(new_masks(labels, config, seed), 4) for seed in range(20)])
    assert (bounded <= largest)[..., 1:].all()
    assert (free > largest)[..., 1:].any()


@pytest.mark.parametrize("spatial", SHAPES)
def test_the_ignore_label_may_be_of_any_size(spatial):
    """Else a band of it, which is a few voxels larger after every second turn, would discard half of the new masks."""
    labels = torch.zeros(8, *spatial, dtype=torch.long)
    labels[:, 3:-3, 3:-3] = 1
    labels[..., -2:] = 2
    largest = torch.tensor([torch.inf, torch.inf, float(masks.class_sizes(labels, 3)[0, 2])])

    def kept(frozen_class):
        changes = (masks.draw_change(labels, 3, MaskConfig(), largest, seeded(i), frozen_class=frozen_class) for i in range(5))
        return torch.cat([change.kept for change in changes])

    assert kept(2).all()
    assert not kept(None).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_without_any_label_stay_empty(dims):
    labels = torch.zeros(3, *(9,) * dims, dtype=torch.long)
    assert not new_masks(labels, MaskConfig(recombination=1.0, growth=0.4)).any()


def recombined(labels, seed=0, frozen_class=None, **changes):
    config = MaskConfig(**{"recombination": 1.0, "margin": 0.0, "rotation": 0.0, "scaling": 0.0, **changes})
    return masks.recombine(labels, config, [True] * (labels.ndim - 1), seeded(seed), frozen_class)


def seed_of(donors):
    """A seed with which a batch gets these donors."""
    drawn = (torch.randint(len(donors), (len(donors),), generator=seeded(seed)).tolist() for seed in range(100))
    return next(seed for seed, each in enumerate(drawn) if each == donors)


SWAPPED = seed_of([1, 0])


@pytest.mark.parametrize("dims", [2, 3])
def test_a_transplant_that_covers_the_own_structure_lies_on_its_centroid(dims):
    spatial = (20,) * dims
    labels = torch.stack([box(spatial, (6,) * dims, 4), box(spatial, (10,) * dims, 8, 2)])
    new, donors, exchanged, to_donor = recombined(labels, SWAPPED)
    assert donors[0] == 1
    assert torch.equal(new[0], box(spatial, (4,) * dims, 8, 2))
    positions = masks.affine(masks.identity_grid(spatial, labels.device).expand(2, *(-1,) * (dims + 1)), to_donor)
    found = masks.warp(labels[donors], positions)
    assert torch.equal(torch.where(exchanged, found, labels), new)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_transplant_too_small_to_replace_is_added_where_it_lay_if_that_is_clear(dims):
    spatial = (20,) * dims
    labels = torch.stack([box(spatial, (2,) * dims, 4, 1), box(spatial, (10,) * dims, 8, 2)])
    new, donors, *_ = recombined(labels, SWAPPED)
    assert donors[1] == 0
    assert torch.equal(new[1], torch.maximum(labels[0], labels[1]))
    labels = torch.stack([box(spatial, (8,) * dims, 4, 1), box(spatial, (10,) * dims, 8, 2)])
    new, donors, exchanged, _ = recombined(labels, SWAPPED)
    assert donors[1] == 1
    assert torch.equal(new[1], labels[1])
    assert not exchanged[1].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_patch_without_structures_receives_them_where_they_were(dims):
    spatial = (20,) * dims
    labels = torch.stack([torch.zeros(spatial, dtype=torch.long), box(spatial, (10,) * dims, 8)])
    new, donors, *_ = recombined(labels, seed_of([1, 1]))
    assert torch.equal(new[0], labels[1])
    new, donors, exchanged, _ = recombined(labels, seed_of([1, 0]))
    assert torch.equal(new[1], labels[1])  # and gives none
    assert donors.tolist() == [1, 1]
    assert not exchanged[1].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_surroundings_come_along_within_the_margin(dims):
    spatial = (40,) * dims
    labels = torch.stack([box(spatial, (16,) * dims, 8)] * 8)
    _, _, exchanged, _ = recombined(labels, margin=0.2)
    sizes = exchanged.flatten(1).sum(dim=1)
    widths = [(8 + 2 * margin) ** dims for margin in range(9)]
    assert set(sizes.tolist()) <= set(widths)
    assert len(set(sizes.tolist())) > 2


@pytest.mark.parametrize("dims", [2, 3])
def test_transplants_turn_and_grow_about_their_centroid(dims):
    spatial = (31,) * dims
    labels = torch.stack([box(spatial, (6,) * dims, 7), box(spatial, (15,) * dims, 9)])
    _, _, exchanged, _ = recombined(labels, SWAPPED, rotation=45.0, scaling=0.1)
    exchanged, labels = exchanged[:1], labels[:1]
    sizes = exchanged.flatten(1).sum(dim=1)
    assert (sizes != 9**dims).all()
    assert ((sizes > 0.6**dims * 9**dims) & (sizes < 1.6**dims * 9**dims)).all()
    shift = (masks.centroids(exchanged) - masks.centroids(labels > 0)) * 31 / 2
    assert (shift.abs() < 0.6).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_patch_may_be_its_own_donor(dims):
    labels = box((21,) * dims, (7,) * dims, 7)[None]
    drawn = [recombined(labels, seed, rotation=40.0, margin=0.3) for seed in range(8)]
    assert all(donors.tolist() == [0] for _, donors, _, _ in drawn)
    changed = [exchanged.any() and not torch.equal(new, labels) for new, _, exchanged, _ in drawn]
    assert any(changed)


@pytest.mark.parametrize("dims", [2, 3])
def test_transplants_keep_their_size_also_half_a_voxel_away(dims):
    spatial = (20,) * dims
    labels = torch.stack([box(spatial, (6,) * dims, 3), box(spatial, (7,) * dims, 4)])
    _, donors, exchanged, _ = recombined(labels, SWAPPED)
    assert donors[0] == 1
    assert exchanged[0].sum() == 4**dims


def test_recombination_happens_with_its_probability():
    labels = torch.stack([box((10, 10), (i % 5, i % 3), 3) for i in range(400)])
    exchanged = recombined(labels, recombination=0.25)[2].flatten(1).any(dim=1)
    assert 60 < int(exchanged.sum()) < 140
    new, donors, exchanged, _ = recombined(labels, recombination=0.0)
    assert torch.equal(donors, torch.arange(400))
    assert torch.equal(new, labels)
    assert not exchanged.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_recombination_leaves_the_ignore_label_where_it_is(dims):
    spatial = (12,) * dims
    labels = torch.stack([box(spatial, (2,) * dims, 3), box(spatial, (5,) * dims, 4)])
    labels[0][(slice(-2, None),) * dims] = 2
    new, donors, exchanged, _ = recombined(labels, SWAPPED, frozen_class=2, margin=0.5)
    assert donors[0] == 1
    assert torch.equal(new == 2, labels == 2)
    assert not (exchanged & (labels == 2)).any()
    assert exchanged[0].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_growth_follows_the_bias_that_was_drawn(dims):
    """Masks of one structure under several biases are nested: the larger the bias, the larger the mask."""
    count, spatial = 32, (12,) * dims
    labels = box(spatial, (3,) * dims, 6).expand(count, *spatial)
    new = masks.grow(labels, 2, 0.49, seeded())
    bias = torch.rand(count, 2, generator=seeded())[:, 1]
    order = new[bias.argsort()]
    assert (order[:-1] <= order[1:]).all()
    sizes = masks.class_sizes(order, 2)[:, 1]
    assert sizes[-1] > 6**dims > sizes[0] > 0


@pytest.mark.parametrize("spatial", SHAPES)
def test_growth_changes_boundaries_alone_and_invents_no_class(spatial):
    labels = nested_boxes(spatial)
    labels[0] = box(spatial, (2,) * len(spatial), 2)  # a patch without the other classes
    new = masks.grow(labels, 4, 0.49, seeded())
    assert not torch.equal(new, labels)
    assert set(new[0].unique().tolist()) <= {0, 1}
    pool = functional.max_pool2d if len(spatial) == 2 else functional.max_pool3d
    near = pool(masks.one_hot(labels, 4), 3, 1, 1)
    assert (near.gather(1, new[:, None]) == 1).all()


@pytest.mark.parametrize("thickness", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_small_structures_do_not_keep_a_patch_from_being_changed(dims, thickness):
    """Growth must not erase what it should move; else a patch with a small structure always keeps its real mask."""
    spatial = (14,) * dims
    labels = torch.stack([box(spatial, (5,) * dims, thickness) + box(spatial, (1,) * dims, 3, 2)] * 20)
    changed = (new_masks(labels, MaskConfig()) != labels).flatten(1).any(dim=1)
    assert changed.sum() >= 5


@pytest.mark.parametrize("dims", [2, 3])
def test_growth_leaves_the_frozen_class_alone(dims):
    labels = nested_boxes((12,) * dims, 8)
    new = masks.grow(labels, 4, 0.49, seeded(), frozen_class=1)
    assert torch.equal(new == 1, labels == 1)
    assert not torch.equal(new, labels)
    assert not torch.equal(masks.grow(labels, 4, 0.49, seeded()) == 1, labels == 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_axis_that_is_not_movable_is_not_displaced(axis):
    spatial = (6, 9, 12)
    movable = [i != axis for i in range(3)]
    config = MaskConfig(rotation=60.0, scaling=0.4, elastic=0.2, smallest=0.01)
    labels = torch.zeros(4, *spatial, dtype=torch.long)
    change = masks.draw_change(labels, 4, config, UNBOUNDED, seeded(), movable_axes=movable)
    displacement = change.grid - masks.identity_grid(spatial, labels.device)
    along = displacement.abs().amax(dim=(0, 1, 2, 3)).flip(0)
    assert along[axis] < 1e-5
    assert (along[torch.tensor(movable)] > 0.05).all()


@pytest.mark.parametrize("spatial", SHAPES)
def test_identity_grid_points_at_the_voxels_themselves(spatial):
    grid = masks.identity_grid(spatial, torch.device("cpu"))
    values = torch.arange(torch.tensor(spatial).prod()).view(1, *spatial)
    assert torch.equal(masks.warp(values, grid), values)
    image = values[:, None].double()
    torch.testing.assert_close(masks.warp_image(image, grid.double()), image, rtol=0, atol=1e-2)


def test_a_right_angle_turns_the_picture():
    """rotation = 180 with a known draw; the matrix is an isometry in voxels, also of an elongated patch."""
    spatial = (9, 15)
    identity = masks.identity_grid(spatial, torch.device("cpu")).expand(64, -1, -1, -1)
    theta = masks.random_affine(64, spatial, MaskConfig(rotation=180.0, scaling=0.0), [True, True], seeded())
    grid = masks.affine(identity, theta)
    extent = torch.tensor([15.0, 9.0])
    before, after = identity * extent / 2, grid * extent / 2
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
    angle = 2 * torch.rand(64, generator=seeded()) - 1
    cosine = (before * after).sum(dim=-1)[:, 0, 0] / before.square().sum(dim=-1)[:, 0, 0]
    torch.testing.assert_close(cosine, (angle * torch.pi).cos(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_scaling_stays_in_its_log_uniform_range(dims):
    identity = masks.identity_grid((8,) * dims, torch.device("cpu")).expand(200, *(8,) * dims, dims)
    theta = masks.random_affine(200, (8,) * dims, MaskConfig(rotation=0.0, scaling=0.3), [True] * dims, seeded())
    grid = masks.affine(identity, theta)
    ratio = (grid / identity).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert 0.7 <= float(ratio.min()) < 0.75
    assert 1.35 < float(ratio.max()) <= 1 / 0.7 + 1e-4


@pytest.mark.parametrize("points", [4, 5, 8])
@pytest.mark.parametrize("extent", [1, 5, 24])
def test_spline_basis_is_a_partition_of_unity(extent, points):
    basis = masks._bspline_basis(extent, points, torch.device("cpu"))
    assert basis.shape == (extent, points)
    torch.testing.assert_close(basis.sum(dim=1), torch.ones(extent))
    assert (basis >= 0).all()
    assert ((basis > 0).sum(dim=1) <= 4).all()


def test_spline_basis_reproduces_straight_lines():
    basis = masks._bspline_basis(20, 6, torch.device("cpu"))
    line = basis @ torch.arange(6.0)
    torch.testing.assert_close(line.diff(), torch.full((19,), 3 / 20), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial", [(32, 32), (16, 16, 16), (8, 32, 20)])
def test_elastic_field_is_as_wide_as_configured_and_smooth(spatial):
    dims = len(spatial)
    field = masks.elastic_field(100, spatial, 0.05, 5, [True] * dims, seeded())
    assert field.shape == (100, *spatial, dims)
    deviation = (field / 2).std(dim=0).flatten(0, -2).mean(dim=0)
    per_axis = (1 / 6**2 + 4**2 / 6**2 + 1 / 6**2) ** (dims / 2)  # at a knot; half-way it is somewhat less
    assert (deviation < 0.05 * 1.1 * per_axis).all()
    assert (deviation > 0.05 * 0.8 * per_axis).all()
    for axis in range(dims):
        second = field.diff(n=2, dim=axis + 1).abs().mean()
        assert second < 30 / spatial[axis] ** 2 * field.abs().mean()


def test_elastic_fields_of_the_patches_of_a_batch_differ():
    field = masks.elastic_field(2, (8, 8), 0.1, 4, [True, True], seeded())
    assert (field[0] - field[1]).abs().max() > 0.01


@pytest.mark.parametrize("spatial", SHAPES)
def test_amount_scales_the_elastic_displacement(spatial):
    labels = nested_boxes(spatial)
    config = STILL.model_copy(update={"elastic": 0.02, "smallest": 0.01})
    single, double = (
        masks.draw_change(labels, 4, config, UNBOUNDED, seeded(), amount=amount).grid for amount in (1.0, 2.0)
    )
    identity = masks.identity_grid(spatial, labels.device)
    assert (single - identity).abs().max() > 0.005
    torch.testing.assert_close(double - identity, 2 * (single - identity), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_one_hot_and_sizes_and_centroids(dims):
    labels = torch.stack([box((10,) * dims, (2,) * dims, 4), torch.zeros((10,) * dims, dtype=torch.long)])
    assert masks.class_sizes(labels, 3).tolist() == [[10**dims - 4**dims, 4**dims, 0], [10**dims, 0, 0]]
    assert torch.equal(masks.one_hot(labels, 3).sum(dim=tuple(range(2, 2 + dims))), masks.class_sizes(labels, 3))
    torch.testing.assert_close(masks.centroids(labels > 0), torch.stack([torch.full((dims,), -0.2), torch.zeros(dims)]))


def test_centroids_are_in_the_order_of_grid_sample():
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    labels[0, 0, 7] = 1
    torch.testing.assert_close(masks.centroids(labels > 0), torch.tensor([[0.875, -0.75]]))


@pytest.mark.parametrize("spatial", SHAPES)
def test_a_class_touches_the_border_on_whichever_face(spatial):
    labels = torch.zeros(2, *spatial, dtype=torch.long)
    labels[(0, *(n // 2 for n in spatial))] = 1
    for axis in range(len(spatial)):
        for value, end in ((2, 0), (3, -1)):
            map_ = labels.clone()
            map_[(1, *(end if i == axis else n // 2 for i, n in enumerate(spatial)))] = value
            assert masks.at_border(map_, 4).tolist() == [[True, False, False, False], [True, False, value == 2, value == 3]]


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
    new = masks.class_sizes(masks.warp(change.labels, change.grid), classes)
    assert (new[:, 1] >= config.smallest * 12**dims).all()
    assert (new[:, 2:] == 0).any(), "some of the slivers left the patch"


@pytest.mark.parametrize(
    ("new", "may_leave", "within"),
    [
        ([[0, 1, 1, 1, 2, 2]], False, True),
        ([[0, 1, 1, 1, 0, 0]], False, False),
        ([[0, 1, 1, 1, 0, 0]], True, True),
        ([[0, 0, 0, 0, 2, 2]], True, False),  # class 1 may not leave
        ([[0, 1, 0, 0, 0, 0]], True, False),  # too little of all classes together
    ],
)
def test_what_may_leave_leaves_enough_behind(new, may_leave, within):
    real, new = torch.tensor([[0, 1, 1, 1, 2, 2]]), torch.tensor(new)
    allowed = torch.tensor([[False, False, may_leave]])
    assert masks.within_sizes(real, new, 0.3, torch.full((3,), torch.inf), None, allowed).tolist() == [within]
