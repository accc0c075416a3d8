"""The moving average of a network."""

import math

import pytest
import torch
from toy import network

from nnunetv2_genseg.trainers.teacher import TIME, Teacher


@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
def test_output_is_that_of_the_averaged_weights_at_full_resolution(deep):
    student = network(2, 1, 3, deep=deep)
    teacher = Teacher(student, 1000)
    image = torch.randn(2, 1, 16, 16)
    student.eval()
    expected = student(image)
    teacher.update(student)
    found = teacher(image)
    assert torch.equal(found, expected[0] if deep else expected)
    assert not found.requires_grad


def test_after_its_time_constant_a_change_has_reached_it_by_all_but_the_eth_part():
    student, iterations = network(2, 1, 3), 2000
    teacher = Teacher(student, iterations)
    teacher.update(student)
    start = [weight.detach().clone() for weight in student.parameters()]
    with torch.no_grad():
        for weight in student.parameters():
            weight += 1
    for _ in range(round(TIME * iterations)):
        teacher.update(student)
    for before, weight in zip(start, teacher.average.parameters(), strict=True):
        torch.testing.assert_close(weight - before, torch.full_like(weight, 1 - 1 / math.e), rtol=0.02, atol=0)


def test_it_learns_nothing_itself_and_stays_in_evaluation():
    student = network(2, 1, 3)
    teacher = Teacher(student, 1)
    student.train()
    teacher.update(student)
    assert not any(module.training for module in teacher.average.modules())


def test_its_state_is_kept():
    student = network(2, 1, 3)
    one, other = Teacher(student, 100), Teacher(student, 100)
    for _ in range(3):
        with torch.no_grad():
            next(iter(student.parameters())).add_(1)
        one.update(student)
    other.load_state_dict(one.state_dict())
    for teacher in (one, other):
        teacher.update(student)
    for weight, same in zip(one.average.parameters(), other.average.parameters(), strict=True):
        assert torch.equal(weight, same)
