"""Folders of pairs as `genseg generate` leaves them, made of phantoms without a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.trainers.provenance import Provenance

DATASET = 931


def write_pairs(folder: Path, raw: Path, names: Sequence[str], dims: int = 2, extent: int = 32) -> Path:
    """Writes a pair for each name into `folder / "pairs"`, and the real cases tr_000 to tr_002 as a dataset into `raw`.

    Returns:
        The folder of the pairs.
    """
    real = PhantomDataset(DATASET, dims, 3, 0, extent)
    real.write(raw)
    written = PhantomDataset(DATASET, dims, len(names), 0, extent, seed=1).write(folder / "unnamed")
    pairs = written.rename(folder / "pairs")
    cases = [f"tr_{k:03d}" for k in range(3)]
    record = Provenance(folder / "none", {"dataset": real.name, "fold": "0", "cases": cases})
    record.folder = pairs
    for k, name in enumerate(names):
        files = [f"imagesTr/{name}_0000{real.file_ending}", f"labelsTr/{name}{real.file_ending}"]
        for file in files:
            (pairs / file.replace(name, f"tr_{k:03d}", 1)).rename(pairs / file)
        record.add(name, {"cases": [cases[k % 3]], "source": "deformation", "new_mask": True}, files)
    record.save()
    return pairs
