"""Builds the bilevel loop and what takes nnU-Net's batches apart, from nnU-Net's plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.trainers.batches import BatchCodec
from nnunetv2_genseg.trainers.cascade import PreviousStage
from nnunetv2_genseg.trainers.planning import image_kind, label_codec, network_plan


def build_loop(trainer: Any) -> BilevelLoop:
    """The bilevel loop for a GenSeg trainer of nnU-Net."""
    kind = image_kind(trainer.dataset_json, trainer.configuration_manager)
    return BilevelLoop(
        trainer.genseg,
        network_plan(trainer.configuration_manager),
        label_codec(trainer.label_manager),
        len(kind.channels),
        trainer.device,
        rank=trainer.local_rank,
        synchronise=average if trainer.is_ddp else lambda tensors: None,
        masked_channels=[i for i, masked in enumerate(kind.masked) if masked],
    )


def build_batch_codec(trainer: Any) -> BatchCodec:
    """What takes the batches of a GenSeg trainer apart; in a cascade it makes up the previous stage of synthetic pairs."""
    codec = label_codec(trainer.label_manager)
    kind = image_kind(trainer.dataset_json, trainer.configuration_manager)
    dtype = torch.bool if trainer.label_manager.has_regions else torch.int16
    scales = trainer._get_deep_supervision_scales()
    if not trainer.is_cascaded:
        return BatchCodec(codec, len(kind.channels), trainer.device, scales, dtype, None)
    foreground, patch_size = trainer.label_manager.foreground_labels, trainer.configuration_manager.patch_size
    transforms = trainer.get_training_transforms(
        patch_size, 0.0, None, None, False, is_cascaded=True, foreground_labels=foreground
    )
    stage = PreviousStage(transforms, codec.labels)

    def previous_stage(labels: Tensor) -> Tensor:
        with trainer._own_random_state():
            channels: Tensor = stage.sample(labels)
            return channels

    return BatchCodec(codec, len(kind.channels), trainer.device, scales, dtype, previous_stage)


def average(tensors: Any) -> None:
    """Averages tensors over the processes of a distributed training, in place."""
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
