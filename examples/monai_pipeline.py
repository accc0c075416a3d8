"""MONAI: a U-Net learns from batches in which half of the patches are pairs of a trained generator.

    python examples/monai_pipeline.py FOLD_FOLDER $nnUNet_raw/Dataset104_Hippocampus

Cases of one image file each; leave those out that you test on.
"""

import sys
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, Lambdad, LoadImaged, RandSpatialCropd, SpatialPadd

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.pipelines.monai import RandSyntheticPaird

KEYS = ("image", "label")


def main(fold: Path, raw: Path, steps: int = 20, device: str = "cpu") -> list[float]:
    """Returns the loss of every step."""
    pairs = PairAugmentation.load(fold, device)
    described = pairs.description
    masks = sorted((raw / "labelsTr").iterdir())
    cases = [{"image": raw / "imagesTr" / mask.name.replace(".", "_0000.", 1), "label": mask} for mask in masks]
    transforms = Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            Lambdad("image", pairs.normalised),  # first in raw intensities, of the whole image
            SpatialPadd(KEYS, pairs.extent_xyz),
            RandSpatialCropd(KEYS, pairs.extent_xyz, random_size=False),
            RandSyntheticPaird(pairs, *KEYS, prob=0.5),
            EnsureTyped(KEYS, track_meta=False),
        ]
    )
    transforms.set_random_state(seed=0)
    torch.manual_seed(0)
    channels, classes = len(described.images.channels), len(described.labels.label_of)
    network = UNet(described.plan.dims, channels, classes, channels=(8, 16, 32), strides=(2, 2)).to(device)
    optimizer, loss = torch.optim.Adam(network.parameters(), 1e-2), DiceCELoss(to_onehot_y=True, softmax=True)
    losses: list[float] = []
    while len(losses) < steps:
        for batch in DataLoader(Dataset(cases, transforms), batch_size=2, shuffle=True):
            optimizer.zero_grad()
            value = loss(network(batch["image"].to(device)), batch["label"].to(device))
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


if __name__ == "__main__":
    print("loss:", *(f"{value:.3f}" for value in main(Path(sys.argv[1]), Path(sys.argv[2]))))
