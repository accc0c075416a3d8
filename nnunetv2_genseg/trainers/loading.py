"""A loader of patches that are not augmented, beside nnU-Net's own."""

from __future__ import annotations

from typing import Any

from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader


def unaugmented(trainer: Any, dataset: Any, batch_size: int, oversampling: float) -> nnUNetDataLoader:
    """nnU-Net's loader in this process, with its transforms for validation.

    Args:
        trainer: one of nnU-Net.
        dataset: one of nnU-Net's datasets.
        batch_size: patches of a batch.
        oversampling: fraction of the patches that are drawn around foreground.
    """
    labels = trainer.label_manager
    transforms = trainer.get_validation_transforms(
        None,
        is_cascaded=trainer.is_cascaded,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    patch_size = trainer.configuration_manager.patch_size
    return nnUNetDataLoader(
        dataset,
        batch_size,
        patch_size,
        patch_size,
        labels,
        oversample_foreground_percent=oversampling,
        transforms=transforms,
    )
