"""Does the feedback's gradient tell what a change of the generator does to its pairs? results/feedback.json.

    python benchmarks/feedback.py --raw PATH/TO/nnUNet_raw --work FOLDER

In the middle of a short training of each plan, the kernel mixture α of the generator is moved in random directions. The
`alignment` of pairs says by how much a step of the segmentation network on them lowers the loss on held-out patches, divided by
the learning rate. It is measured on both sides of α for many batches of pairs, with the same random numbers on both sides. Its
slope is what each way to compute the derivative should tell:

- `exact`: the gradient of the synthetic loss is differentiated once more, reverse over reverse;
- `difference RATIO`: the difference of the synthetic loss's gradients by the image at two sets of weights, before and behind the
  present ones in the direction of the held-out gradient, RATIO of the norm of the weights away: what the package does, with its
  own ratio. nnU-Net's LeakyReLU has kinks, of which the exact derivative of a gradient holds nothing.

`each` is the correlation over directions and batches, `mean` that over the directions, of the means over the batches. `ratio` is
the regression of the measured slope on what was told, through the origin. `seconds` are those of one derivative.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from building import build_trainer, without_pictures
from cells import BUDGET, Cell
from preparing import Place, prepare
from provenance import provenance

RESULT = Path(__file__).parent / "results" / "feedback.json"
PLANS = (("104", "2d"), ("102", "2d"))
EPOCHS = 30
ITERATIONS = 20
"""Of an epoch."""
DONE = 0.6
"""Share of the epochs after which it is measured."""
DIRECTIONS, BATCHES, HELD_OUT = 8, 12, 8
SIZES = (0.03, 0.3)
"""Standard deviations of the moves of α, in logits."""
RATIOS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

Slopes = dict[str, Any]
"""(directions, batches) arrays by what they are."""


class Middle:
    """A trainer in the middle of its training, and what feedback asks of it, at weights that stay as they are.

    Args:
        cell: plan and seed.
        place: of the data.
    """

    def __init__(self, cell: Cell, place: Place) -> None:
        import torch

        from nnunetv2_genseg.random_state import own_random_state

        model = place.work / "models" / f"feedback_{cell.dataset}_{cell.configuration}_s{cell.seed}"
        trainer = build_trainer(
            "GenSegTrainerShort",
            place.dataset(cell),
            cell.dataset,
            cell.configuration,
            model,
            length=(EPOCHS, ITERATIONS, 1, EPOCHS),
            seed=cell.seed,
        )
        without_pictures(trainer)
        trainer.on_train_start()
        self.feedback = trainer.loop.feedback
        own_step = self.feedback.step

        def watched(segmenter: Any, *given: Any) -> Any:
            self.segmenter = segmenter
            return own_step(segmenter, *given)

        self.feedback.step = watched
        for epoch in range(round(DONE * EPOCHS)):
            trainer.current_epoch = epoch
            trainer.on_train_epoch_start()
            for _ in range(ITERATIONS):
                trainer.train_step(next(trainer.dataloader_train))
        self.to_target, self.loss = self.segmenter.to_target, self.segmenter.loss
        self.theta = dict(self.segmenter.network.named_parameters())
        trainer._held_out.next_batch()  # builds the loader where these cases have judged nothing yet
        with own_random_state(cell.seed):
            held_out = [trainer._batches.parts(next(trainer._held_out._loader)) for _ in range(HELD_OUT)]
            self.batches = [trainer._batches.parts(next(trainer.dataloader_train)) for _ in range(BATCHES)]
        gradients = [self._gradient(parts) for parts in held_out]
        mean = {name: torch.stack([own[name] for own in gradients]).mean(0) for name in gradients[0]}
        self.direction = self.segmenter.of_the_step(mean)
        self.phi = self.feedback.phi
        noise = torch.Generator().manual_seed(cell.seed)
        self.moves = [[torch.randn(own.shape, generator=noise) for own in self.phi] for _ in range(DIRECTIONS)]

    def _gradient(self, parts: Any) -> Any:
        """Of the loss on held-out patches, by the weights."""
        from nnunetv2_genseg import hypergradient

        def loss(logits: Any) -> Any:
            return self.loss(logits, self.to_target(parts.labels))

        return hypergradient.segmenter_gradient(self.segmenter.network, self.theta, parts.network_input, loss)

    def pairs(self, batch: int) -> tuple[Any, Any]:
        """The network's input for pairs that are made from a batch, the same at every call but for α; and the loss of logits."""
        import torch

        parts, rng = self.batches[batch], torch.Generator().manual_seed(batch)
        chosen = self.feedback.choose(len(parts.image), rng)
        drawn = self.feedback.sampler.replace(parts.image, parts.labels, chosen, rng).pairs
        target = self.to_target(drawn.labels)
        return self.segmenter.to_input(drawn.image, drawn.labels), lambda logits: self.loss(logits, target)

    def alignment(self, batch: int) -> float:
        """By how much a step on the batch's pairs lowers the held-out loss, divided by the learning rate."""
        import torch

        from nnunetv2_genseg import hypergradient

        with torch.no_grad():
            image, loss = self.pairs(batch)
        return float(hypergradient.alignment(self.segmenter.network, self.theta, self.direction, image, loss))

    def measured(self, size: float) -> Any:
        """Slopes of the alignment by moves of α."""
        import torch

        slopes = np.zeros((DIRECTIONS, BATCHES))
        start = [own.detach().clone() for own in self.phi]
        for i, move in enumerate(self.moves):
            for sign in (1, -1):
                with torch.no_grad():
                    for own, old, part in zip(self.phi, start, move, strict=True):
                        own.copy_(old + sign * size * part)
                slopes[i] += [sign * self.alignment(batch) / (2 * size) for batch in range(BATCHES)]
        with torch.no_grad():
            for own, old in zip(self.phi, start, strict=True):
                own.copy_(old)
        return slopes

    def told(self, derivative: Callable[[Any, Any], Any]) -> tuple[Any, float]:
        """Slopes by a way to compute the derivative of the alignment by φ, and the seconds of one derivative."""
        begin, slopes = time.perf_counter(), np.zeros((DIRECTIONS, BATCHES))
        for batch in range(BATCHES):
            gradient = derivative(*self.pairs(batch))
            for i, move in enumerate(self.moves):
                slopes[i, batch] = sum(float((part * own).sum()) for part, own in zip(gradient, move, strict=True))
        return slopes, (time.perf_counter() - begin) / BATCHES

    def exact(self, image: Any, loss: Any) -> Any:
        """Reverse over reverse."""
        import torch
        from torch.func import functional_call

        weights = {name: self.theta[name] for name in self.direction}
        value = loss(functional_call(self.segmenter.network, self.theta, (image,), tie_weights=False))
        slopes = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True)
        product = sum((slope * part).sum() for slope, part in zip(slopes, self.direction.values(), strict=True))
        return torch.autograd.grad(product, self.phi)

    def difference(self, ratio: float, image: Any, loss: Any) -> Any:
        """The package's own, at another distance."""
        from nnunetv2_genseg import hypergradient

        network, direction = self.segmenter.network, self.direction
        return hypergradient.hypergradient(network, self.theta, direction, self.phi, image, loss, -1.0, ratio)


def comparison(measured: Any, told: Any) -> dict[str, float]:
    """How what was told goes with what was measured."""
    return {
        "each": round(float(np.corrcoef(told.ravel(), measured.ravel())[0, 1]), 3),
        "mean": round(float(np.corrcoef(told.mean(axis=1), measured.mean(axis=1))[0, 1]), 3),
        "ratio": round(float((told.ravel() @ measured.ravel()) / (told.ravel() @ told.ravel())), 3),
    }


def judged(cell: Cell, place: Place) -> dict[str, Any]:
    """All figures of one plan."""
    middle = Middle(cell, place)
    measured = {str(size): middle.measured(size) for size in SIZES}
    ways = {"exact": middle.exact} | {
        f"difference {ratio:g}": lambda image, loss, ratio=ratio: middle.difference(ratio, image, loss) for ratio in RATIOS
    }
    told = {}
    for name, way in ways.items():
        slopes, seconds = middle.told(way)
        told[name] = {"seconds": round(seconds, 3)} | {size: comparison(own, slopes) for size, own in measured.items()}
        print(cell.dataset, cell.configuration, name, told[name], flush=True)
    signal = {size: [round(float(value), 5) for value in own.mean(axis=1)] for size, own in measured.items()}
    errors = {size: [round(float(v), 5) for v in own.std(axis=1, ddof=1) / BATCHES**0.5] for size, own in measured.items()}
    return {"parameters": sum(own.numel() for own in middle.phi), "told": told, "slopes": signal, "standard_errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    place = Place(given.raw.resolve(), given.work.resolve(), "cpu")
    found = {}
    for dataset, configuration in PLANS:
        cell = Cell(dataset, BUDGET[dataset], configuration, "genseg", given.seed, 0, ())
        prepare(cell, place)
        found[f"{dataset} {configuration}"] = judged(cell, place)
        content = {"seed": given.seed, "directions": DIRECTIONS, "batches": BATCHES, "held_out_batches": HELD_OUT}
        content |= {"iterations": round(DONE * EPOCHS) * ITERATIONS, "plans": found}
        content |= {"command": f"python benchmarks/feedback.py --raw PATH/TO/nnUNet_raw --work FOLDER --seed {given.seed}"}
        given.out.write_text(json.dumps(content | provenance("cpu"), indent=1) + "\n")


if __name__ == "__main__":
    main()
