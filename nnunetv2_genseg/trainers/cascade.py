"""The second stage of a cascade: the input channels of the previous stage's segmentation, simulated for synthetic masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor

from nnunetv2_genseg.config import GenSegError

CASCADE_TRANSFORMS = (
    MoveSegAsOneHotToDataTransform,
    ApplyRandomBinaryOperatorTransform,
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)


class PreviousStage:
    """Simulates a previous stage's segmentation of synthetic masks: the masks, changed by nnU-Net's own cascade augmentations.

    Args:
        training_transforms: nnU-Net's for a cascade; those that make and change the previous stage's channels are used.
        labels: label of every class map's class, 0 for the background and for the ignore label.

    Raises:
        GenSegError: the transforms are not those of a cascade.
    """

    def __init__(self, training_transforms: ComposeTransforms, labels: Sequence[int]) -> None:
        self.transforms = ComposeTransforms([step for step in training_transforms.transforms if _of_cascade(step)])
        if not any(isinstance(step, MoveSegAsOneHotToDataTransform) for step in self.transforms.transforms):
            raise GenSegError(
                "the trainer's augmentation does not put the previous stage's segmentation into the input; use a trainer whose "
                "get_training_transforms does for a cascade, as nnU-Net's own"
            )
        self.labels = torch.tensor(labels)

    def sample(self, classes: Tensor) -> Tensor:
        """(B, *spatial) class maps to (B, labels, *spatial) float32 of zeros and ones, drawn from the global generators."""
        # the transforms shuffle their list of channels in place; a resumed training would begin with another order
        for step in self.transforms.transforms:
            shuffling = getattr(step, "transform", step)
            if hasattr(shuffling, "channel_idx"):
                shuffling.channel_idx = sorted(shuffling.channel_idx)
        segmentations = self.labels[classes.cpu()].to(torch.int16)
        channels = []
        for segmentation in segmentations:
            nothing = torch.empty(0, *segmentation.shape)
            channels.append(self.transforms(image=nothing, segmentation=segmentation.expand(2, *segmentation.shape))["image"])
        return torch.stack(channels).to(classes.device)


def _of_cascade(step: BasicTransform) -> bool:
    return isinstance(getattr(step, "transform", step), CASCADE_TRANSFORMS)
