"""What is compared: the arms, the cells and the grids of `gain.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import Settings

BUDGET = {"101": 20, "102": 20, "103": 20, "104": 10}
ITERATIONS = {"101": 4000, "102": 4000, "103": 4000, "104": 2400}
"""At the scale `mini`, configuration 2d."""
ITERATIONS_3D = 800
FULL = 25_000
"""At the scale `full`: a tenth of nnU-Net's default."""
SEEDS = range(3)
ORDER = "102 104 101 103"
"""Datasets in the order in which they are run: those that tell most come first."""
COMPARED = "stock genseg genseg_random_without_redraw genseg_deformation"


@dataclass(frozen=True)
class Arm:
    """A trainer, its settings and how many times nnU-Net's planned batch and learning rate it gets."""

    trainer: str
    settings: Settings = field(default_factory=dict)
    batch_factor: int = 1
    rate_factor: int = 1


def genseg(**sections: Settings) -> Arm:
    """GenSeg with some settings changed."""
    return Arm("GenSegTrainerShort", sections)


OFF: Settings = {"enabled": False}
DEFORMATION: Settings = {"sources": {"deformation": 1.0}}
ARMS: dict[str, Arm] = {
    "stock": Arm("nnUNetTrainerShort"),
    "stock_doubled_batch_and_rate": Arm("nnUNetTrainerShort", batch_factor=2, rate_factor=2),
    "genseg": genseg(),
    "genseg_deformation": genseg(mixing=DEFORMATION, paste={"probability": 0.0}, feedback=OFF),
    "genseg_random_without_redraw": genseg(mixing=DEFORMATION, feedback=OFF),
    "genseg_random": genseg(feedback=OFF),
    "genseg_carve": genseg(mixing=DEFORMATION, paste={"kinds": {"carve": 1.0}}, feedback=OFF),
    "genseg_lesion": genseg(mixing=DEFORMATION, paste={"kinds": {"lesion": 1.0}}, feedback=OFF),
}
"""`genseg` is the default, `genseg_random` the default without feedback, `genseg_random_without_redraw` that without generator,
`genseg_deformation` that without parts of other cases."""


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
    scale: str = "mini"

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """The inverse of `json.dumps(asdict(cell))`."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"parts": tuple(values["parts"])})

    @property
    def training(self) -> str:
        """Unique among all trainings."""
        length = f"{self.iterations}it"
        return f"{self.scale}_{self.dataset}_N{self.budget}_{self.configuration}_{length}_{self.arm}_s{self.seed}"

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


def comparison(arms: str, seeds: range = SEEDS, scale: str = "mini", datasets: str = ORDER, plan: str = "2d") -> list[Cell]:
    """Cells on the test part, seed by seed and dataset by dataset; the chest X-rays also on the other hospital's."""
    return [
        Cell(
            dataset,
            BUDGET[dataset],
            plan,
            arm,
            seed,
            length(dataset, plan, scale),
            ("test", "montgomery") if dataset == "103" else ("test",),
            scale,
        )
        for seed in seeds
        for dataset in datasets.split()
        for arm in arms.split()
    ]


def screening(datasets: str, arms: str, seeds: range = range(1)) -> list[Cell]:
    """Cells on the validation part, by which settings are chosen."""
    return [
        Cell(dataset, BUDGET[dataset], "2d", arm, seed, length(dataset, "2d", "mini"), ("validation",))
        for seed in seeds
        for dataset in datasets.split()
        for arm in arms.split()
    ]


GRIDS: dict[str, list[Cell]] = {
    # final figures
    "long": comparison(COMPARED),
    "rivals": comparison("stock_doubled_batch_and_rate genseg_random"),
    "paste": comparison("genseg_carve genseg_lesion", datasets="102 101"),
    "volumes": comparison(COMPARED, datasets="104", plan="3d_fullres"),
    "full": [
        *comparison(" ".join(ARMS), scale="full"),
        *comparison(" ".join(ARMS), scale="full", datasets="104", plan="3d_fullres"),
    ],
    # what settings are chosen by
    "screening": screening(ORDER, "stock genseg genseg_deformation genseg_random"),
}
