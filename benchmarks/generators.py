"""What every generator family costs and how good its pairs are: one JSON a family and dataset.

    python benchmarks/generators.py --raw PATH/TO/nnUNet_raw --work FOLDER [--device cpu]

A generator learns alone on the first N cases, by nnU-Net's plans for those N. Stock nnU-Net, trained on all cases of the training
pool, then judges its pairs by the measures of `nnunetv2_genseg.quality`. What is finished is never run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from building import build_trainer, without_pictures
from cells import BUDGET, POOL, Cell
from preparing import Place, prepare, run_nnunet
from provenance import provenance
from raw_datasets import budgeted_dataset, source_of

RESULTS = Path(__file__).parent / "results" / "generators"
FAMILIES = {"gan": "GenSegTrainer", "vae": "GenSegTrainerVAE", "diffusion": "GenSegTrainerDiffusion", "gmm": "GenSegTrainerGMM"}
"""Families and the presets that they are used with."""
ORACLE = "oracle"
"""In the place of an arm: the network that judges."""
ITERATIONS = {("104", "2d"): 600, ("101", "2d"): 1000, ("104", "3d_fullres"): 100}
ORACLE_ITERATIONS = ITERATIONS | {("104", "3d_fullres"): 300}
PAIRS = 120
"""Pairs that are judged, and real patches that they are compared with."""
REPETITIONS = 15
"""Of every timing, interleaved."""


def cells() -> list[Cell]:
    """One a dataset and family, the network that judges before them."""
    return [
        Cell(dataset, BUDGET[dataset], plan, part, 0, iterations_of(dataset, plan, part), ("validation",))
        for dataset, plan in ITERATIONS
        for part in (ORACLE, *FAMILIES)
    ]


def iterations_of(dataset: str, plan: str, part: str) -> int:
    """Of a generator, or of the network that judges."""
    return (ORACLE_ITERATIONS if part == ORACLE else ITERATIONS)[dataset, plan]


def trainer_on(folder: Path, cell: Cell, kind: str, place: Place, settings: dict[str, Any] | None = None) -> Any:
    """One of the package's trainers on the preprocessed dataset below `folder`."""
    return build_trainer(
        kind,
        folder,
        cell.dataset,
        cell.configuration,
        place.work / "models" / cell.training,
        length=(20, cell.iterations // 20, 1, 20),
        seed=cell.seed,
        device=place.device,
        settings=settings,
    )


def pool_of(cell: Cell, place: Place) -> Path:
    """Folder of all cases of the training pool, preprocessed by the plans for N of them."""
    folder = place.work / cell.scale / f"{cell.dataset}_pool"
    done = folder / f"preprocessed_{cell.configuration}"
    if not done.exists():
        source = source_of(cell.dataset, place.raw)
        budgeted_dataset(source, POOL, cell.scale, folder / "raw")
        planned, target = (place / "preprocessed" / source.name for place in (place.dataset(cell), folder))
        target.mkdir(parents=True, exist_ok=True)
        for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
            shutil.copy(planned / name, target)
        run_nnunet(folder, "nnUNetv2_preprocess", "-d", cell.dataset, "-c", cell.configuration, "-np", "1")
        done.touch()
    return folder


def train_oracle(cell: Cell, place: Place) -> dict[str, Any]:
    """Trains the network that judges: stock nnU-Net on all cases of the pool."""
    trainer = trainer_on(pool_of(cell, place), cell, "nnUNetTrainerShort", place)
    without_pictures(trainer)
    trainer.run_training()
    return {"model": trainer.output_folder}


def oracle_of(cell: Cell, place: Place) -> Any:
    """The trainer that holds it, its loaders begun."""
    oracle = replace(cell, arm=ORACLE, iterations=iterations_of(cell.dataset, cell.configuration, ORACLE))
    trainer = begun(trainer_on(pool_of(cell, place), oracle, "nnUNetTrainerShort", place))
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    return trainer


def begun(trainer: Any) -> Any:
    """A trainer with its networks and loaders, as at the start of a training."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    trainer.initialize()
    trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


def patches(trainer: Any, count: int) -> tuple[Any, Any]:
    """(count, C, *spatial) real patches, not augmented, and (count, *spatial) their class maps."""
    import torch

    images, maps, device = [], [], trainer.device
    while sum(map(len, images)) < count:
        batch = next(trainer.dataloader_val)
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        images.append(batch["data"].to(device))
        maps.append(target[:, 0].long().to(device))
    return torch.cat(images)[:count], torch.cat(maps)[:count]


def seconds(device: str, *functions: Callable[[], object]) -> list[float]:
    """Seconds of every function, called in turns: the least of all, since other jobs can only add to it."""
    import torch

    taken: list[list[float]] = [[] for _ in functions]
    for turn in range(REPETITIONS + 1):
        for kept, function in zip(taken, functions, strict=True):
            started = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is a warm-up
                kept.append(time.perf_counter() - started)
    return [min(kept) for kept in taken]


def family_trainer(cell: Cell, place: Place, folder: Path) -> Any:
    """A trainer with the family's preset and both sources of pairs, without feedback, on the dataset below `folder`."""
    from nnunetv2_genseg import trainers

    settings = getattr(trainers, FAMILIES[cell.arm]).preset | {
        "feedback": {"enabled": False},
        "mixing": {"sources": {"deformation": 1.0, "redraw": 1.0}},
    }
    return begun(trainer_on(folder, cell, "GenSegTrainerShort", place, settings))


def learned(cell: Cell, place: Place, folder: Path) -> Any:
    """The same, whose generator has learned alone."""
    trainer = family_trainer(cell, place, folder)
    for _ in range(cell.iterations):
        parts = trainer._batches.parts(next(trainer.dataloader_train))
        trainer.loop.sampler.observe(parts.labels)
        trainer.loop.training_step(parts.image, parts.labels)
    fault = trainer.loop.check()
    if fault:
        raise RuntimeError(fault)
    return trainer


def drawn(trainer: Any, image: Any, labels: Any, source: str, mode: str | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Synthetic images and masks, one a real patch, from one source and, if it draws, in another mode of the same generator."""
    import torch

    from nnunetv2_genseg.synthesis.modes import MODES

    loop, size = trainer.loop, trainer.batch_size
    if mode is not None:
        loop.sampler.sources[source].mode = MODES[mode]()
    loop.rng.manual_seed(seed)
    with torch.no_grad():
        pairs = [
            loop.sampler.replace(part, own, {source: list(range(len(part)))}, loop.rng).pairs
            for part, own in zip(torch.split(image, size), torch.split(labels, size), strict=True)
        ]
    return torch.cat([pair.image for pair in pairs]), torch.cat([pair.labels for pair in pairs])


def quality(cell: Cell, place: Place) -> dict[str, Any]:
    """All measures of the pairs of one family on one dataset: deformed alone, and redrawn by the preset's mode and `tissue`."""
    from pair_measures import MEASURES, Samples

    oracle = oracle_of(cell, place)
    reference, _ = patches(oracle, PAIRS)
    trainer = learned(cell, place, place.dataset(cell))
    image, labels = patches(trainer, PAIRS)

    def measured(images: Any, masks: Any) -> dict[str, float]:
        samples = Samples(image, images, masks, reference, oracle.network, trainer.loop.codec.foreground, trainer.batch_size)
        return {name: round(measure(samples), 5) for name, measure in MEASURES.items()}

    preset = trainer.genseg.redraw.mode
    return {
        "batch_size": trainer.batch_size,
        "patch_size": list(image.shape[2:]),
        "pairs": PAIRS,
        "preset_mode": preset,
        "real": measured(image, labels),
        "deformation": measured(*drawn(trainer, image, labels, "deformation", seed=cell.seed)),
        "redraw": {
            mode: measured(*drawn(trainer, image, labels, "redraw", mode, cell.seed))
            for mode in dict.fromkeys((preset, "tissue"))
        },
        "settings": trainer.genseg.to_json(),
    }


def costs(cell: Cell, place: Place) -> dict[str, Any]:
    """Parameters, seconds a batch and the most memory of one family, beside those of nnU-Net's own network.

    The generator has not learned: what it has learned does not change what it costs.
    """
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = family_trainer(cell, place, place.dataset(cell))
    image, labels = patches(trainer, trainer.batch_size)
    network, source = trainer.network, trainer.loop.sampler.sources["redraw"]
    trainer.loop.sampler.observe(labels)
    batch = next(trainer.dataloader_train)

    def forward() -> None:
        with torch.no_grad():
            network(image)

    pair, once = seconds(place.device, lambda: drawn(trainer, image, labels, "redraw"), forward)
    learning, step = seconds(
        place.device, lambda: trainer.loop.training_step(image, labels), lambda: nnUNetTrainer.train_step(trainer, batch)
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "parameters": sum(weight.numel() for weight in source.generator.weights()),
        "segmenter_parameters": sum(weight.numel() for weight in network.parameters()),
        "seconds_a_pair": round(pair / len(image), 5),
        "pair_in_forward_passes": round(pair / once, 3),
        "seconds_a_generator_step": round(learning, 4),
        "generator_step_in_training_steps": round(learning / step, 3),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if place.device == "cuda" else memory,
    }


PARTS: dict[str, Callable[[Cell, Place], dict[str, Any]]] = {ORACLE: train_oracle, "quality": quality, "costs": costs}


def measure(cell: Cell, part: str, place: Place, command: str) -> None:
    """Measures a part of `PARTS` in this process and writes its file."""
    measured = {
        "family": cell.arm,
        "trainer": FAMILIES.get(cell.arm, "nnUNetTrainer"),
        **{key: value for key, value in asdict(cell).items() if key not in ("arm", "parts")},
        **PARTS[part](cell, place),
        "command": command,
        **provenance(place.device),
    }
    done = finished(cell, part, place)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(measured, indent=1) + "\n")


def finished(cell: Cell, part: str, place: Place) -> Path:
    """The file that is there when a part of `PARTS` is done."""
    if part == ORACLE:
        return place.work / "models" / cell.training / "judge.json"
    return RESULTS / part / f"{cell.training}.json"


def main() -> None:
    """Measures what is missing, each part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    place = Place(chosen.raw.resolve(), chosen.work.resolve(), chosen.device)
    if chosen.cell:
        command = f"python benchmarks/generators.py --device {place.device} --part {chosen.part} --cell '{chosen.cell}'"
        measure(Cell.from_json(chosen.cell), chosen.part, place, command)
        return
    todo = [(cell, part) for cell in cells() for part in ((ORACLE,) if cell.arm == ORACLE else ("quality", "costs"))]
    for cell, part in todo:
        if finished(cell, part, place).is_file():
            continue
        prepare(cell, place)
        pool_of(cell, place)
        started = time.monotonic()
        command = [sys.executable, __file__, "--raw", str(place.raw), "--work", str(place.work), "--device", place.device]
        log = place.work / "logs" / f"{cell.training}_{part}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w") as file:
            own = ("--cell", json.dumps(asdict(cell)), "--part", part)
            subprocess.run([*command, *own], stdout=file, stderr=file, check=True)
        print(f"{cell.training} {part}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
