"""nnU-Net's default trainer with GenSeg."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.trainers.mixin import GenSegMixin


class GenSegTrainer(GenSegMixin, nnUNetTrainer):
    """nnU-Net's default trainer with GenSeg."""
