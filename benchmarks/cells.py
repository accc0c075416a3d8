"""What is compared: the arms, the cells and the grids of `gain.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import Settings

BUDGET = {"101": 20, "102": 20, "103": 20, "104": 10, "105": 20}
POOL = 100
"""Training cases of every dataset."""
ITERATIONS = {"101": 4000, "102": 4000, "103": 4000, "104": 2400, "105": 4000}
"""In 2D, at the scales `mini` and `small`."""
ITERATIONS_3D = 1600
FULL = 25_000
"""At the scale `full`: a tenth of nnU-Net's default."""
MINI = "mini"
"""The scale of the comparison: 2D images with a longer side of 64 pixels. A third of the foot ulcers and four tenths of the
polyps are missed whole there by stock nnU-Net."""
SMALL = "small"
"""The scale at which 2D images have a longer side of 128 pixels."""
COARSE = "coarse"
"""The scale at which volumes have half of the voxels along each axis, for `3d_fullres` on a CPU; at the others they are not
resampled."""
FROM_POOL = "pool"
"""Where images without labels come from: the pool's other images."""
MONTGOMERY = "montgomery"
"""The other hospital of the chest X-rays: a part that trainings are judged on, and where images without labels come from."""
SEEDS = {"101": range(3), "102": range(5), "103": range(3), "104": range(3), "105": range(3)}
ORDER = "102 104 101 105 103"
"""Datasets in the order in which they are run: those that tell most come first."""
COMPARED = "stock genseg genseg_random_without_redraw genseg_deformation"
WITH_IMAGES = "genseg_unlabelled stock_pseudo_labels stock_mean_teacher"


@dataclass(frozen=True)
class Arm:
    """A trainer, its settings and how many times nnU-Net's planned batch and learning rate it gets."""

    trainer: str
    settings: Settings = field(default_factory=dict)
    batch_factor: int = 1
    rate_factor: int = 1
    averaged: bool = False
    """Whether a moving average of the weights is judged."""
    unlabelled: str = ""
    """Images that are given without labels: `pool`, the pool's other ones, without those of the validation part if that is
    judged; `montgomery`, every second one of the other hospital, which is then judged on the others; empty: none."""
    chosen_by: str = ""
    """What pairs are chosen by, as in `choosing.py`: `validation` or `training` patches; empty: they are not chosen."""
    rival: str = ""
    """How stock nnU-Net learns from these images: `pseudo_labels` or `mean_teacher`, as in the modules; empty: it does not."""


def genseg(**sections: Settings) -> Arm:
    """GenSeg with some settings changed."""
    return Arm("GenSegTrainerShort", sections)


def unlabelled(images: str = FROM_POOL, **sections: Settings) -> Arm:
    """GenSeg with some settings changed and images without labels."""
    return Arm("GenSegTrainerShort", sections, unlabelled=images)


OFF: Settings = {"enabled": False}
DEFORMATION: Settings = {"sources": {"deformation": 1.0}}
ARMS: dict[str, Arm] = {
    "stock": Arm("nnUNetTrainerShort"),
    "stock_ema": Arm("nnUNetTrainerShort", averaged=True),
    "stock_doubled_batch_and_rate": Arm("nnUNetTrainerShort", batch_factor=2, rate_factor=2),
    "stock_da5": Arm("nnUNetTrainerDA5Short"),
    "genseg": genseg(),
    "genseg_da5": Arm("GenSegTrainerDA5Short"),
    "genseg_da5_random": Arm("GenSegTrainerDA5Short", {"feedback": OFF}),
    "genseg_da5_random_without_redraw": Arm("GenSegTrainerDA5Short", {"mixing": DEFORMATION, "feedback": OFF}),
    "genseg_deformation": genseg(mixing=DEFORMATION, paste={"probability": 0.0}, feedback=OFF),
    "genseg_random_without_redraw": genseg(mixing=DEFORMATION, feedback=OFF),
    "genseg_random": genseg(feedback=OFF),
    "genseg_oracle": Arm("GenSegTrainerShort", {"feedback": OFF}, chosen_by="validation"),
    "genseg_agreeing": Arm("GenSegTrainerShort", {"feedback": OFF}, chosen_by="training"),
    "genseg_more": genseg(mixing={"share": 0.75}, paste={"probability": 1.0}),
    "genseg_still": genseg(feedback={"learning_rate": 1e-12}),
    "genseg_fast": genseg(feedback={"learning_rate": 0.1}),
    "genseg_unlabelled": unlabelled(),
    "genseg_da5_unlabelled": Arm("GenSegTrainerDA5Short", unlabelled=FROM_POOL),
    "genseg_unlabelled_montgomery": unlabelled(MONTGOMERY),
    "genseg_unlabelled_sure": unlabelled(unlabelled={"confidence": 0.95}),
    "genseg_unlabelled_more": unlabelled(unlabelled={"share": 1.0}),
    "genseg_unlabelled_without_deformation": unlabelled(mixing={"sources": {"redraw": 1.0}}),
    "genseg_unlabelled_without_paste": unlabelled(paste={"probability": 0.0}),
    "genseg_unlabelled_without_redraw": unlabelled(mixing=DEFORMATION, feedback=OFF),
    "stock_pseudo_labels": Arm("nnUNetTrainerShort", unlabelled=FROM_POOL, rival="pseudo_labels"),
    "stock_mean_teacher": Arm("nnUNetTrainerShort", unlabelled=FROM_POOL, rival="mean_teacher"),
    "genseg_carve": genseg(mixing=DEFORMATION, paste={"kinds": {"carve": 1.0}}, feedback=OFF),
    "genseg_lesion": genseg(mixing=DEFORMATION, paste={"kinds": {"lesion": 1.0}}, feedback=OFF),
}
"""Trainers and settings that are compared.

- `stock_da5`: nnU-Net with its own stronger augmentation; `genseg_da5`: GenSeg added to it; `genseg_da5_unlabelled`: with the
  pool's other images as well; `genseg_da5_random`: without feedback; `genseg_da5_random_without_redraw`: without generator, too.
- `genseg`: the default. `genseg_random`: without feedback. `genseg_random_without_redraw`: without generator as well, so
  there is nothing that feedback tunes. `genseg_deformation`: without parts of other cases as well.
- `genseg_oracle`: `genseg_random` with pairs chosen by labels that no training may see; `genseg_agreeing`: by training patches.
- `genseg_more`: the default with more pairs, all of them with parts of other cases.
- `genseg_still`: the default whose feedback holds cases out, but moves nothing; `genseg_fast`: whose feedback moves further.
- `genseg_unlabelled`: the default with the pool's other images; `genseg_unlabelled_montgomery`: with those of the other hospital;
  `genseg_unlabelled_sure`: with labels of a higher confidence alone; `genseg_unlabelled_more`: all synthetic pairs from these
  images.
"""


@dataclass(frozen=True)
class Cell:
    """One training and what it is judged on."""

    dataset: str
    """Number of the dataset, as in "101"."""
    budget: int
    """Labelled cases, held-out cases included."""
    configuration: str
    arm: str
    seed: int
    iterations: int
    parts: tuple[str, ...]
    """`validation`, `test`, `montgomery`."""
    scale: str = MINI
    planned_for: int = 0
    """Labelled cases of the plans that give batch, patch and network; 0: those of `budget`. nnU-Net plans larger batches for more
    cases, which gains by itself."""

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """The inverse of `json.dumps(asdict(cell))`."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"parts": tuple(values["parts"])})

    @property
    def unlabelled(self) -> str:
        """As in `Arm`; empty if the cell's arm is none of `ARMS`."""
        return ARMS[self.arm].unlabelled if self.arm in ARMS else ""

    @property
    def training(self) -> str:
        """Unique among all trainings."""
        cases = f"N{self.budget}" + (f"as{self.planned_for}" if self.planned_for else "")
        return f"{self.scale}_{self.dataset}_{cases}_{self.configuration}_{self.iterations}it_{self.arm}_s{self.seed}"

    @property
    def name(self) -> str:
        """Unique among all cells."""
        return f"{self.training}_{'test' if 'test' in self.parts else 'validation'}"

    def result(self, folder: Path) -> Path:
        """The cell's file; what is judged on the validation part lies in a folder of its own."""
        return folder / f"{self.name}.json" if "test" in self.parts else folder / "screening" / f"{self.name}.json"


def length(dataset: str, configuration: str, scale: str) -> int:
    """Iterations of a training."""
    if scale == "full":
        return FULL
    return ITERATIONS[dataset] if configuration == "2d" else ITERATIONS_3D


def cell_of(
    dataset: str,
    arm: str,
    seed: int,
    plan: str = "2d",
    scale: str = MINI,
    iterations: int = 0,
    parts: tuple[str, ...] = (),
) -> Cell:
    """A cell with the usual budget, and with the usual length and the dataset's own parts where none are given.

    Final figures are judged on the test part, those of the chest X-rays also on the other hospital's.
    """
    parts = parts or (("test", MONTGOMERY) if dataset == "103" else ("test",))
    return Cell(dataset, BUDGET[dataset], plan, arm, seed, iterations or length(dataset, plan, scale), parts, scale)


def comparison(
    arms: str,
    datasets: str = ORDER,
    plan: str = "2d",
    scale: str = MINI,
    seeds: range | None = None,
    iterations: int = 0,
    parts: tuple[str, ...] = (),
) -> list[Cell]:
    """Cells, seed by seed and dataset by dataset; arguments that are not given as in `cell_of`.

    Args:
        arms: names, between spaces.
        datasets: numbers, between spaces.
        plan: configuration.
        scale: of all datasets.
        seeds: of all datasets; those of each one's comparison if None.
        iterations: length of a training.
        parts: what is judged.
    """
    every = seeds or range(max(len(own) for own in SEEDS.values()))
    return [
        cell_of(dataset, arm, seed, plan, scale, iterations, parts)
        for seed in every
        for dataset in datasets.split()
        if seeds or seed in SEEDS[dataset]
        for arm in arms.split()
    ]


def headroom() -> list[Cell]:
    """Stock with 2N, 4N and all labels of the pool, planned as for N, which belongs to the comparison."""
    return [
        replace(cell, budget=budget, planned_for=cell.budget)
        for cell in comparison("stock", seeds=range(3))
        for budget in (4 * cell.budget, 2 * cell.budget, POOL)
    ]


def with_unlabelled_images() -> list[Cell]:
    """GenSeg with the pool's other images and its rivals at the comparison's budgets, and without its parts.

    Those that are of the long grid as well are trained once.
    """
    usual = comparison(f"stock genseg {WITH_IMAGES}", "102 104 101 103 105", seeds=range(3))
    parts = "genseg_unlabelled_without_deformation genseg_unlabelled_without_paste genseg_unlabelled_without_redraw"
    hospital = comparison("genseg_unlabelled_montgomery", "103", seeds=range(3))
    volumes = comparison("stock genseg genseg_unlabelled", "104", "3d_fullres", COARSE, seeds=range(3))
    return [
        *usual,
        *hospital,
        *comparison(parts, "102", seeds=range(3)),
        *volumes,
    ]


def fewer_labels() -> list[Cell]:
    """Stock and GenSeg, with the pool's other images and without, with 5 and 10 labelled cases; with 5 its parts, too."""
    usual = comparison("stock genseg genseg_unlabelled", seeds=range(3))
    arms = "stock_da5 genseg_da5 genseg_da5_unlabelled genseg_still genseg_deformation genseg_random_without_redraw genseg_random"
    parts = comparison(arms, "102 101", seeds=range(3))
    parts += comparison("genseg_unlabelled_without_redraw", "102", seeds=range(3))
    return [
        *(replace(cell, budget=5) for cell in usual + parts),
        *(replace(cell, budget=10) for cell in usual if cell.budget > 10),
    ]


EVERYWHERE = " ".join(name for name, arm in ARMS.items() if arm.unlabelled != MONTGOMERY)
"""Arms that every dataset can have."""
SCREENED = "stock genseg_unlabelled genseg_unlabelled_sure genseg_unlabelled_more"
"""Settings of unlabelled images, and stock nnU-Net."""
GRIDS: dict[str, list[Cell]] = {
    # final figures
    "long": comparison(COMPARED),
    "headroom": headroom(),
    "rivals": comparison("stock_ema stock_doubled_batch_and_rate genseg_random"),
    "augmentation": [
        *comparison("stock stock_da5 genseg genseg_da5", seeds=range(3)),
        *comparison("genseg_da5_random genseg_da5_random_without_redraw", "105", seeds=range(3)),
    ],
    "feedback": comparison("genseg genseg_still genseg_fast genseg_random", "102", seeds=range(3)),
    "paste": comparison("genseg_carve genseg_lesion", "102 101 105"),
    "choosing": comparison("genseg_random genseg_agreeing genseg_oracle", "102", seeds=range(3)),
    "more": comparison("genseg genseg_more", "102", seeds=range(3)),
    "volumes": comparison("stock genseg genseg_deformation stock_da5 genseg_da5", "104", "3d_fullres", COARSE),
    "larger": comparison("stock genseg stock_da5 genseg_da5", "105", scale=SMALL, seeds=range(3)),
    "longer": [
        *comparison("stock genseg stock_da5 genseg_da5", "102", seeds=range(2), iterations=16_000),
        *(replace(cell, budget=5) for cell in comparison("stock genseg_da5", "101", seeds=range(2), iterations=16_000)),
    ],
    "unlabelled": with_unlabelled_images(),
    "fewer": fewer_labels(),
    "full": [
        *comparison(EVERYWHERE, scale="full"),
        *comparison(EVERYWHERE, "104", "3d_fullres", scale="full"),
        *comparison("genseg_unlabelled_montgomery", "103", scale="full"),
    ],
    # what settings are chosen by
    "screening": [replace(cell, budget=10) for cell in comparison(SCREENED, "102", seeds=range(3), parts=("validation",))],
}
