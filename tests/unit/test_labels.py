import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from nnunetv2_genseg.labels import LabelCodec

SHAPES = [(6, 7), (4, 5, 6)]
OVERLAPPING = [[1, 2, 3], [2, 3], 3]
DISJOINT = [1, (2, 3)]
"""Labels 2 and 3 belong to the same regions."""


def random_labels(spatial, largest, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(largest + 1, (2, *spatial), generator=noise)


def region_target(labels, regions, ignore=None):
    """As nnU-Net makes it; the ignore label is one more region."""
    transform = ConvertSegmentationToRegionsTransform([*regions, ignore] if ignore else list(regions))
    return torch.stack([transform(segmentation=single[None])["segmentation"] for single in labels])


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("ignore", [None, 3])
def test_labels_are_their_own_classes(spatial, ignore):
    codec = LabelCodec.from_labels([1, 2], ignore)
    labels = random_labels(spatial, 2 if ignore is None else 3)
    assert codec.classes == (3 if ignore is None else 4)
    assert codec.foreground == 2
    assert torch.equal(codec.to_classes(labels[:, None].to(torch.int16)), labels)
    target = codec.to_target(labels, torch.int16)
    assert target.dtype == torch.int16
    assert torch.equal(target, labels[:, None].to(torch.int16))


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("ignore", [None, 4])
@pytest.mark.parametrize("regions", [OVERLAPPING, DISJOINT])
def test_regions_come_back_as_nnunet_made_them(spatial, ignore, regions):
    codec = LabelCodec.from_regions(regions, ignore is not None)
    target = region_target(random_labels(spatial, 3 if ignore is None else 4), regions, ignore)
    classes = codec.to_classes(target)
    assert classes.dtype == torch.long
    assert classes.shape == (2, *spatial)
    restored = codec.to_target(classes, torch.bool)
    assert restored.dtype == torch.bool
    assert torch.equal(restored, target)


@pytest.mark.parametrize("ignore", [False, True])
def test_class_numbers_are_background_foreground_ignore(ignore):
    codec = LabelCodec.from_regions(OVERLAPPING, ignore)
    labels = random_labels((20, 20), 4 if ignore else 3)
    classes = codec.to_classes(region_target(labels, OVERLAPPING, 4 if ignore else None))
    assert codec.foreground == 3
    assert codec.classes == 4 + ignore
    assert torch.equal(classes == 0, labels == 0)
    if ignore:
        assert torch.equal(classes == 4, labels == 4)
    for label in (1, 2, 3):
        assert len(classes[labels == label].unique()) == 1
    assert len(classes.unique()) == len(labels.unique())


def test_labels_of_the_same_regions_are_one_class():
    codec = LabelCodec.from_regions(DISJOINT, False)
    labels = random_labels((20, 20), 3)
    classes = codec.to_classes(region_target(labels, DISJOINT))
    assert codec.foreground == 2
    assert torch.equal(classes[labels == 2].unique(), classes[labels == 3].unique())
    assert not set(classes[labels == 1].tolist()) & set(classes[labels == 2].tolist())


def test_targets_are_also_made_as_numbers():
    codec = LabelCodec.from_regions(OVERLAPPING, True)
    target = region_target(random_labels((6, 7), 4), OVERLAPPING, 4)
    assert torch.equal(codec.to_target(codec.to_classes(target.float()), torch.float32), target.float())


@pytest.mark.parametrize("undeclared", [3, -1])
@pytest.mark.parametrize("spatial", SHAPES)
def test_undeclared_label_is_refused(spatial, undeclared):
    labels = random_labels(spatial, 2)
    labels.view(-1)[5] = undeclared
    with pytest.raises(ValueError, match=r"labels outside 0\.\.2"):
        LabelCodec.from_labels([1, 2], None).to_classes(labels[:, None])


@pytest.mark.parametrize("spatial", SHAPES)
def test_undeclared_combination_of_regions_is_refused(spatial):
    target = region_target(random_labels(spatial, 3), OVERLAPPING)
    target[0].flatten(1)[:, 3] = torch.tensor([False, True, False])
    with pytest.raises(ValueError, match="combination of regions"):
        LabelCodec.from_regions(OVERLAPPING, False).to_classes(target)


def test_ignore_label_together_with_a_region_is_refused():
    target = region_target(random_labels((6, 7), 4), OVERLAPPING, 4)
    target[0, :, 0, 0] = True
    with pytest.raises(ValueError, match="combination of regions"):
        LabelCodec.from_regions(OVERLAPPING, True).to_classes(target)


def test_labels_with_a_gap_are_refused():
    with pytest.raises(ValueError, match=r"consecutive from 1 on, found \[1, 3\]"):
        LabelCodec.from_labels([1, 3], None)
