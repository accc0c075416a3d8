"""Which classes may be pasted at another place."""

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_genseg.trainers.inspection import FEWEST, free_classes

EXTENT = 40


class Cases:
    """Preprocessed segmentations, as nnU-Net's datasets give them."""

    def __init__(self, segmentations):
        self.segmentations = dict(enumerate(segmentations))
        self.identifiers = list(self.segmentations)

    def load_case(self, case):
        return None, self.segmentations[case][None], None, {}


def drawn(places, dims=2, size=4):
    """A segmentation with squares of classes at places, given as fractions of the extent."""
    segmentation = np.zeros((EXTENT,) * 3 if dims == 3 else (1, EXTENT, EXTENT), np.int8)
    for label, *place in places:
        start = [int(fraction * (EXTENT - size)) for fraction in place]
        segmentation[(..., *(slice(first, first + size) for first in start))] = label
    return segmentation


def manager(labels=None, regions=None):
    return LabelManager(labels or {"background": 0, "a": 1, "b": 2}, regions)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("lesions", [1, 6])
def test_lesions_are_free_however_many_a_case_has_and_an_organ_is_not(dims, lesions):
    rng = np.random.default_rng(0)
    cases = Cases(
        drawn([*((1, *rng.random(dims)) for _ in range(lesions)), (2, *(0.5 + 0.1 * rng.random(dims)))], dims) for _ in range(12)
    )
    assert free_classes(cases, manager()) == [1]


def test_paired_organs_and_scans_that_begin_at_other_heights_are_not_free():
    rng = np.random.default_rng(0)
    paired = Cases(drawn([(1, 0.5 + 0.05 * rng.random(), side) for side in (0.1, 0.9)]) for _ in range(8))
    assert free_classes(paired, manager()) == []
    heights = Cases(drawn([(1, rng.random(), 0.5, 0.5 + 0.05 * rng.random())], 3) for _ in range(8))
    assert free_classes(heights, manager()) == []


def test_too_few_cases_tell_nothing():
    rng = np.random.default_rng(0)
    cases = [drawn([(1, *rng.random(2))]) for _ in range(FEWEST)]
    assert free_classes(Cases(cases[:-1]), manager()) == []
    assert free_classes(Cases(cases), manager()) == [1]


def test_with_regions_the_classes_are_those_of_the_class_maps():
    """Region `whole` holds labels 1 and 2, `core` label 2: class 2 of the maps is in the core, as label 2 is."""
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    rng = np.random.default_rng(0)
    cases = Cases(drawn([(1, 0.5, 0.5), (2, *rng.random(2))]) for _ in range(10))
    from nnunetv2_genseg.trainers.planning import label_codec

    found = manager(labels, [1, 2])
    (free,) = free_classes(cases, found)
    assert label_codec(found).labels[free] == 2
