"""TorchIO: a U-Net learns from batches in which half of the patches are pairs of a trained generator.

    python examples/torchio_pipeline.py FOLD_FOLDER $nnUNet_raw/Dataset104_Hippocampus

Cases of one image file each; leave those out that you test on.
"""

import sys
from pathlib import Path

import torch
import torchio as tio
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.pipelines.torchio import RandomSyntheticPair


def main(fold: Path, raw: Path, steps: int = 20, device: str = "cpu") -> list[float]:
    """Returns the loss of every step."""
    pairs = PairAugmentation.load(fold, device)
    described = pairs.description
    subjects = [
        tio.Subject(image=tio.ScalarImage(raw / "imagesTr" / mask.name.replace(".", "_0000.", 1)), label=tio.LabelMap(mask))
        for mask in sorted((raw / "labelsTr").iterdir())
    ]
    transforms = tio.Compose(
        [
            tio.Lambda(pairs.normalised, types_to_apply=[tio.INTENSITY]),  # first in raw intensities, of the whole image
            tio.CropOrPad((*pairs.extent_xyz, 1)[:3], mask_name="label"),  # photographs have one slice
            RandomSyntheticPair(pairs, "image", "label", p=0.5),
        ]
    )
    torch.manual_seed(0)
    channels, classes = len(described.images.channels), len(described.labels.label_of)
    network = UNet(described.plan.dims, channels, classes, channels=(8, 16, 32), strides=(2, 2)).to(device)
    optimizer, loss = torch.optim.Adam(network.parameters(), 1e-2), DiceCELoss(to_onehot_y=True, softmax=True)
    losses: list[float] = []
    for step in range(steps):
        drawn = [transforms(subjects[i % len(subjects)]) for i in (2 * step, 2 * step + 1)]
        image, label = (torch.stack([subject[name].data for subject in drawn]).squeeze(-1) for name in ("image", "label"))
        optimizer.zero_grad()
        value = loss(network(image.to(device)), label.to(device))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


if __name__ == "__main__":
    print("loss:", *(f"{value:.3f}" for value in main(Path(sys.argv[1]), Path(sys.argv[2]))))
