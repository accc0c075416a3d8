import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.labels import LabelCodec

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


def test_a_set_of_regions_that_no_label_has_becomes_background():
    target = region_target(random_labels((6, 7), 4), OVERLAPPING, 4)
    target[0, :, 0, 0] = True  # the ignore label and every region
    classes = LabelCodec.from_regions(OVERLAPPING, True).to_classes(target)
    assert classes[0, 0, 0] == 0
    assert classes.flatten()[1:].unique().tolist() == [0, 1, 2, 3, 4]


def test_regions_that_hold_the_background_are_refused():
    with pytest.raises(GenSegError, match=r"must not hold label 0, the background, found \[\[0, 1\], \[2\]\]"):
        LabelCodec.from_regions([[0, 1], 2], False)


class DeviceCopies(TorchDispatchMode):
    """Counts the tensors that are moved to a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and (kwargs or {}).get("device") is not None
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize("regions", [None, OVERLAPPING])
def test_nothing_waits_for_the_device(spatial, regions):
    labels = random_labels(spatial, 3)
    if regions is None:
        codec, target = LabelCodec.from_labels([1, 2, 3], None), labels[:, None]
    else:
        codec, target = LabelCodec.from_regions(regions, False), region_target(labels, regions)
    target = target.to("meta")  # a device whose values nothing can read

    def there_and_back():
        classes = codec.to_classes(target)
        assert classes.shape == labels.shape
        assert codec.to_target(classes, torch.bool).shape == target.shape

    with DeviceCopies() as first:
        there_and_back()
    with DeviceCopies() as later:
        there_and_back()
    assert (first.count, later.count) == (0 if regions is None else 1, 0), "the table of the regions stays on the device"


def test_labels_with_a_gap_are_refused():
    with pytest.raises(GenSegError, match=r"consecutive from 1 on, found \[1, 3\]"):
        LabelCodec.from_labels([1, 3], None)
