"""Builds the bilevel loop and what takes nnU-Net's batches apart, from nnU-Net's plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.generators.pretrained import Cases
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.trainers.batches import BatchCodec
from nnunetv2_genseg.trainers.cascade import PreviousStage
from nnunetv2_genseg.trainers.planning import image_kind, label_codec, network_plan
from nnunetv2_genseg.trainers.preferring import learn_preference


def build_loop(trainer: Any) -> BilevelLoop:
    """The bilevel loop for a GenSeg trainer of nnU-Net."""
    kind = image_kind(trainer.dataset_json, trainer.configuration_manager)
    return BilevelLoop(
        trainer.genseg,
        network_plan(trainer.configuration_manager),
        pair_codec(trainer),
        len(kind.channels),
        trainer.device,
        rank=trainer.local_rank,
        synchronise=average if trainer.is_ddp else lambda tensors: None,
        masked_channels=[i for i, masked in enumerate(kind.masked) if masked],
    )


def pair_codec(trainer: Any) -> LabelCodec:
    """The classes of a GenSeg trainer's pairs: the dataset's, with an ignore label where pseudo-labels may be unsure."""
    codec = label_codec(trainer.label_manager)
    return codec.with_ignore() if trainer.genseg.unlabelled.images else codec


def build_batch_codec(trainer: Any) -> BatchCodec:
    """What takes the batches of a GenSeg trainer apart; in a cascade it makes up the previous stage of synthetic pairs."""
    codec = label_codec(trainer.label_manager)
    kind = image_kind(trainer.dataset_json, trainer.configuration_manager)
    dtype = torch.bool if trainer.label_manager.has_regions else torch.int16
    scales = trainer._get_deep_supervision_scales()
    if not trainer.is_cascaded:
        return BatchCodec(codec, pair_codec(trainer), len(kind.channels), trainer.device, scales, dtype, None)
    foreground, patch_size = trainer.label_manager.foreground_labels, trainer.configuration_manager.patch_size
    transforms = trainer.get_training_transforms(
        patch_size, 0.0, None, None, False, is_cascaded=True, foreground_labels=foreground
    )
    stage = PreviousStage(transforms, codec.labels)

    def previous_stage(labels: Tensor) -> Tensor:
        with trainer._own_random_state():
            channels: Tensor = stage.sample(labels)
            return channels

    return BatchCodec(codec, codec, len(kind.channels), trainer.device, scales, dtype, previous_stage)


def start_from_pretrained(trainer: Any) -> Cases:
    """Gives a GenSeg trainer the trained generator that `generator.pretrained` names, on every process.

    Returns:
        The cases that it was trained on; none without one.

    Raises:
        GenSegError: the folder holds no trained generator, or one that does not fit or is not finite.
    """
    folder = trainer.genseg.generator.pretrained
    if folder is None:
        return {}
    cases: Cases = trainer.loop.start_from(Path(folder), image_kind(trainer.dataset_json, trainer.configuration_manager))
    trainer.print_to_log_file(f"GenSeg: the generator starts from {folder}")
    return cases


def start_anew(trainer: Any) -> Cases:
    """Gives a GenSeg trainer what a training that is not resumed starts with: the trained generator and the judgement of pairs.

    Returns:
        As `start_from_pretrained`.

    Raises:
        GenSegError: one of the two cannot be used.
    """
    cases = start_from_pretrained(trainer)
    learn_preference(trainer)
    return cases


def average(tensors: Any) -> None:
    """Averages tensors over the processes of a distributed training, in place."""
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
