"""What is compared: the arms, the cells and the grids of `gain.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2_genseg.config import Settings

BUDGET = {"101": 20, "102": 20, "103": 20, "104": 10}
ITERATIONS = {"101": 1000, "102": 1000, "103": 1000, "104": 600}
"""At the scale `mini`, configuration 2d."""


@dataclass(frozen=True)
class Arm:
    """A trainer, its settings and how many times nnU-Net's planned batch it gets."""

    trainer: str
    settings: Settings = field(default_factory=dict)
    batch_factor: int = 1


def genseg(**topics: Settings) -> Arm:
    """GenSeg with some settings changed."""
    return Arm("GenSegTrainerShort", topics)


def deformation(masks: Settings | None = None, conditioning: Settings | None = None, **topics: Settings) -> Arm:
    """Without a generator and without feedback."""
    return genseg(conditioning={"mode": "deformation"} | (conditioning or {}), masks=masks or {}, feedback=OFF, **topics)


OFF: Settings = {"enabled": False}
RECOLOUR: Settings = {"intensity_shift": 1.0}
TONE: Settings = {"tone": 0.5}
TRANSPLANT: Settings = {"recombination": 0.5}
STRONG: Settings = {"elastic": 0.08, "rotation": 30.0, "scaling": 0.25}
ARMS: dict[str, Arm] = {
    "stock": Arm("nnUNetTrainerShort"),
    "stock_doubled_batch": Arm("nnUNetTrainerShort", batch_factor=2),
    "da5": Arm("nnUNetTrainerDA5Short"),
    "da5_doubled_batch": Arm("nnUNetTrainerDA5Short", batch_factor=2),
    "deformation": deformation(),
    "differential_no_feedback": genseg(conditioning={"mode": "differential"}, feedback=OFF),
    "strong_deformation": deformation(masks=STRONG),
    "deformation_transplant": deformation(masks=TRANSPLANT),
    "deformation_tone": deformation(conditioning=TONE),
    "deformation_all": deformation(masks=STRONG | TRANSPLANT, conditioning=TONE),
    "recolour": genseg(conditioning=RECOLOUR, masks={"growth": 0.0}, feedback=OFF),
    "recolour_all": genseg(conditioning=RECOLOUR | TONE, masks=STRONG | TRANSPLANT | {"growth": 0.0}, feedback=OFF),
    "mask_no_feedback": genseg(conditioning={"mode": "mask"}, feedback=OFF),
    "tissue_no_feedback": genseg(conditioning={"mode": "tissue"}, feedback=OFF),
}


@dataclass(frozen=True)
class Cell:
    """One training and what it is judged on."""

    dataset: str
    """Number of the dataset, as in "101"."""
    budget: int
    """Labelled cases, feedback cases included."""
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


def screening(datasets: str, arms: str, longer: int = 1) -> list[Cell]:
    """Cells on the validation part, one seed, `longer` times as long as usual."""
    return [
        Cell(dataset, BUDGET[dataset], "2d", arm, 0, longer * ITERATIONS[dataset], ("validation",))
        for arm in arms.split()
        for dataset in datasets.split()
    ]


ALL = "101 102 103 104"
GRIDS: dict[str, list[Cell]] = {
    "stock": screening(ALL, "stock"),
    "rivals": screening(ALL, "stock_doubled_batch da5"),
    "modes": screening(ALL, "deformation differential_no_feedback"),
    "strength": screening("101 102", "deformation_all deformation_transplant deformation_tone strong_deformation"),
    "length": screening("101 102", "deformation_all stock", longer=3),
    "recolour": screening("101 102", "recolour_all") + screening("104", "recolour_all") + screening("101 102", "recolour"),
}
