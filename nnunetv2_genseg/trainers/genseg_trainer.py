"""nnU-Net's trainers with GenSeg."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

from nnunetv2_genseg.trainers.mixin import GenSegMixin


class GenSegTrainer(GenSegMixin, nnUNetTrainer):
    """nnU-Net's default trainer with GenSeg."""


class GenSegTrainerDA5(GenSegMixin, nnUNetTrainerDA5):
    """nnU-Net's trainer with its stronger augmentation, and GenSeg."""
