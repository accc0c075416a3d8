"""The benchmarks' arms whose pairs are chosen by their value."""

from __future__ import annotations

import pytest

from choosing import Chooser
from nnunetv2_genseg.trainers.short import GenSegTrainerShort
from pair_judge import product

from .conftest import DATASET_ID, make_trainer
from .datasets import Kind, plan


@pytest.mark.parametrize("by", ["validation", "training"])
def test_the_pair_that_agrees_most_with_real_patches_is_trained_on(folder, by):
    raw = Kind().write(folder / "nnUNet_raw", DATASET_ID)
    plan(DATASET_ID, "2d")
    trainer = make_trainer(GenSegTrainerShort, raw.name, "2d", "3,4,1,1,0", fold="all")
    trainer.initialize()
    draw, trained, gains = trainer.loop.sample, [], []
    chooser = None

    def first(*given):
        trained.append(draw(*given))
        return trained[-1]

    def chosen(image, labels, cases, slots):
        nonlocal chooser
        if chooser is None:
            chooser = Chooser(trainer, 0, (image, labels) if by == "validation" else None)
            chooser.draw = first
        found = chooser.sample(image, labels, cases, slots)
        if found is not None:
            assert found.slots == trained[-1].slots
            for i in range(len(found.slots)):
                of_best, of_first = (
                    product(chooser.judge.gradient(each.pairs.image[i : i + 1], each.pairs.labels[i : i + 1]), chooser.direction)
                    for each in (found, trained[-1])
                )
                gains.append(of_best - of_first)
        return found

    trainer.loop.sample = chosen
    trainer.run_training()
    assert len(gains) > 4 and min(gains) > -1e-6 and max(gains) > 1e-6
