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
ITERATIONS_3D = 200
LONGER = 4
"""Times that, of the long trainings."""
SEEDS = range(3)
RIVALS = "stock stock_doubled_batch stock_doubled_batch_and_rate da5 genseg_deformation genseg_gmm"
OURS = "genseg_no_feedback genseg"
FAMILIES = "genseg_more_cases genseg_diffusion_more_cases genseg_vae_more_cases genseg_gmm"


@dataclass(frozen=True)
class Arm:
    """A trainer, its settings and how many times nnU-Net's planned batch and learning rate it gets."""

    trainer: str
    settings: Settings = field(default_factory=dict)
    batch_factor: int = 1
    rate_factor: int = 1


def genseg(**topics: Settings) -> Arm:
    """GenSeg with some settings changed."""
    return Arm("GenSegTrainerShort", topics)


def deformation(masks: Settings | None = None, conditioning: Settings | None = None, **topics: Settings) -> Arm:
    """Without a generator and without feedback."""
    return genseg(conditioning={"mode": "deformation"} | (conditioning or {}), masks=masks or {}, feedback=OFF, **topics)


OFF: Settings = {"enabled": False}
MORE: Settings = {"cases": 0.2}
"""What was the default until 0.1 was measured beside it."""
BATCH: Settings = {"sources": "batch"}
EARLY: Settings = {"warmup": 0.02, "ramp": 0.05}
THROUGHOUT: Settings = EARLY | {"tail": 0.0}
MILD: Settings = {"elastic": 0.04, "rotation": 10.0, "scaling": 0.1, "growth": 0.2, "recombination": 0.0}
FURTHER: Settings = {"elastic": 0.08, "rotation": 30.0, "scaling": 0.25}
STRONG: Settings = MILD | FURTHER | {"growth": 0.0}
TRANSPLANT: Settings = {"recombination": 0.5, "margin": 0.05}
PLAIN: Settings = {"intensity_shift": 0.3, "tone": 0.0}
TONE: Settings = {"tone": 0.5}
RECOLOUR: Settings = PLAIN | {"mode": "differential", "intensity_shift": 1.0}
ARMS: dict[str, Arm] = {
    "stock": Arm("nnUNetTrainerShort"),
    "stock_doubled_batch": Arm("nnUNetTrainerShort", batch_factor=2),
    "stock_doubled_batch_and_rate": Arm("nnUNetTrainerShort", batch_factor=2, rate_factor=2),
    "da5": Arm("nnUNetTrainerDA5Short"),
    "da5_doubled_batch": Arm("nnUNetTrainerDA5Short", batch_factor=2),
    "genseg": genseg(),
    "genseg_no_feedback": genseg(feedback=OFF),
    "genseg_deformation": deformation(),
    "genseg_gmm": genseg(generator={"name": "gmm"}, conditioning={"mode": "tissue"}, feedback=OFF),
    "genseg_more_cases": genseg(feedback=MORE),
    "genseg_vae_more_cases": genseg(generator={"name": "vae"}, feedback=MORE),
    "genseg_diffusion_more_cases": genseg(
        generator={"name": "diffusion", "width": 0.1875}, feedback={"parameters": "weights"} | MORE
    ),
    "genseg_fixed_cases": genseg(feedback={"turns": 1}),
    "genseg_weights": genseg(feedback={"parameters": "weights"}),
    "genseg_policy": genseg(feedback={"parameters": "policy"}),
    "genseg_fast": genseg(feedback={"learning_rate": 0.1}),
    "genseg_policy_fast": genseg(feedback={"parameters": "policy", "learning_rate": 0.1}),
    "genseg_weights_of_more_drawn": genseg(
        feedback={"parameters": "weights"}, conditioning={"intensity_shift": 0.3}, masks={"growth": 0.2}
    ),
    "genseg_half_gamma": genseg(mixing={"gamma": 0.5}, feedback=OFF),
    "genseg_half_share": genseg(mixing={"share": 0.5}, feedback=OFF),
    "genseg_no_tail": genseg(schedule={"tail": 0.0}, feedback=OFF),
    "genseg_early_feedback": genseg(feedback={"end": 0.6} | MORE),
    "genseg_from_batch": genseg(mixing=BATCH, feedback=MORE),
    "genseg_no_feedback_from_batch": genseg(mixing=BATCH, feedback=OFF),
    "genseg_deformation_from_batch": deformation(mixing=BATCH),
    "genseg_gmm_from_batch": genseg(
        generator={"name": "gmm"}, conditioning={"mode": "tissue"}, mixing=BATCH, feedback=OFF
    ),
    "genseg_fixed_cases_from_batch": genseg(mixing=BATCH, feedback={"turns": 1} | MORE),
    "genseg_deformation_throughout": deformation(schedule=THROUGHOUT),
    "genseg_deformation_early": deformation(schedule=EARLY),
    "genseg_deformation_no_tail": deformation(schedule={"tail": 0.0}),
    "genseg_deformation_recombined": deformation(masks={"recombination": 0.5}),
    "genseg_deformation_strong": deformation(masks=FURTHER),
    "genseg_shift": genseg(conditioning={"intensity_shift": 0.3}, feedback=OFF),
    "genseg_more_drawn": genseg(conditioning={"intensity_shift": 0.3}, masks={"growth": 0.2}, feedback=OFF),
    "genseg_learned_masks": genseg(masks={"source": "learned"}, feedback=OFF),
    # screening, whatever the defaults have become since
    "deformation": deformation(masks=MILD, conditioning=PLAIN, mixing=BATCH),
    "deformation_other": deformation(masks=MILD, conditioning=PLAIN),
    "strong_deformation": deformation(masks=STRONG, conditioning=PLAIN, mixing=BATCH),
    "deformation_transplant": deformation(masks=MILD | TRANSPLANT, conditioning=PLAIN, mixing=BATCH),
    "deformation_tone": deformation(masks=MILD, conditioning=PLAIN | TONE, mixing=BATCH),
    "deformation_all": deformation(masks=STRONG | TRANSPLANT, conditioning=PLAIN | TONE, mixing=BATCH),
    "differential_no_feedback": genseg(
        masks=MILD, conditioning=PLAIN | {"mode": "differential"}, mixing=BATCH, feedback=OFF
    ),
    "mask_no_feedback": genseg(masks=MILD, conditioning=PLAIN | {"mode": "mask"}, mixing=BATCH, feedback=OFF),
    "tissue_no_feedback": genseg(masks=MILD, conditioning=PLAIN | {"mode": "tissue"}, mixing=BATCH, feedback=OFF),
    "recolour": genseg(masks=MILD | {"growth": 0.0}, conditioning=RECOLOUR, mixing=BATCH, feedback=OFF),
    "recolour_all": genseg(masks=STRONG | TRANSPLANT, conditioning=RECOLOUR | TONE, mixing=BATCH, feedback=OFF),
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


def comparison(
    arms: str, seeds: range, scale: str = "mini", datasets: str = "101 102 103 104", longer: int = 1
) -> list[Cell]:
    """Cells on the test part, seed after seed, `longer` times as long as usual; the chest X-rays also of the other hospital."""
    return [
        Cell(dataset, BUDGET[dataset], "2d", arm, seed, longer * length(dataset, "2d", scale), parts(dataset), scale)
        for seed in seeds
        for arm in arms.split()
        for dataset in datasets.split()
    ]


def parts(dataset: str) -> tuple[str, ...]:
    """What final figures are taken on."""
    return ("test", "montgomery") if dataset == "103" else ("test",)


def length(dataset: str, configuration: str, scale: str) -> int:
    """Iterations: at the scale `full` a tenth of nnU-Net's default."""
    if scale == "full":
        return 25_000
    return ITERATIONS[dataset] if configuration == "2d" else ITERATIONS_3D


def volumes(arms: str, seeds: range, scale: str = "mini") -> list[Cell]:
    """Hippocampus in 3D, on the test part."""
    return [
        Cell("104", 10, "3d_fullres", arm, seed, length("104", "3d_fullres", scale), ("test",), scale)
        for seed in seeds
        for arm in arms.split()
    ]


def curve(arms: str, seeds: range, scale: str = "mini") -> list[Cell]:
    """All label budgets, on the test part."""
    return [
        Cell(dataset, budget, "2d", arm, seed, length(dataset, "2d", scale), parts(dataset), scale)
        for seed in seeds
        for budget in (5, 10, 20, 40, 100)
        for arm in arms.split()
        for dataset in BUDGET
    ]


def screening(datasets: str, arms: str, longer: int = 1, seeds: range = range(1)) -> list[Cell]:
    """Cells on the validation part, `longer` times as long as usual."""
    return [
        Cell(dataset, BUDGET[dataset], "2d", arm, seed, longer * ITERATIONS[dataset], ("validation",))
        for arm in arms.split()
        for dataset in datasets.split()
        for seed in seeds
    ]


ALL = "101 102 103 104"
GRIDS: dict[str, list[Cell]] = {
    # final figures
    "final": comparison(f"{RIVALS} {OURS}", SEEDS),
    "feedback": comparison("genseg_no_feedback genseg_more_cases genseg_early_feedback genseg", SEEDS),
    "saturation": comparison(
        f"stock stock_doubled_batch_and_rate genseg_deformation {OURS}", SEEDS, datasets="104 102 103 101", longer=LONGER
    ),
    "volumes": volumes(f"stock stock_doubled_batch_and_rate genseg_deformation {OURS}", SEEDS),
    "curve": curve("stock genseg", SEEDS),
    "full": [
        *comparison(f"{RIVALS} {OURS} genseg_weights genseg_policy", SEEDS, "full"),
        *volumes(f"{RIVALS} {OURS}", SEEDS, "full"),
        *curve("stock genseg", SEEDS, "full"),
    ],
    "first": comparison(f"stock genseg_deformation {OURS}", range(1))
    + comparison("genseg_fixed_cases", range(1)),
    "families": [
        *comparison(FAMILIES, range(1), datasets="104 101"),
        *volumes(f"stock {FAMILIES}", range(1)),
    ],
    # what the defaults were chosen by
    "parameters": screening(ALL, "genseg_no_feedback genseg genseg_fixed_cases genseg_weights genseg_policy"),
    "mixing": screening(ALL, "genseg_half_gamma genseg_half_share genseg_no_tail"),
    "sources": screening(ALL, "stock stock_doubled_batch deformation deformation_other"),
    "modes": screening(ALL, "stock stock_doubled_batch deformation differential_no_feedback mask_no_feedback tissue_no_feedback"),
    "changes": screening(ALL, "deformation_all deformation_transplant deformation_tone strong_deformation"),
    "recolour": screening(ALL, "recolour_all recolour"),
    "schedule": screening(ALL, "genseg_deformation genseg_deformation_throughout")
    + screening("101", "stock genseg_deformation genseg_deformation_throughout", seeds=SEEDS)
    + screening("101 102", "genseg_deformation_early genseg_deformation_no_tail"),
    "aside": screening("104 102 101", "genseg genseg_early_feedback genseg_more_cases", seeds=SEEDS)
    + screening("104", "genseg_no_feedback"),
    "shapes": screening("104", "genseg_no_feedback genseg_learned_masks"),
    "structures": screening("101 102", "genseg_deformation genseg_deformation_recombined", seeds=range(2)),
    "drawn": screening("102 101 104", "genseg_no_feedback genseg_shift genseg_more_drawn", seeds=SEEDS)
    + screening("102", "genseg_weights_of_more_drawn")
    + screening("102", f"stock stock_doubled_batch_and_rate genseg_deformation genseg_more_drawn {OURS}", longer=LONGER),
    "rate": screening("102", "genseg genseg_fast", seeds=SEEDS) + screening("101 102", "genseg_policy genseg_policy_fast"),
    "length": screening("101 102", "deformation_all stock", longer=3),
    "long": screening("102 104", "genseg_deformation genseg_deformation_strong", longer=LONGER, seeds=range(2))
    + screening("102", "genseg_deformation_throughout", longer=LONGER)
    + screening("103", f"stock {OURS}", longer=LONGER)
    + screening("101", f"stock genseg_deformation genseg_deformation_strong genseg_more_drawn {OURS}", longer=LONGER),
}
