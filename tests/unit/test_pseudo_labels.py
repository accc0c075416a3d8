"""Class maps that are read from a network's output."""

import pytest
import torch
from toy import CODECS, CPU, seeded

from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.pseudo_labels import UNSURE, PseudoLabels

DIMS = pytest.mark.parametrize("dims", [2, 3])
NAMES = pytest.mark.parametrize("name", ["labels", "regions"])
EXTENT = 8


def logits_for(name, labels, probability):
    """Output of a network that gives every label this probability, (B, *spatial) or a number, and the rest to the background."""
    codec = CODECS[name]
    probability = torch.as_tensor(probability).expand(labels.shape)
    sure = (probability / (1 - probability)).log()[:, None]
    if codec.regions is not None:
        return torch.where(codec.to_target(labels, torch.bool), sure, -sure)
    others = ((1 - probability) / codec.foreground).log()[:, None].expand(-1, codec.classes, *[-1] * (labels.ndim - 1))
    return others.scatter(1, labels[:, None], probability.log()[:, None])


def half_and_half(dims, count=2):
    """Class 1 in one half, class 2 in a quarter, background in the rest."""
    labels = torch.zeros(count, *(EXTENT,) * dims, dtype=torch.long)
    labels[:, : EXTENT // 2] = 1
    labels[:, -EXTENT // 4 :] = 2
    return labels


def reader(name, confidence=0.8, ignores=True):
    return PseudoLabels(CODECS[name].with_ignore(), confidence, ignores, CPU)


@DIMS
@NAMES
def test_labels_of_a_sure_network_are_its_own(name, dims):
    made, labels = reader(name), half_and_half(dims)
    made.observe(labels)
    found, usable, sure = made.read(logits_for(name, labels, 0.9))
    assert torch.equal(found, labels)
    assert usable.all()
    assert sure == 1


@DIMS
@NAMES
def test_what_is_not_sure_is_ignored(name, dims):
    made, labels = reader(name), half_and_half(dims)
    made.observe(labels)
    probability = torch.full(labels.shape, 0.9)
    probability[0, :2] = 0.7
    found, usable, sure = made.read(logits_for(name, labels, probability))
    assert (found[0, :2] == 3).all()
    assert torch.equal(found[0, 2:], labels[0, 2:])
    assert torch.equal(found[1], labels[1])
    assert usable.all()
    assert sure == pytest.approx(1 - 2 / EXTENT / 2)
    nothing, usable, sure = made.read(logits_for(name, labels, 0.79))
    assert (nothing == 3).all()
    assert not usable.any(), "a patch that is ignored all over teaches nothing"
    assert sure == 0


@NAMES
def test_where_a_loss_cannot_ignore_a_patch_is_taken_as_it_is_or_not_at_all(name):
    made, labels = reader(name, ignores=False), half_and_half(2, count=3)
    made.observe(labels)
    few = int(UNSURE * EXTENT**2)
    probability = torch.full(labels.shape, 0.9)
    probability.flatten(1)[0, : few + 1] = 0.7
    probability.flatten(1)[1, :few] = 0.7
    found, usable, _ = made.read(logits_for(name, labels, probability))
    assert usable.tolist() == [False, True, True]
    assert torch.equal(found, labels)


@DIMS
@NAMES
def test_a_patch_with_less_or_more_of_a_class_than_real_ones_is_not_used(name, dims):
    made, labels = reader(name), half_and_half(dims, count=4)
    made.observe(labels)
    labels[1, : EXTENT // 2 + 1] = 1
    labels[2, -EXTENT // 4 :] = 0
    labels[3] = 0
    assert made.read(logits_for(name, labels, 0.9))[1].tolist() == [True, False, False, False]
    made.observe(torch.zeros_like(labels[:1]))
    assert made.read(logits_for(name, labels, 0.9))[1].tolist() == [True, False, True, True]
    made.observe(labels[1:2])
    assert made.read(logits_for(name, labels, 0.9))[1].all()


def test_where_real_patches_are_annotated_in_part_a_class_may_be_larger_than_in_them():
    made, labels = reader("labels"), half_and_half(2)
    strokes = torch.where(torch.rand(labels.shape, generator=seeded()) < 0.1, labels, 3)
    made.observe(strokes)
    assert made.read(logits_for("labels", labels, 0.9))[1].all()


def test_before_any_real_patch_nothing_is_used():
    assert not reader("labels").read(logits_for("labels", half_and_half(2), 0.9))[1].any()


def test_a_set_of_regions_that_no_label_has_is_not_sure():
    made, labels = reader("regions"), half_and_half(2)
    made.observe(labels)
    logits = logits_for("regions", labels, 0.9)
    logits[0, 0, 0] = -5.0  # the inner region without the one that holds it
    found, _, _ = made.read(logits)
    assert (found[0, 0] == 3).all()
    assert torch.equal(found[0, 1:], labels[0, 1:])


def test_not_finite_output_is_not_used():
    made, labels = reader("labels"), half_and_half(2)
    made.observe(labels)
    _, usable, _ = made.read(torch.full((2, 3, EXTENT, EXTENT), torch.nan))
    assert not usable.any()


def test_float16_output_is_read_as_float32():
    made, labels = reader("labels", confidence=0.9995), half_and_half(2)
    made.observe(labels)
    exact = 30 * logits_for("labels", labels, 0.6)
    for one, other in zip(made.read(exact), made.read(exact.half()), strict=True):
        assert torch.equal(one, other)


def test_bounds_are_kept():
    one, other = reader("labels"), reader("labels")
    one.observe(torch.randint(3, (4, 6, 6), generator=seeded()))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.fewest, other.fewest)
    assert torch.equal(one.most, other.most)


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_with_an_ignore_label_holds_the_same_classes(name):
    codec, made = CODECS[name], CODECS[name].with_ignore()
    labels = half_and_half(2)
    assert made.has_ignore
    assert (made.foreground, made.classes) == (2, 4)
    assert made.labels[: codec.foreground + 1] == codec.labels[: codec.foreground + 1]
    target = made.to_target(labels, torch.int16)
    assert torch.equal(target[:, : (codec.to_target(labels, torch.int16)).shape[1]], codec.to_target(labels, torch.int16))
    labels[0, 0] = 3
    assert torch.equal(made.to_classes(made.to_target(labels, torch.int16)), labels)


def test_labels_that_share_their_regions_stay_one_class_with_an_ignore_label():
    codec = LabelCodec.from_regions([1, (2, 3)], False)
    made, given = codec.with_ignore(), LabelCodec.from_regions([1, (2, 3)], True)
    assert torch.equal(made.regions, given.regions)
    assert (made.labels, made.foreground) == (given.labels, given.foreground)
