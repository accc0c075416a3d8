"""How good a teacher is, by its labels of mirror images."""

from __future__ import annotations

import pytest
import torch

from nnunetv2_genseg.trainers.teacher_quality import GOOD, KEPT, POOR, TeacherQuality

CPU = torch.device("cpu")


def quality(foreground: int = 2, synchronise=lambda tensors: None) -> TeacherQuality:
    return TeacherQuality(foreground, CPU, synchronise)


def by_intensity(image: torch.Tensor) -> torch.Tensor:
    """Labels 1 and 2 where the first channel is bright: the same of a mirror image."""
    return (image[:, 0] > 0.5).long() + (image[:, 0] > 0.8)


def by_place(image: torch.Tensor) -> torch.Tensor:
    """Label 1 in the first five of eight columns, whatever the image shows: two of them agree with those of a mirror image."""
    labels = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.long)
    labels[..., :5] = 1
    return labels


def patches(count: int, dims: int) -> torch.Tensor:
    return torch.rand(count, 1, 1, *[8] * dims, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dims", [2, 3])
def test_agreement_is_the_dice_of_a_patch_and_its_mirror_image(dims):
    sure, unsure = quality(), quality()
    sure.measure(patches(4, dims), by_intensity, range(dims))
    assert sure.agreement == 1
    unsure.measure(patches(4, dims), by_place, [dims - 1])
    assert unsure.agreement == pytest.approx(2 / 5), "class 2 is nowhere and does not count"
    along = quality()
    along.measure(patches(4, dims), by_place, [0])
    assert along.agreement == 1, "mirrored along another axis"


def test_every_class_counts_alike_and_one_who_labels_nothing_is_not_trusted():
    def one_good_one_poor(image: torch.Tensor) -> torch.Tensor:
        labels = by_place(image)
        labels[:, :4] = 2
        return labels

    several, nothing = quality(3), quality()
    several.measure(patches(2, 2), one_good_one_poor, [1])
    assert several.agreement == pytest.approx((1 + 2 / 5) / 2)
    nothing.measure(patches(2, 2), lambda image: torch.zeros(2, 8, 8, dtype=torch.long), [0])
    assert (nothing.agreement, nothing.trust) == (0, 0)
    assert (quality().agreement, quality().trust) == (0, 0), "not measured yet"


@pytest.mark.parametrize(("agreement", "trust"), [(0, 0), (POOR, 0), ((POOR + GOOD) / 2, 0.5), (GOOD, 1), (1, 1)])
def test_the_better_the_teacher_the_larger_the_share(agreement, trust):
    measured = quality()
    measured.agreement = agreement
    assert measured.trust == pytest.approx(trust)


def test_earlier_epochs_count_less_and_a_resumed_training_knows_them():
    measured = quality()
    measured.measure(patches(4, 2), by_place, [1])
    measured.measure(patches(4, 2), lambda image: by_intensity(image).clamp(max=1), [1])
    poor, good = 4 * 8 * 5 * KEPT, (patches(4, 2) > 0.5).sum().item()
    assert measured.agreement == pytest.approx((2 / 5 * poor + good) / (poor + good))
    resumed = quality()
    resumed.load_state_dict({name: value.clone() for name, value in measured.state_dict().items()})
    assert resumed.agreement == measured.agreement
    for one in (measured, resumed):
        one.measure(patches(4, 2), by_place, [1])
    assert resumed.agreement == measured.agreement


def test_processes_measure_together():
    def as_if_the_other_process_saw_nothing_agree(tensors):
        agreed, sizes = tensors
        agreed /= 2
        sizes += 0

    together = quality(2, as_if_the_other_process_saw_nothing_agree)
    together.measure(patches(4, 2), by_intensity, [0, 1])
    assert together.agreement == pytest.approx(0.5)
