"""Synthetic pairs in a training loop that is not nnU-Net's: tensors in, tensors out.

Here the batches are made up, and the generator learns in the loop. Those of any other loader do as well: images (B, C, ...) with
about zero mean and unit variance, and label maps (B, ...) of whole numbers.
"""

import torch

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.generators import NetworkPlan


def made_up_batch(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Four images of 32 x 32 with one channel, each with a bright square (class 1)."""
    labels = torch.zeros(4, 32, 32, dtype=torch.long)
    labels[:, 10:22, 8:20] = 1
    return torch.randn(4, 1, 32, 32, generator=rng) * 0.3 + labels[:, None], labels


def main(steps: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the last batch, half of whose patches are synthetic."""
    plan = NetworkPlan(  # of your segmentation network; the generator gets half of its channels
        patch_size=(32, 32), features=(16, 32, 64), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3
    )
    pairs = PairAugmentation.untrained(plan, classes=1, channels=1)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        image, labels = made_up_batch(rng)
        pairs.training_step(image, labels, rng)  # the generator learns from the real patches
        image[:2], labels[:2] = pairs(image[:2], labels[:2], rng)
        # here comes the step of your segmentation network on image and labels
    return image, labels


if __name__ == "__main__":
    image, labels = main()
    print(f"images {tuple(image.shape)}, label maps {tuple(labels.shape)}, voxels of class 1: {labels.sum((1, 2)).tolist()}")
