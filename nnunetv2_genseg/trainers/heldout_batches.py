"""Micro-batches of held-out cases, for the feedback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_genseg.bilevel.feedback import HeldOutBatch
from nnunetv2_genseg.trainers.batches import BatchCodec


class HeldOutBatches:
    """Draws patches of held-out cases, without augmentation and with as much foreground as nnU-Net's training batches.

    Args:
        trainer: nnU-Net's trainer.
        cases: names of the held-out cases.
        count: patches of a micro-batch.
        codec: takes batches apart.
        random_state: a context in which the global random generators are the loader's own: nnU-Net's loader draws from them, and
            those of the training must stay as they are.
    """

    def __init__(
        self,
        trainer: Any,
        cases: list[str],
        count: int,
        codec: BatchCodec,
        random_state: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        labels = trainer.label_manager
        transforms = trainer.get_validation_transforms(
            None,
            is_cascaded=trainer.is_cascaded,
            foreground_labels=labels.foreground_labels,
            regions=labels.foreground_regions if labels.has_regions else None,
            ignore_label=labels.ignore_label,
        )
        patch_size = trainer.configuration_manager.patch_size
        self.cases = cases
        self.codec = codec
        self.random_state = random_state
        self.loader = nnUNetDataLoader(
            trainer.dataset_class(
                trainer.preprocessed_dataset_folder,
                cases,
                folder_with_segs_from_previous_stage=trainer.folder_with_segs_from_previous_stage,
            ),
            count,
            patch_size,
            patch_size,
            labels,
            oversample_foreground_percent=trainer.oversample_foreground_percent,
            transforms=transforms,
        )

    def next(self) -> HeldOutBatch:
        """The next micro-batch, on the device."""
        with self.random_state():
            batch = next(self.loader)
        parts = self.codec.parts(batch)
        return HeldOutBatch(parts.network_input, parts.labels)
