"""What every generator family costs and how its pairs look to a segmenter: one JSON a family and dataset.

    python benchmarks/generators.py --raw PATH/TO/nnUNet_raw --work FOLDER [--device cpu]
    python benchmarks/generators.py --phantoms --work FOLDER

A generator learns alone on the first N cases, by nnU-Net's plans for those N. A segmenter that has seen all cases of the training
pool then judges its pairs: mask fidelity is that segmenter's Dice on the synthetic image against its mask, and KID compares the
features of its encoder (kernel and estimator of Bińkowski et al., ICLR 2018; the features are not Inception's). What is finished
is never run twice.

With `--phantoms` nothing is measured: all families draw the same masks of phantoms, for the picture in the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cells import BUDGET, Cell, length
from gain import Place, nnunet_folders, prepare, run_nnunet
from raw_datasets import budgeted_dataset, source_of

RESULTS = Path(__file__).parent / "results" / "generators"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "generator_families.png"
FAMILIES = {"gan": "GenSegTrainer", "vae": "GenSegTrainerVAE", "diffusion": "GenSegTrainerDiffusion", "gmm": "GenSegTrainerGMM"}
"""Families and the presets that they are used with."""
POOL = 100
"""All cases of the training pool."""
PAIRS = 120
"""Pairs that are judged, and real patches that they are compared with."""
REPETITIONS = 15
"""Of every timing, interleaved."""
SHOWN = 4
"""Patches in the picture."""
ORACLE = "oracle"
ORACLE_ITERATIONS_3D = 300
GENERATOR_ITERATIONS_3D = 100


def cells() -> list[Cell]:
    """One a dataset and family, the segmenter that judges before them; of the datasets and plans of `gain.py`."""
    return [
        Cell(dataset, BUDGET[dataset], configuration, part, 0, iterations_of(dataset, configuration, part), ("validation",))
        for dataset, configuration in (("104", "2d"), ("101", "2d"), ("104", "3d_fullres"))
        for part in (ORACLE, *FAMILIES)
    ]


def iterations_of(dataset: str, configuration: str, part: str) -> int:
    """In 2D as many as the trainings of `gain.py` at the scale `mini` have."""
    if configuration == "2d":
        return length(dataset, configuration, "mini")
    return ORACLE_ITERATIONS_3D if part == ORACLE else GENERATOR_ITERATIONS_3D


def trainer_on(folder: Path, cell: Cell, kind: str, model: Path, place: Place, settings: dict[str, Any] | None = None) -> Any:
    """One of the package's trainers on the preprocessed dataset below `folder`."""
    os.environ.update(nnunet_folders(folder, model))
    os.environ["nnUNet_n_proc_DA"] = "0" if place.device == "cpu" else "12"
    os.environ["nnUNet_genseg_short"] = f"20,{cell.iterations // 20},1,20,{cell.seed}"
    model.mkdir(parents=True, exist_ok=True)
    (model / "settings.json").write_text(json.dumps(settings or {}))
    os.environ["nnUNet_genseg_config"] = str(model / "settings.json")

    import numpy as np
    import torch

    from nnunetv2_genseg import trainers

    torch.set_num_threads(1 if place.device == "cpu" else torch.get_num_threads())
    random.seed(cell.seed)
    np.random.seed(cell.seed)
    preprocessed = next((folder / "preprocessed").glob(f"Dataset{cell.dataset}_*"))
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    return getattr(trainers, kind)(
        plans=plans | {"continue_training": False},
        configuration=cell.configuration,
        fold="all",
        dataset_json=json.loads((preprocessed / "dataset.json").read_text()),
        device=torch.device(place.device),
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
    """Trains the segmenter that judges: stock nnU-Net on all cases of the pool."""
    trainer = trainer_on(pool_of(cell, place), cell, "nnUNetTrainerShort", place.work / "models" / cell.training, place)
    trainer.logger.plot_progress_png = lambda folder: None
    trainer.run_training()
    return {"model": trainer.output_folder}


def oracle_of(cell: Cell, place: Place) -> Any:
    """The trainer that holds it, its loaders begun."""
    oracle = replace(cell, arm=ORACLE, iterations=iterations_of(cell.dataset, cell.configuration, ORACLE))
    model = place.work / "models" / oracle.training
    trainer = begun(trainer_on(pool_of(cell, place), oracle, "nnUNetTrainerShort", model, place))
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


def in_batches(function: Callable[..., Any], size: int, *tensors: Any) -> list[Any]:
    """`function` of parts of at most `size` along the first axis."""
    return [function(*(tensor[i : i + size] for tensor in tensors)) for i in range(0, len(tensors[0]), size)]


def fidelity(network: Any, image: Any, labels: Any, foreground: int, batch: int) -> float:
    """Dice of a segmenter against (B, *spatial) masks, every class over all patches together; the mean over the classes."""
    import torch

    with torch.no_grad():
        found = torch.cat(in_batches(lambda part: network(part).argmax(dim=1), batch, image))
    masks = [(found == label, labels == label) for label in range(1, foreground + 1)]
    return statistics.fmean(2 * int((mine & other).sum()) / int(mine.sum() + other.sum()) for mine, other in masks)


def features(network: Any, image: Any, batch: int) -> Any:
    """(B, channels) strongest response of every channel of a segmenter's encoder, all stages; means say nothing after the
    network's instance norm."""
    import torch

    def strongest(part: Any) -> Any:
        return torch.cat([stage.flatten(2).amax(dim=2) for stage in network.encoder(part)], dim=1)

    with torch.no_grad():
        return torch.cat(in_batches(strongest, batch, image)).cpu().numpy()


def kernel_distance(one: Any, reference: Any) -> float:
    """KID: the unbiased estimate of the squared MMD with the kernel (⟨x, y⟩ / channels + 1)³, of (n, channels) features.

    Both are standardised by the reference, whose channels differ in scale.
    """
    from sklearn.metrics.pairwise import polynomial_kernel

    centre, scale = reference.mean(axis=0), reference.std(axis=0) + 1e-6
    one, other = (one - centre) / scale, (reference - centre) / scale

    def within(x: Any) -> float:
        kernel = polynomial_kernel(x)
        return float((kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)))

    return within(one) + within(other) - 2 * float(polynomial_kernel(one, other).mean())


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
    """A trainer with the family's preset, without feedback, on the dataset below `folder`."""
    from nnunetv2_genseg import trainers

    settings = getattr(trainers, FAMILIES[cell.arm]).preset | {"feedback": {"enabled": False}}
    return begun(trainer_on(folder, cell, "GenSegTrainerShort", place.work / "models" / cell.training, place, settings))


def learnt(cell: Cell, place: Place, folder: Path) -> Any:
    """The same, whose generator has learnt alone."""
    trainer = family_trainer(cell, place, folder)
    for _ in range(cell.iterations):
        trainer.coupling.learn(*trainer._on_device(next(trainer.dataloader_train)))
    trainer.coupling.recovery.end_stretch()
    return trainer


def in_mode(trainer: Any, mode: str) -> Any:
    """The coupling of a trainer, drawing in another mode with the same generator."""
    from nnunetv2_genseg.coupling import Coupling

    own = trainer.coupling
    conditioning = trainer.genseg.conditioning.model_copy(update={"mode": mode})
    config = trainer.genseg.model_copy(update={"conditioning": conditioning})
    other = Coupling(config, own.plan, own.codec, trainer._image_channels, trainer.device)
    other.restore(own.state())
    return other


def quality(cell: Cell, place: Place) -> dict[str, Any]:
    """How the pairs of one family on one dataset look to the segmenter that judges."""
    import torch

    oracle = oracle_of(cell, place)
    judge, everything = oracle.network, patches(oracle, PAIRS)
    trainer = learnt(cell, place, place.dataset(cell))
    image, labels = patches(trainer, PAIRS)
    batch, foreground = trainer.batch_size, trainer.coupling.codec.foreground
    own, known = features(judge, image, batch), features(judge, everything[0], batch)
    drawn = {}
    for mode in dict.fromkeys((trainer.genseg.conditioning.mode, "tissue")):
        coupling = in_mode(trainer, mode)
        coupling.rng.manual_seed(cell.seed)
        parts = in_batches(lambda x, y, c=coupling: c.draw(x, y, len(x)), batch, image, labels)
        images, masks = torch.cat([part.image for part in parts]), torch.cat([part.labels for part in parts])
        drawn[mode] = {
            "fidelity": round(fidelity(judge, images, masks, foreground, batch), 4),
            "kid": round(kernel_distance(features(judge, images, batch), known), 5),
        }
    return {
        "batch_size": batch,
        "patch_size": list(image.shape[2:]),
        "pairs": PAIRS,
        "drawn": drawn,
        "real": {
            "fidelity": round(fidelity(judge, image, labels, foreground, batch), 4),
            "kid": round(kernel_distance(own, known), 5),
        },
        "settings": trainer.genseg.to_json(),
    }


def costs(cell: Cell, place: Place) -> dict[str, Any]:
    """Parameters, seconds a batch and the most memory of one family, beside those of nnU-Net's own network.

    Nothing is learnt before: what a generator has learnt does not change what it costs.
    """
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = family_trainer(cell, place, place.dataset(cell))
    image, labels = patches(trainer, trainer.batch_size)
    trainer.coupling.pairs.observe(image, labels)
    coupling, network = trainer.coupling, trainer.network
    batch = next(trainer.dataloader_train)

    def forward() -> None:
        with torch.no_grad():
            network(image)

    draw, once = seconds(place.device, lambda: coupling.draw(image, labels, len(image)), forward)
    learn, step = seconds(place.device, lambda: coupling.learn(image, labels), lambda: nnUNetTrainer.train_step(trainer, batch))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "parameters": sum(weight.numel() for weight in coupling.generator.weights()),
        "segmenter_parameters": sum(weight.numel() for weight in network.parameters()),
        "seconds_a_pair": round(draw / len(image), 5),
        "pair_in_forward_passes": round(draw / once, 3),
        "seconds_a_generator_step": round(learn, 4),
        "generator_step_in_training_steps": round(learn / step, 3),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if place.device == "cuda" else memory,
    }


def recorded(cell: Cell, place: Place, found: dict[str, Any], command: str) -> dict[str, Any]:
    """What was found, of what, how and where."""
    return {
        "family": cell.arm,
        "trainer": FAMILIES.get(cell.arm, "nnUNetTrainer"),
        **{key: value for key, value in asdict(cell).items() if key not in ("arm", "parts")},
        **found,
        "command": command,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, device {place.device}; one CPU thread, other jobs beside",
        "versions": {package: version(package) for package in ("nnunetv2-genseg", "nnunetv2", "torch", "diffusers")},
    }


def phantom_pictures(work: Path, iterations: int) -> None:
    """The picture of the documentation: all families draw the same masks of phantoms, in 2D and 3D, in mode `tissue`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nnunetv2_genseg.phantoms import PhantomDataset
    from nnunetv2_genseg.pictures.samples import coloured, grey, middle_slice, window_of

    rows: list[list[Any]] = []
    for dataset, configuration in (
        (PhantomDataset(901, dims=2, training_cases=10, test_cases=1), "2d"),
        (PhantomDataset(902, dims=3, training_cases=6, test_cases=1, extent=40), "3d_fullres"),
    ):
        folder = work / "phantoms" / str(dataset.dims)
        if not (folder / "planned").exists():
            dataset.write(folder / "raw")
            options = ("-d", str(dataset.dataset_id), "-c", configuration, "-np", "1", "-npfp", "1")
            run_nnunet(folder, "nnUNetv2_plan_and_preprocess", *options)
            (folder / "planned").touch()
        columns: list[list[Any]] = [[] for _ in range(SHOWN // 2)]
        image = labels = None
        for family in FAMILIES:
            number = str(dataset.dataset_id)
            cell = Cell(number, dataset.training_cases, configuration, family, 0, iterations, (), "phantom")
            trainer = learnt(cell, Place(Path(), work, "cpu"), folder)
            if image is None:
                image, labels = patches(trainer, SHOWN // 2)
            coupling = in_mode(trainer, "tissue")
            coupling.rng.manual_seed(0)
            pairs = coupling.draw(image, labels, len(image))
            for i, column in enumerate(columns):
                real, mask = middle_slice(image[i], labels[i])
                drawn, new = middle_slice(pairs.image[i], pairs.labels[i])
                window = window_of(real)
                column += [grey(real, window), coloured(mask, 2), coloured(new, 2)] if not column else []
                column.append(grey(drawn, window))
        rows += columns
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--phantoms", action="store_true")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.phantoms:
        phantom_pictures(chosen.work.resolve(), 300)
        return
    if chosen.raw is None:
        parser.error("--raw is missing")
    place = Place(chosen.raw.resolve(), chosen.work.resolve(), chosen.device)
    if chosen.cell:
        cell = Cell.from_json(chosen.cell)
        command = f"python benchmarks/generators.py --device {place.device} --part {chosen.part} --cell '{chosen.cell}'"
        measured = recorded(cell, place, PARTS[chosen.part](cell, place), command)
        done = finished(cell, chosen.part, place)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.write_text(json.dumps(measured, indent=1) + "\n")
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


def finished(cell: Cell, part: str, place: Place) -> Path:
    """The file that is there when a part of `PARTS` is done."""
    if part == ORACLE:
        return place.work / "models" / cell.training / "judge.json"
    return RESULTS / part / f"{cell.training}.json"


PARTS: dict[str, Callable[[Cell, Place], dict[str, Any]]] = {ORACLE: train_oracle, "quality": quality, "costs": costs}


if __name__ == "__main__":
    main()
