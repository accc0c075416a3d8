"""Synthetic pairs in a training loop that is not nnU-Net's: tensors in, tensors out.

Here the batches are made up. Those of any other loader do as well: images (B, C, ...) with about zero mean and unit variance, and
class maps (B, ...) of whole numbers.
"""

import torch

from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.sampler import PairSampler


def made_up_batch(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Four images of 32 x 32 with one channel, each with a bright square (class 1)."""
    labels = torch.zeros(4, 32, 32, dtype=torch.long)
    labels[:, 10:22, 8:20] = 1
    return torch.randn(4, 1, 32, 32, generator=rng) * 0.3 + labels[:, None], labels


def main(steps: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the last batch, half of whose patches are synthetic."""
    config = GenSegConfig.model_validate({"feedback": {"enabled": False}})
    plan = NetworkPlan(  # of your segmentation network; the generator gets half of its channels
        patch_size=(32, 32), features=(16, 32, 64), strides=((1, 1), (2, 2), (2, 2)), kernels=((3, 3),) * 3
    )
    codec = LabelCodec.from_labels([1], ignore_label=None)
    sampler = PairSampler(config, plan, codec, image_channels=1, device=torch.device("cpu"))
    rng, slots = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for _ in range(steps):
        image, labels = made_up_batch(rng)
        sampler.observe(labels)
        sampler.training_step(image, labels, rng)  # the generator learns from the real patches
        chosen = sampler.choose(len(image), share=0.5, rng=slots)
        if chosen:
            with torch.no_grad():
                new = sampler.replace(image, labels, chosen, rng)
            image[new.slots], labels[new.slots] = new.pairs.image, new.pairs.labels
        # here comes the step of your segmentation network on image and labels
    return image, labels


if __name__ == "__main__":
    image, labels = main()
    print(f"images {tuple(image.shape)}, class maps {tuple(labels.shape)}, voxels of class 1: {labels.sum((1, 2)).tolist()}")
