"""Does any cheap value tell which synthetic pair is worth training on? results/pair_values/, one JSON a dataset and seed.

    python benchmarks/pair_values.py --raw PATH/TO/nnUNet_raw --work FOLDER [--dataset 102] [--candidates 200] [--device cpu]

Trains half of the usual length with all sources and without feedback; then draws candidates of every kind. The true value of a
candidate is by how much one SGD step on it alone lowers the loss on half of the validation part, cases that the training never
sees. It is rank-correlated with values that a training can afford:

- `loss`: the segmentation network's loss on the candidate;
- `hard`: that loss less the loss of the averaged weights (the teacher), so that a wrong label is not preferred;
- `agreement_heldout`: product of the candidate's gradient with that of two patches of the validation part's other half, drawn
  anew for every candidate;
- `agreement_training`: the same with the gradient of 32 real training patches;
- `agreement_validation`: the same with the gradient on the half that the true value is measured on, the most that an agreement
  could tell;
- `random`.

`pair_values_report.py` says how they are compared.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from building import without_pictures
from cells import Cell, cell_of
from gain import build_cell
from nnunetv2_genseg.config import PasteConfig
from nnunetv2_genseg.synthesis.paster import Paster
from pair_judge import PairJudge, product, validation_patches
from pair_values_report import REAL, pair_values
from preparing import Place, prepare
from provenance import provenance

RESULTS = Path(__file__).parent / "results" / "pair_values"
HELD_OUT = 2
"""Patches that `agreement_heldout` judges by."""
TRAINING = 32
"""Patches that `agreement_training` judges by."""


def half_trained(cell: Cell, place: Place) -> tuple[Any, Any]:
    """A trainer in the middle of its training, and the moving average of its network."""
    trainer = build_cell(cell, place, place.work / "models" / f"pair_values_{cell.training}")
    without_pictures(trainer)
    trainer.on_train_start()
    from nnunetv2_genseg.trainers.teacher import moving_average

    teacher = moving_average(trainer.network, cell.iterations)
    for epoch in range(trainer.num_epochs // 2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(trainer.dataloader_train))
            teacher.update_parameters(trainer.network)
    return trainer, teacher.module


def draw(trainer: Any, kind: str, parts: Any) -> tuple[Any, Any]:
    """A candidate made from the last patch of a batch: (1, C, *spatial) image and (1, *spatial) class map."""
    loop, slot = trainer.loop, len(parts.image) - 1
    image, labels = parts.image, parts.labels
    loop.sampler.paster.remember(image, labels, parts.cases)
    source, *pasted = kind.split(" + ")
    if pasted:
        paster = Paster(PasteConfig(probability=1.0), loop.sampler.paster.context)
        paster.donors = loop.sampler.paster.donors
        image, labels = paster.paste(image, labels, parts.cases, [slot], loop.rng, loop.slot_rng)
    if source == REAL:
        return image[slot:], labels[slot:]
    pairs = loop.sampler.replace(image, labels, {source: [slot]}, loop.rng).pairs
    return pairs.image, pairs.labels


def candidates(trainer: Any, teacher: Any, cell: Cell, place: Place, count: int) -> list[dict[str, Any]]:
    """The kind, the true value and the cheap values of every candidate."""
    import torch

    trainer.network.eval()
    judge, device = PairJudge(trainer), trainer.device
    rng = np.random.default_rng(cell.seed)
    image, labels = (values.to(device) for values in validation_patches(trainer, cell, place))
    order = rng.permutation(len(image))
    others, judged = np.array_split(order, 2)
    other_image, other_labels, image, labels = image[others], labels[others], image[judged], labels[judged]
    with torch.no_grad():
        before = float(judge.value(judge.network, image, labels))
    of_validation = judge.gradient(image, labels)
    real = [trainer._batches.parts(next(trainer.dataloader_train)) for _ in range(-(-TRAINING // trainer.batch_size))]
    of_training = judge.gradient(torch.cat([parts.image for parts in real]), torch.cat([parts.labels for parts in real]))
    kinds = [REAL, *(f"{name}{pasted}" for name in trainer.loop.sampler.sources for pasted in ("", " + paste"))]
    found = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        with torch.no_grad():
            pair = draw(trainer, kind, trainer._batches.parts(next(trainer.dataloader_train)))
            loss, of_teacher = (float(judge.value(network, *pair)) for network in (judge.network, teacher.eval()))
        gradient = judge.gradient(*pair)
        held_out = rng.choice(len(other_image), HELD_OUT, replace=False)
        values = {
            "loss": loss,
            "hard": loss - of_teacher,
            "agreement_heldout": product(gradient, judge.gradient(other_image[held_out], other_labels[held_out])),
            "agreement_training": product(gradient, of_training),
            "agreement_validation": product(gradient, of_validation),
            "random": float(rng.random()),
        }
        true = judge.gain_of_a_step(gradient, image, labels, before)
        foreground = float((pair[1] > 0).float().mean())
        found.append({"kind": kind, "true": true, "foreground": foreground, **values})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--dataset", default="102")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=0, help="of the whole training, of which half is run; the usual one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    place = Place(given.raw.resolve(), given.work.resolve(), given.device)
    cell = cell_of(given.dataset, "genseg_random", given.seed, iterations=given.iterations, parts=("validation",))
    prepare(cell, place)
    found = candidates(*half_trained(cell, place), cell, place, given.candidates)
    command = f"python benchmarks/pair_values.py --dataset {cell.dataset} --seed {given.seed} --candidates {given.candidates}"
    result = {**asdict(cell), "candidates": found, "command": command, **provenance(given.device)}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"{cell.training}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(pair_values([result]))


if __name__ == "__main__":
    main()
