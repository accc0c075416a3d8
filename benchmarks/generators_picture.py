"""The picture of the documentation: all generator families draw the same masks of phantoms, in 2D and 3D, in mode `tissue`.

python benchmarks/generators_picture.py --work FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cells import Cell
from generators import FAMILIES, drawn, learned, patches
from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.plots.samples import coloured, grey, middle_slice, window_of
from preparing import Place, run_nnunet

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "generator_families.png"
ITERATIONS = 300
ROWS = 2
"""Patches of each dataset."""
FOREGROUND = 2
DATASETS = (
    (PhantomDataset(901, dims=2, training_cases=10, test_cases=1), "2d"),
    (PhantomDataset(902, dims=3, training_cases=6, test_cases=1, extent=40), "3d_fullres"),
)


def rows_of(dataset: PhantomDataset, configuration: str, work: Path) -> list[list[Any]]:
    """One row of pictures a patch: real image, its mask, new mask, and what every family draws."""
    folder = work / "phantoms" / str(dataset.dims)
    if not (folder / "planned").exists():
        dataset.write(folder / "raw")
        options = ("-d", str(dataset.dataset_id), "-c", configuration, "-np", "1", "-npfp", "1")
        run_nnunet(folder, "nnUNetv2_plan_and_preprocess", *options)
        (folder / "planned").touch()
    rows: list[list[Any]] = [[] for _ in range(ROWS)]
    image = labels = None
    for family in FAMILIES:
        cell = Cell(str(dataset.dataset_id), dataset.training_cases, configuration, family, 0, ITERATIONS, (), "phantom")
        trainer = learned(cell, Place(Path(), work, "cpu"), folder)
        if image is None:
            image, labels = patches(trainer, ROWS)
        pictures, masks = drawn(trainer, image, labels, "redraw", "tissue")
        for i, row in enumerate(rows):
            real, mask = middle_slice(image[i], labels[i])
            synthetic, new = middle_slice(pictures[i], masks[i])
            window = window_of(real)
            row += [grey(real, window), coloured(mask, FOREGROUND), coloured(new, FOREGROUND)] if not row else []
            row.append(grey(synthetic, window))
    return rows


def main() -> None:
    """Trains the generators and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    rows = [row for dataset, configuration in DATASETS for row in rows_of(dataset, configuration, work)]
    titles = ("real image", "its mask", "new mask", *FAMILIES)
    figure = Figure(figsize=(1.6 * len(titles), 1.75 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for line, pictures in zip(figure.subplots(len(rows), len(titles)), rows, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(figure.axes[: len(titles)], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
