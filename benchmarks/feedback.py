"""Does the feedback's gradient tell how the loss on held-out cases changes? results/feedback.json.

    python benchmarks/feedback.py --raw PATH/TO/nnUNet_raw --work FOLDER [--dataset 104] [--seed 0]

A short training of the 2D plan at the default, with a feedback step every five iterations. At each of these real steps, φ moves
from φ to φ + δ. `predicted` is the product of the hypergradient and δ. `measured` is the loss on held-out patches after a plain
step of the segmentation network on the pairs that φ + δ draws, less that loss with the pairs of φ, by the same random numbers:

- `same`: the pairs and held-out patches of the feedback step, of which the gradient is the derivative;
- `other_patches`: judged on other patches of the held-out cases;
- `other_pairs`: pairs from other real patches with other random numbers, judged on other patches: what the training gets from it.

The step and the losses are computed in float64, since the differences are small. A second training has SiLU in the place of the
network's LeakyReLU: the gradient of a LeakyReLU network jumps where a unit changes its sign, and no derivative tells of that.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from building import build_trainer, without_pictures
from cells import BUDGET, Cell
from gate import rank_correlation
from preparing import Place, prepare
from provenance import provenance

RESULT = Path(__file__).parent / "results" / "feedback.json"
LENGTH = (15, 20, 1, 15)
"""Epochs, iterations, validation iterations, epochs between checkpoints."""
SETTINGS = {"feedback": {"interval": 5}}


class Judge:
    """Measures what every feedback step of a trainer brings.

    Args:
        trainer: begun; its feedback is watched from now on.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.found: list[dict[str, float]] = []
        self.feedback = trainer.loop.feedback
        self._step, self._descend = self.feedback.step, self.feedback._descend
        self.feedback.step, self.feedback._descend = self.step, self.descend

    def descend(self, gradient: list[Any]) -> None:
        """Keeps the hypergradient, and where φ was."""
        self.gradient = [part.double() for part in gradient]
        self.before = [own.detach().clone() for own in self.feedback.phi]
        self._descend(gradient)

    def step(self, *given: Any) -> dict[str, float]:
        """A feedback step, and what it brings; the trainer goes on as without."""
        import torch

        segmenter, image, labels, held_out, rate, chosen, rng = given
        state = rng.get_state()
        self.gradient = []
        result: dict[str, float] = self._step(*given)
        if not self.gradient:
            return result
        after = [own.detach().clone() for own in self.feedback.phi]
        moved = [(new - old).double() for new, old in zip(after, self.before, strict=True)]
        one = {"predicted": float(sum((a * b).sum() for a, b in zip(self.gradient, moved, strict=True)))}
        other = self.other_held_out()
        parts = self.trainer._batches.parts(next(self.trainer.dataloader_train))
        further = torch.Generator(rng.device).manual_seed(len(self.found))
        tried = {
            "same": (image, labels, held_out, state),
            "other_patches": (image, labels, other, state),
            "other_pairs": (parts.image[-len(image) :], parts.labels[-len(image) :], other, further.get_state()),
        }
        kept = rng.get_state()
        for name, (patches, maps, judged, drawn_from) in tried.items():
            losses = []
            for place in (self.before, after):
                self.put(place)
                rng.set_state(drawn_from)
                with torch.no_grad():
                    pairs = self.feedback.sampler.replace(patches, maps, chosen, rng).pairs
                losses.append(loss_after_a_step(segmenter, pairs, judged, rate))
            one[name] = losses[1] - losses[0]
        self.put(after)
        rng.set_state(kept)
        self.found.append(one)
        return result

    def other_held_out(self) -> Any:
        """Held-out patches; those of the trainer are the same ones during an iteration."""
        from nnunetv2_genseg.bilevel.feedback import HeldOutBatch
        from nnunetv2_genseg.checkpoint import own_random_state

        with own_random_state(len(self.found)):
            parts = self.trainer._batches.parts(next(self.trainer._held_out._loader))
        return HeldOutBatch(parts.network_input, parts.labels)

    def put(self, place: list[Any]) -> None:
        """Moves φ."""
        import torch

        with torch.no_grad():
            for own, value in zip(self.feedback.phi, place, strict=True):
                own.copy_(value)


def loss_after_a_step(segmenter: Any, pairs: Any, held_out: Any, rate: float) -> float:
    """The loss on held-out patches after a plain step of the segmentation network on some pairs, which is then forgotten."""
    import torch

    from nnunetv2_genseg.hypergradient import segmenter_gradient

    network = copy.deepcopy(segmenter.network).double()
    theta = dict(network.named_parameters())
    target = segmenter.to_target(pairs.labels)
    own = segmenter.to_input(pairs.image, pairs.labels).double()
    gradient = segmenter.of_the_step(segmenter_gradient(network, theta, own, lambda logits: segmenter.loss(logits, target)))
    with torch.no_grad():
        for name, slope in gradient.items():
            theta[name].sub_(rate * slope)
        output = network(held_out.network_input.double())
        return float(segmenter.loss(output, segmenter.to_target(held_out.labels)))


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """How the measured changes go with the predicted one."""
    predicted = np.array([one["predicted"] for one in found])
    told: dict[str, Any] = {"steps": len(found)}
    for name in ("same", "other_patches", "other_pairs"):
        measured = np.array([one[name] for one in found])
        told[name] = {
            "correlation": round(float(np.corrcoef(predicted, measured)[0, 1]), 3),
            "slope": round(float((predicted @ measured) / (predicted @ predicted)), 3),
            "same_sign": round(float(np.mean(np.sign(predicted) == np.sign(measured))), 3),
            **rank_correlation(predicted, measured),
        }
    return told


def watched(cell: Cell, place: Place, smooth: bool) -> list[dict[str, float]]:
    """A training, and what each of its feedback steps brings; if `smooth`, with SiLU in the segmentation network."""
    trainer = build_trainer(
        "GenSegTrainerShort",
        place.dataset(cell),
        cell.dataset,
        cell.configuration,
        place.work / "models" / f"feedback_{cell.dataset}_s{cell.seed}_{'smooth' if smooth else 'plain'}",
        length=LENGTH,
        seed=cell.seed,
        settings=dict(SETTINGS),
    )
    without_pictures(trainer)
    trainer.on_train_start()
    if smooth:
        put_silu(trainer.network)
    judge = Judge(trainer)
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(trainer.dataloader_train))
    return judge.found


def put_silu(network: Any) -> None:
    """Puts SiLU in the place of every LeakyReLU, everywhere below."""
    from torch import nn

    for name, module in list(network.named_children()):
        if isinstance(module, nn.LeakyReLU):
            setattr(network, name, nn.SiLU())
        else:
            put_silu(module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dataset", default="104", choices=BUDGET)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    place = Place(given.raw.resolve(), given.work.resolve(), "cpu")
    cell = Cell(given.dataset, BUDGET[given.dataset], "2d", "genseg", given.seed, 0, ())
    prepare(cell, place)
    found = {name: watched(cell, place, smooth) for name, smooth in (("LeakyReLU", False), ("SiLU", True))}
    told = {name: summary(steps) for name, steps in found.items()}
    command = f"python benchmarks/feedback.py --raw PATH/TO/nnUNet_raw --work FOLDER --dataset {cell.dataset} --seed {given.seed}"
    content = {"feedback_correlation": told["LeakyReLU"]["same"]["correlation"], "dataset": cell.dataset, "configuration": "2d"}
    content |= {"seed": given.seed, "iterations": LENGTH[0] * LENGTH[1], "settings": SETTINGS, "networks": told}
    content |= {"command": command, **provenance("cpu"), "found": found}
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
