import pytest
import torch
from skimage.measure import euler_number, label

from nnunetv2_genseg.topology import TopologyBounds, topology

CPU = torch.device("cpu")
FACES, CORNERS = 1, None


def canvas(dims, *boxes, extent=12):
    """(1, *spatial); every box is (value, start, stop), the same along every axis, painted one over the other."""
    labels = torch.zeros(1, *(extent,) * dims, dtype=torch.long)
    for value, start, stop in boxes:
        labels[(0, *(slice(start, stop),) * dims)] = value
    return labels


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
    assert topology(canvas(dims, *boxes), 2)[0].tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_counts_agree_with_the_euler_number_in_2d(seed):
    noise = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(seed)) < 0.6
    components, holes = topology(noise.long(), 1)[0, 0].tolist()
    assert components == label(noise[0].numpy(), connectivity=2).max()
    assert components - holes == euler_number(noise[0].numpy(), connectivity=2)
    assert holes > 0


@pytest.mark.parametrize("dims", [2, 3])
def test_what_was_seen_is_admitted_and_what_is_beyond_is_not(dims):
    bounds = TopologyBounds(2, CPU)
    one, two = canvas(dims, (1, 1, 3)), canvas(dims, (1, 1, 3), (1, 5, 7))
    three, ring = canvas(dims, (1, 1, 3), (1, 5, 7), (1, 9, 11)), canvas(dims, (1, 1, 6), (0, 3, 4))
    other, empty = canvas(dims, (2, 1, 3)), canvas(dims)
    assert not bounds.admit(one).any(), "nothing was seen yet"
    bounds.observe(torch.cat([two, empty]))
    assert bounds.admit(torch.cat([one, two, three, ring, other, empty])).tolist() == [False, True, False, False, False, True]
    bounds.observe(one)
    assert bounds.admit(torch.cat([one, two, three, ring, other, empty])).tolist() == [True, True, False, False, False, True]
    bounds.observe(ring)
    assert bounds.admit(torch.cat([one, two, three, ring, other, empty])).tolist() == [True, True, False, True, False, True]


def test_bounds_survive_a_checkpoint():
    bounds, restored = TopologyBounds(2, CPU), TopologyBounds(2, CPU)
    bounds.observe(canvas(2, (1, 1, 3), (1, 5, 7)))
    restored.restore(bounds.state())
    assert torch.equal(restored.fewest, bounds.fewest)
    assert torch.equal(restored.most, bounds.most)
    assert restored.admit(canvas(2, (1, 1, 3))).tolist() == [False]
    restored.observe(canvas(2, (1, 1, 3)))
    assert bounds.admit(canvas(2, (1, 1, 3))).tolist() == [False], "they share no memory"
