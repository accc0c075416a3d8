"""Which new masks are accepted (kind: many small classes)."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.measure import euler_number, label

from nnunetv2_genseg.synthesis.bounds import (
    ComponentBounds,
    at_border,
    class_sizes,
    connected_components_and_holes,
    within_sizes,
)

CPU = torch.device("cpu")
SHAPES = [(24, 24), (17, 29), (12, 12, 12), (7, 17, 13)]


def canvas(dims, *boxes, extent=12):
    """(1, *spatial); every box is (value, start, stop), the same along every axis, painted one over the other."""
    labels = torch.zeros(1, *(extent,) * dims, dtype=torch.long)
    for value, start, stop in boxes:
        labels[(0, *(slice(start, stop),) * dims)] = value
    return labels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("spatial", SHAPES)
def test_sizes_count_the_voxels_of_every_class(spatial):
    labels = torch.randint(3, (2, *spatial), generator=seeded())
    labels[1] = 0
    expected = torch.stack([torch.bincount(patch.flatten(), minlength=4) for patch in labels])
    assert torch.equal(class_sizes(labels, 4), expected.float())


@pytest.mark.parametrize("spatial", SHAPES)
def test_a_class_touches_the_border_on_whichever_face(spatial):
    labels = torch.zeros(2, *spatial, dtype=torch.long)
    labels[(0, *(n // 2 for n in spatial))] = 1
    for axis in range(len(spatial)):
        for value, end in ((2, 0), (3, -1)):
            map_ = labels.clone()
            map_[(1, *(end if i == axis else n // 2 for i, n in enumerate(spatial)))] = value
            assert at_border(map_, 4).tolist() == [[True, False, False, False], [True, False, value == 2, value == 3]]


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
    assert within_sizes(real, new, 0.3, torch.full((3,), torch.inf), None, allowed).tolist() == [within]


@pytest.mark.parametrize(
    ("classes", "lost", "within"), [(3, 1, False), (4, 1, True), (4, 2, False), (65, 16, True), (65, 17, False)]
)
def test_of_many_classes_a_quarter_may_be_out_of_bounds(classes, lost, within):
    real = torch.arange(1, classes + 1).repeat(4)[None]
    for new in (real.masked_fill(real <= lost, 0), torch.cat([real, torch.arange(1, lost + 1)[None]], dim=1)):
        before = torch.cat([real, torch.zeros(1, new.shape[1] - real.shape[1], dtype=torch.long)], dim=1)
        assert within_sizes(before, new, 0.3, torch.full((classes + 1,), 4.0), tolerated=0.25).tolist() == [within]
    absent = torch.where(real > classes - lost, 0, real)  # classes that the patch does not show count for nothing
    assert within_sizes(absent, absent, 0.3, torch.full((classes + 1,), 4.0), tolerated=0.25).tolist() == [True]


@pytest.mark.parametrize(
    ("new", "smallest", "largest", "frozen", "within"),
    [
        ([[1, 1, 0, 0, 2, 0]], 0.5, 4.0, None, True),
        ([[1, 1, 0, 0, 2, 0]], 0.6, 4.0, None, False),  # half of class 1 stays
        ([[1, 1, 1, 1, 1, 2]], 0.5, 4.0, None, False),  # larger than any seen
        ([[1, 1, 1, 1, 1, 2]], 0.5, 5.0, None, True),
        ([[1, 1, 1, 1, 0, 0]], 0.5, 1.0, None, False),  # class 2 is lost
        ([[1, 1, 1, 1, 0, 0]], 0.5, 1.0, 2, True),  # and may be, if it is the ignore label; the real size is allowed
    ],
)
def test_no_class_shrinks_too_far_or_grows_beyond_the_largest(new, smallest, largest, frozen, within):
    real = torch.tensor([[1, 1, 1, 1, 2, 0]])
    bounds = torch.full((3,), largest)
    assert within_sizes(real, torch.tensor(new), smallest, bounds, frozen).tolist() == [within]


def scipys_components_and_holes(structure):
    corners = ndimage.generate_binary_structure(structure.ndim, structure.ndim)
    return ndimage.label(structure, corners)[1], ndimage.label(np.pad(~structure, 1, constant_values=True))[1] - 1


@pytest.mark.parametrize("spatial", [(20, 20), (1, 9), (2, 30), (12, 12, 12), (1, 20, 20), (6, 17, 9)])
def test_counts_are_scipys(spatial):
    for share in (0.05, 0.3, 0.7, 0.97):
        labels = (torch.rand(2, *spatial, generator=seeded()) < share) * torch.randint(1, 4, (2, *spatial), generator=seeded(1))
        found = connected_components_and_holes(labels, 2)
        for patch, counts in zip(labels.numpy(), found.tolist()):
            assert counts == [list(scipys_components_and_holes(patch == value)) for value in (1, 2)]
        whole = connected_components_and_holes((labels > 0).long(), 1)
        assert whole[:, 0].tolist() == [list(scipys_components_and_holes(patch > 0)) for patch in labels.numpy()]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "boxes, expected",
    [
        ([], [[0, 0], [0, 0]]),
        ([(1, 2, 5)], [[1, 0], [0, 0]]),
        ([(1, 2, 5), (1, 7, 9)], [[2, 0], [0, 0]]),
        ([(1, 2, 5), (1, 5, 9)], [[1, 0], [0, 0]]),  # by a corner
        ([(1, 1, 9), (0, 3, 5)], [[1, 1], [0, 0]]),
        ([(1, 1, 9), (0, 3, 5), (0, 6, 8)], [[1, 2], [0, 0]]),
        ([(1, 1, 9), (0, 3, 5), (0, 5, 8)], [[1, 2], [0, 0]]),  # holes are joined by no corner
        ([(1, 1, 9), (2, 3, 5)], [[1, 1], [1, 0]]),
        ([(1, 0, 12)], [[1, 0], [0, 0]]),
        ([(1, 0, 12), (2, 0, 3)], [[1, 0], [1, 0]]),  # open to the border
        ([(3, 1, 9), (1, 3, 5)], [[1, 0], [0, 0]]),  # of a class beyond the foreground
    ],
)
def test_components_and_holes_of_boxes(dims, boxes, expected):
    assert connected_components_and_holes(canvas(dims, *boxes), 2)[0].tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_counts_agree_with_the_euler_number_in_2d(seed):
    noise = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(seed)) < 0.6
    components, holes = connected_components_and_holes(noise.long(), 1)[0, 0].tolist()
    assert components == label(noise[0].numpy(), connectivity=2).max()
    assert components - holes == euler_number(noise[0].numpy(), connectivity=2)
    assert holes > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_what_was_seen_is_admitted_and_what_is_beyond_is_not(dims):
    bounds = ComponentBounds(2, CPU)
    one, two = canvas(dims, (1, 1, 3)), canvas(dims, (1, 1, 3), (1, 5, 7))
    three, ring = canvas(dims, (1, 1, 3), (1, 5, 7), (1, 9, 11)), canvas(dims, (1, 1, 6), (0, 3, 4))
    other, empty = canvas(dims, (2, 1, 3)), canvas(dims)

    def admitted():
        return bounds.admit(torch.cat([one, two, three, ring, other, empty])).int().tolist()

    assert not bounds.admit(one)[:, 0].any(), "nothing was seen yet"
    assert bounds.admit(one)[:, 1].all(), "what is not shown is within the bounds"
    bounds.observe(torch.cat([two, empty]))
    assert admitted() == [[0, 1], [1, 1], [0, 1], [0, 1], [1, 0], [1, 1]]
    bounds.observe(one)
    assert admitted() == [[1, 1], [1, 1], [0, 1], [0, 1], [1, 0], [1, 1]]
    bounds.observe(ring)
    assert admitted() == [[1, 1], [1, 1], [0, 1], [1, 1], [1, 0], [1, 1]]


def test_bounds_survive_a_checkpoint():
    bounds, restored = ComponentBounds(2, CPU), ComponentBounds(2, CPU)
    bounds.observe(canvas(2, (1, 1, 3), (1, 5, 7)))
    restored.load_state_dict(bounds.state_dict())
    assert torch.equal(restored.fewest, bounds.fewest)
    assert torch.equal(restored.most, bounds.most)
    assert restored.admit(canvas(2, (1, 1, 3)))[:, 0].tolist() == [False]
    restored.observe(canvas(2, (1, 1, 3)))
    assert bounds.admit(canvas(2, (1, 1, 3)))[:, 0].tolist() == [False], "they share no memory"
