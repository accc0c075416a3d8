import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.cascade import PreviousStage

SIDE = 32
"""torch 2.1 takes a smaller mask, as nnU-Net's transform indexes with it, for a tuple of indices."""


def previous_stage(labels=(0, 1, 2), is_cascaded=True):
    foreground = sorted({label for label in labels if label})
    transforms = nnUNetTrainer.get_training_transforms(
        (SIDE, SIDE), 0.0, None, None, False, is_cascaded=is_cascaded, foreground_labels=foreground
    )
    return PreviousStage(transforms, labels)


def squares():
    classes = torch.zeros(8, SIDE, SIDE, dtype=torch.long)
    classes[:, 2:8, 2:8] = 1
    classes[:, 9:14, 9:14] = 2
    return classes


def seeded(call, seed=0):
    np.random.seed(seed)
    torch.manual_seed(seed)
    return call()


def test_some_patches_show_the_mask_and_some_show_it_changed():
    classes = squares()
    channels = seeded(lambda: previous_stage().sample(classes))
    assert channels.shape == (8, 2, SIDE, SIDE)
    assert channels.dtype == torch.float32
    assert set(channels.unique().tolist()) == {0.0, 1.0}
    mask = torch.stack([classes == 1, classes == 2], dim=1).float()
    changed = (channels != mask).flatten(1).any(dim=1)
    assert changed.any()
    assert not changed.all()
    assert (channels * mask).sum() > 0.5 * mask.sum(), "changed, not another mask"


def test_equal_seeds_give_equal_channels():
    stage = previous_stage()
    first, second, other = (seeded(lambda: stage.sample(squares()), seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_classes_of_regions_become_their_labels_and_what_is_ignored_becomes_nothing():
    classes = squares()
    classes[:, :, 15] = 3
    channels = seeded(lambda: previous_stage(labels=(0, 2, 5, 0)).sample(classes))
    assert channels.shape[1] == 2
    assert (channels[:, 0, 4, 4] == 1).any(), "class 1 is label 2, the first channel"
    assert (channels[:, 1, 11, 11] == 1).any(), "class 2 is label 5"
    assert channels[..., 15].mean() < 0.1


def test_transforms_of_another_configuration_are_refused():
    with pytest.raises(GenSegError, match="previous stage's segmentation"):
        previous_stage(is_cascaded=False)


def test_an_empty_list_of_transforms_is_refused():
    with pytest.raises(GenSegError, match="previous stage's segmentation"):
        PreviousStage(ComposeTransforms([]), (0, 1))


def test_what_was_drawn_before_does_not_matter_after_a_resume():
    """nnU-Net's transforms shuffle their own list of channels."""
    used, fresh = previous_stage((0, 1, 2, 3)), previous_stage((0, 1, 2, 3))
    for seed in range(5):
        seeded(lambda: used.sample(squares()), seed)
    for seed in range(5, 15):
        assert torch.equal(seeded(lambda: used.sample(squares()), seed), seeded(lambda: fresh.sample(squares()), seed))
