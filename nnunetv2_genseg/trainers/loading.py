"""Loaders of patches beside nnU-Net's own, in this process."""

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


def augmented(trainer: Any, dataset: Any, batch_size: int) -> nnUNetDataLoader:
    """nnU-Net's loader for training, in this process and without the previous stage of a cascade.

    Args:
        trainer: one of nnU-Net.
        dataset: has `identifiers` and `load_case`, as nnU-Net's datasets.
        batch_size: patches of a batch.
    """
    labels, configuration = trainer.label_manager, trainer.configuration_manager
    rotation, dummy_2d, initial_size, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = trainer.get_training_transforms(
        configuration.patch_size,
        rotation,
        None,
        mirror_axes,
        dummy_2d,
        use_mask_for_norm=configuration.use_mask_for_norm,
        is_cascaded=False,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    return nnUNetDataLoader(
        dataset,
        batch_size,
        initial_size,
        configuration.patch_size,
        labels,
        oversample_foreground_percent=trainer.oversample_foreground_percent,
        transforms=transforms,
        probabilistic_oversampling=trainer.probabilistic_oversampling,
    )
