"""Writes a small dataset for nnU-Net: ten labelled phantoms to train on and four for the test.

python examples/make_phantoms.py [2|3]
"""

import os
import sys
from pathlib import Path

from nnunetv2_genseg.phantoms import PhantomDataset


def main(dims: int = 2) -> None:
    """Writes Dataset901_Phantom2D (colour images) or Dataset902_Phantom3D (volumes) into nnUNet_raw."""
    dataset = PhantomDataset(899 + dims, dims, training_cases=10, test_cases=4, extent=48)
    print(dataset.write(Path(os.environ["nnUNet_raw"])))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
