"""What every part of a GenSeg iteration costs, and the least that it could: results/parts.json.

    python benchmarks/parts.py --raw PATH/TO/nnUNet_raw --work FOLDER [--device cpu]

Takes the plans of `speed.py`, in the stage with pairs and feedback. In one process a stock trainer and a GenSeg trainer take
turns: a few stock iterations, then a whole feedback interval, in which the time of every part is taken. Parts are functions of
the package, which are wrapped from outside; time in an inner part does not count for the outer one. The same interval is run
once more to count operations instead of seconds. The least time is that of the counted operations at the speed that the
machine reaches on a plain convolution with the network's first channels, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cells import BUDGET, Cell
from iterations import BLOCK, KINDS, Subject, block, clock_of, moments, spread, trainer_of
from preparing import Place, prepare
from provenance import provenance
from speed import PLANS

RESULT = Path(__file__).parent / "results" / "parts.json"
STAGE = "pairs and feedback"
TURNS = {"2d": 5, "3d_fullres": 3}
DATA, REST, FEEDBACK, NETWORK = "loading and augmentation", "all else", "feedback step", "segmentation network"


class Stopwatch:
    """Adds up what passes in every part, the inner ones left out.

    Args:
        read: what is passed so far: seconds, or a vector of operations.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self.read = read
        self.passed: dict[str, Any] = defaultdict(float)
        self._open: list[str] = []
        self._since: Any = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What passes in the block belongs to this part, unless it is within the feedback, which counts as a whole."""
        if FEEDBACK in self._open:
            yield
            return
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = self.read()
        if self._open:
            self.passed[self._open[-1]] = self.passed[self._open[-1]] + now - self._since
        self._since = now

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """From now on a function of an object, a class or a module is such a part."""
        function = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            with self.part(part):
                return function(*args, **options)

        setattr(owner, name, timed)


def watch(trainer: Any, stopwatch: Stopwatch) -> None:
    """Wraps the parts of a trainer."""
    from nnunetv2_genseg.synthesis import conditioning
    from nnunetv2_genseg.synthesis.modes import residual
    from nnunetv2_genseg.synthesis.sources import SourceContext, deformation

    sampler = trainer.loop.sampler
    redraw = sampler.sources["redraw"]
    for owner, names, part in (
        (trainer, ("host_step",), NETWORK),
        (redraw.generator, ("training_step",), "generator step"),
        (redraw.generator, ("_discriminator_step",), "discriminator step"),
        (redraw.generator, ("sample",), "drawing by the generator"),
        (redraw, ("observe", "_redrawing"), "conditions"),
        (conditioning, ("condition",), "conditions"),
        (sampler.deformer, ("observe", "sample"), "new masks"),
        (deformation, ("warp_image",), "deformed images"),
        (residual, ("warp_image",), "deformed images"),
        (SourceContext, ("finished",), "tone and new labels"),
        (sampler.paster, ("remember", "paste"), "pasting"),
        (trainer._batches, ("parts", "replaced"), "pairs into the batch"),
        (trainer, ("_feedback_step",), FEEDBACK),
        (trainer, ("train_step",), REST),
    ):
        for name in names:
            stopwatch.wrap(owner, name, part)


class Plain:
    """A plain convolution of the patch with the segmentation network's first channels, forward and backward."""

    def __init__(self, trainer: Any) -> None:
        import torch
        from torch import nn

        architecture = trainer.configuration_manager.network_arch_init_kwargs
        channels, kernel = architecture["features_per_stage"][0], architecture["kernel_sizes"][0]
        patch, device = trainer.configuration_manager.patch_size, trainer.device
        kind = nn.Conv2d if len(patch) == 2 else nn.Conv3d
        self.convolution = kind(channels, channels, kernel, padding=[size // 2 for size in kernel]).to(device)
        self.image = torch.randn(trainer.batch_size, channels, *patch, device=device, requires_grad=True)

    def __call__(self) -> None:
        """Once."""
        self.convolution(self.image).sum().backward()


def teacher_of(trainer: Any) -> tuple[Callable[[], None], float]:
    """The moving average's work in an iteration with unlabelled images, and how many times it is due in one."""
    import torch

    from nnunetv2_genseg.config import UnlabelledConfig
    from nnunetv2_genseg.trainers.teacher import Teacher

    network = trainer._plain_network()
    teacher = Teacher(network, trainer.num_epochs * trainer.num_iterations_per_epoch)
    expected = trainer.batch_size * trainer.genseg.mixing.share * UnlabelledConfig().share
    count = max(1, round(expected))
    shape = (count, trainer.num_input_channels, *trainer.configuration_manager.patch_size)
    image = torch.zeros(shape, device=trainer.device)

    def work() -> None:
        teacher(image)
        teacher.update(network)

    return work, expected / count


def counted(stock: Any, genseg: Any, stopwatch: Stopwatch, epoch: int, count: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Operations and bytes of a stock step, and of every part in a GenSeg step relative to them."""
    from operations import Counter, count_steps

    own, counter = Counter(), Counter()
    count_steps(stock, epoch, 1, own)
    base = np.array((own.flops, own.bytes))
    stopwatch.passed.clear()
    stopwatch.read = lambda: np.array((counter.flops, counter.bytes))
    count_steps(genseg, epoch, count, counter)
    shares = {name: (values / count / base).round(4).tolist() for name, values in stopwatch.passed.items()}
    return {"flops": own.flops, "bytes": own.bytes}, {name: dict(zip(("flops", "bytes"), own)) for name, own in shares.items()}


def measured(subject: Subject) -> dict[str, Any]:
    """One plan."""
    clock = clock_of(subject.device)
    stock, genseg = (trainer_of(kind, subject) for kind in KINDS)
    epoch, count = moments(genseg.genseg)[STAGE]
    stopwatch = Stopwatch(clock)
    watch(genseg, stopwatch)
    plain, (teacher, due) = Plain(stock), teacher_of(genseg)

    def seconds(work: Callable[[], None], times: int) -> float:
        started = clock()
        for _ in range(times):
            work()
        return (clock() - started) / times

    stocks, convolutions, ratios = [], [], defaultdict(list)
    for turn in range(subject.turns + 1):
        own = block(stock, epoch, BLOCK // 2 if turn else 1, clock, [])
        stopwatch.passed.clear()
        taken = block(genseg, epoch, count if turn else 1, clock, [])
        convolution, teaching = seconds(plain, 3), due * seconds(teacher, 2)
        if not turn:
            continue  # a warm-up
        base = statistics.fmean(sum(one) for one in own)
        stocks.append(base)
        convolutions.append(convolution)
        passed = {name: value / count for name, value in stopwatch.passed.items()}
        passed[DATA] = statistics.fmean(loading for loading, _ in taken)
        passed["whole iteration"] = statistics.fmean(sum(one) for one in taken)
        passed["teacher, with unlabelled images"] = teaching
        passed["stock: loading and augmentation"] = statistics.fmean(loading for loading, _ in own)
        for name, value in passed.items():
            ratios[name].append(value / base)
    operations, shares = counted(stock, genseg, stopwatch, epoch, count)
    reached = plain_flops(plain) / statistics.median(convolutions)
    return {
        "dataset": subject.number,
        "configuration": subject.configuration,
        "patch_size": [int(extent) for extent in stock.configuration_manager.patch_size],
        "batch_size": int(stock.batch_size),
        "turns": subject.turns,
        "stock_seconds": spread(stocks),
        "stock_flops": operations["flops"],
        "stock_bytes": operations["bytes"],
        "plain_convolution_flops_per_second": round(reached),
        "stock_floor": round(operations["flops"] / reached / statistics.median(stocks), 3),
        "parts": {name: spread(values) | shares.get(name, {}) for name, values in ratios.items()},
    }


def plain_flops(plain: Plain) -> int:
    """Operations of one call."""
    from operations import Counter, counting

    counter = Counter()
    with counting(counter):
        plain()
    return counter.flops


def show(plan: dict[str, Any]) -> None:
    """Prints a plan's parts."""
    print(f"\n{plan['dataset']} {plan['configuration']}: stock {1000 * plan['stock_seconds']['median']:.0f} ms")
    for name, values in plan["parts"].items():
        operations = "".join(f" {what} {values[what]:.3f}" for what in ("flops", "bytes") if what in values)
        print(f"  {name:34} {values['median']:.3f} ({values['least']:.3f} to {values['most']:.3f}){operations}")
    reached = plan["plain_convolution_flops_per_second"] / 1e9
    print(f"  plain convolution {reached:.1f} GFLOP/s; floor of stock {plan['stock_floor']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    place, plans = Place(chosen.raw.resolve(), chosen.work.resolve(), chosen.device), []
    for number, configuration in PLANS:
        cell = Cell(number, BUDGET[number], configuration, "genseg", 0, 0, ())
        prepare(cell, place)
        model = place.work / "models" / f"parts_{number}_{configuration}"
        subject = Subject(str(place.dataset(cell)), number, configuration, chosen.device, str(model), TURNS[configuration])
        plans.append(measured(subject))
        show(plans[-1])
    command = f"python benchmarks/parts.py --raw PATH/TO/nnUNet_raw --work FOLDER --device {chosen.device}"
    content = {"command": command, **provenance(chosen.device), "plans": plans}
    chosen.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
