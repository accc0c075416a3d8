"""Pairs in training pipelines that are not nnU-Net's: tensors, MONAI, TorchIO."""
