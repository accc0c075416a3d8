"""The page docs/explanation/speed.md, out of the results of `speed`, `parts`, `growth`, `feedback` and `startup`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_genseg.hypergradient import RATIO

AIM, AIM_OF_MEMORY, AIM_OF_WAITS, AIM_OF_CLASSES = 1.3, 1.2, 8, 0.2
"""Time and memory relative to stock nnU-Net, host synchronisations beside it, and by how much what is added may grow from 2 to
118 classes."""
ARCHIVED_TRAININGS = {"2d": "2d_600it", "3d_fullres": "3d_fullres_200it"}
ARCHIVED_SPEED = {
    "two_feedback_patches": "pairs in the place of real patches, two patches in a feedback step",
    "one_feedback_patch": "one patch in a feedback step in 3D",
    "three_turns": "now, first measurement, three turns instead of six",
}
HEAD = """# Speed and memory

What GenSeg costs beside stock nnU-Net, what to switch off, where the time goes, and how it grows. With the default settings, an
iteration takes {times} times as long as stock nnU-Net's in 2D and {solid} times in 3D (hippocampus, one CPU thread, mean over a
training). **Nothing on this page was run on a GPU**; `make gpu` times iterations there.

{table}
Time and memory are relative to stock nnU-Net's. A host synchronisation reads a number from a tensor; on a CPU those of tensors
that stay in main memory count, too. {missed}

The [benchmarks](../benchmarks.md#time-and-memory) show every stage of a training.

## What to switch off

{savings}
The time is what these parts take of an iteration with pairs and feedback, in stock iterations. What saves memory:
[train with little memory](../how-to/small-memory.md).

## Before and after

{before}
"""
PARTS = """## Where the time goes

Every part of an iteration with pairs and feedback, in stock iterations: means over a feedback interval, of which {turns} were
measured; median and range. Floating-point operations (of convolutions and matrix products) and bytes (read and written) are
counted, relative to a stock step.

{table}
The benchmarks, run at another time, have {again} for the whole iteration: other work ran beside both. Without GenSeg, loading and
augmentation take {loading}. A training with [images without labels](../how-to/unlabelled.md) has a teacher as well, which takes
{teacher}.
"""
FLOOR = """
## What bounds the rest

The least that the counted operations could take: at the speed of a plain convolution of the patch with the network's first
channels, forward and backward. Times in stock iterations.

{table}
What GenSeg adds takes longer than that. Parts without convolutions (conditions, masks, pasting, deformed images and others) take
{rest}, and its convolutions have fewer channels than the plain one.

"""
FLOOR_HEAD = ("plan", "plain convolution", "least time of stock", "operations added", "least time added", "time added")
GROWTH = """## How it grows

What GenSeg adds to an iteration with pairs and feedback, on phantoms: its time (median and range of {turns} feedback intervals),
that time relative to a stock iteration of the same plan, and its operations. Every patch shows all classes.

"""
FEEDBACK = """## What the feedback's gradient tells

The [feedback](feedback.md) moves the generator's architecture φ so that steps on its pairs lower the loss on held-out cases.
Its gradient is right if it tells what a change of φ does. In the middle of short trainings (one seed) φ was moved in {directions}
random directions, and it was measured how the effect of a step on the same pairs changes, for {batches} batches of pairs.
102 is breast ultrasound, 104 the hippocampus.

{table}
`difference`: of the gradients by the image at two sets of weights, which lie as far from the present ones as is said, relative
to their norm. The package's is {ratio:g}. `exact`: the derivative of the gradient, which the package took before. It holds
nothing of the kinks of nnU-Net's LeakyReLU, and takes more time. The correlation over the batches is that of single
steps, the other one that of their mean over the batches. 1 is a gradient that is always right.

The mean effect of a direction was larger than two standard errors over the batches in {clear}.

"""
START = """
## Before the first iteration

CPU seconds of a process, median of {turns}: stock nnU-Net, and what GenSeg adds.

{table}
The search is nnU-Net's, for a trainer that is not among its own ones. The start goes up to the first batch. In it GenSeg makes
one whole feedback step, which is forgotten: a loss that does not fit, or too little memory, is thus found before the training.

"""
MADE = """## How it was measured

```bash
python benchmarks/speed.py --raw PATH/TO/nnUNet_raw --work FOLDER --turns 6
python benchmarks/parts.py --raw PATH/TO/nnUNet_raw --work FOLDER
python benchmarks/growth.py
python benchmarks/feedback.py --raw PATH/TO/nnUNet_raw --work FOLDER
python benchmarks/startup.py --raw PATH/TO/nnUNet_raw --work FOLDER --turns 3
```

Stock nnU-Net and GenSeg take turns in one process. Times are CPU time of one thread, since other work ran beside. Commands,
commits, versions and machines are in `benchmarks/results`. `tests/integration/test_operations.py` fails if the operations, bytes,
backward passes or host synchronisations of an iteration grow: unlike times, these counts are the same on every machine.
"""
PLANS = ("2d", "3d_fullres")
STAGE, WHOLE = "pairs and feedback", "whole iteration"
NO_CONVOLUTIONS = 0.001
"""Operations relative to stock below which a part counts as one without convolutions."""
TEACHER, STOCK_LOADING = "teacher, with unlabelled images", "stock: loading and augmentation"
FEEDBACK_STEP = "feedback step"
OF_GENERATOR = ("generator step", "discriminator step", "drawing by the generator", "conditions")
GROWS = {"classes": "foreground classes", "patch": "patch", "batch_size": "batch", "cases": "training cases"}
STARTED = {
    "import": ("import", 0.3),
    "search": ("search of the trainer", 0.3),
    "start 2d": ("start, 2d", 5),
    "start 3d_fullres": ("start, 3d_fullres", 5),
}
"""Names of what is done before the first iteration, and how much GenSeg may add."""


def page(results: Path) -> str:
    """Markdown.

    Args:
        results: folder of all results.
    """

    def read(name: str) -> Any:
        return json.loads((results / name).read_text(encoding="utf-8"))

    names = ("speed", "parts", "growth", "feedback", "startup")
    speed, parts, growth, feedback, startup = (read(f"{name}.json") for name in names)
    text = overview(by_plan(speed), savings(by_plan(parts)), before(by_plan(speed), results / "archive"))
    text += where(by_plan(parts), [plan["stage_ratios"][STAGE] for plan in by_plan(speed)])
    text += GROWTH.format(turns=growth["turns"]) + "".join(map(grown, growth["tables"].items()))
    text += told(feedback) + started(startup)
    return text + MADE


def by_plan(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The plans of the hippocampus, 2D and 3D."""
    found = {plan["configuration"]: plan for plan in record["plans"]}
    return [found[name] for name in PLANS]


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def overview(plans: list[dict[str, Any]], saved: str, former: str) -> str:
    """What it costs."""
    times, memory = ([plan[key] for plan in plans] for key in ("iteration_ratio", "memory_ratio"))
    waits, feedback_waits = (
        [plan[key] - plan["stock_host_syncs"] for plan in plans] for key in ("host_syncs", "feedback_host_syncs")
    )
    shown = {
        "time of an iteration": (times, AIM),
        "memory": (memory, AIM_OF_MEMORY),
        "host synchronisations more than stock, without a feedback step": (waits, AIM_OF_WAITS),
        "host synchronisations more than stock, with a feedback step": (feedback_waits, AIM_OF_WAITS),
    }
    rows = [(what, *(f"{value:.3g}" for value in values), f"at most {aim}") for what, (values, aim) in shown.items()]
    rows.append(("what a feedback step adds, in stock iterations", *(f"{plan['feedback_iterations']:.1f}" for plan in plans), ""))
    missed = [
        f"{what} in {plan}"
        for what, (values, aim) in shown.items()
        for plan, value in zip(PLANS, values, strict=True)
        if value > aim
    ]
    told = f"Above the aim: {'; '.join(missed)}." if missed else ""
    flat, solid = (f"{time:.2f}" for time in times)
    return HEAD.format(times=flat, solid=solid, table=table(("", *PLANS, "aim"), rows), missed=told, savings=saved, before=former)


def savings(plans: list[dict[str, Any]]) -> str:
    """What can be switched off, and the time that its parts take."""
    rows = [
        (what, *(f"{sum(plan['parts'][part]['median'] for part in parts):.2f}" for plan in plans), f"`{option}`")
        for what, option, parts in (
            ("feedback", "-tr GenSegTrainerNoFeedback", (FEEDBACK_STEP,)),
            ("generator and feedback", "-tr GenSegTrainerNoGenerator", (FEEDBACK_STEP, *OF_GENERATOR)),
        )
    ]
    return table(("without", *PLANS, "option"), rows)


def before(plans: list[dict[str, Any]], archive: Path) -> str:
    """The time of an iteration relative to stock nnU-Net, of older versions and now."""
    rows = [
        (
            "pairs added to the batch; whole trainings",
            *(archived_ratio(archive / "gain", ARCHIVED_TRAININGS[name]) for name in PLANS),
        )
    ]
    for name, what in ARCHIVED_SPEED.items():
        older = by_plan(json.loads((archive / "speed" / f"{name}.json").read_text(encoding="utf-8")))
        rows.append((what, *(f"{plan['iteration_ratio']:.2f} ({plan['memory_ratio']:.2f})" for plan in older)))
    rows.append(("now", *(f"**{plan['iteration_ratio']:.2f}** ({plan['memory_ratio']:.2f})" for plan in plans)))
    return table(("time relative to stock (memory)", *PLANS), rows)


def archived_ratio(archive: Path, length: str) -> str:
    """Of the CPU time of whole trainings, medians over the seeds."""
    medians = []
    for arm in ("genseg", "stock"):
        found = archive.glob(f"mini_104_N10_{length}_{arm}_s*_test.json")
        medians.append(statistics.median(json.loads(path.read_text(encoding="utf-8"))["cpu_seconds"] for path in found))
    return f"{medians[0] / medians[1]:.2f}"


def where(plans: list[dict[str, Any]], again: list[float]) -> str:
    """The parts of an iteration, and the least that they could take; `again` is what `speed.py` measured for all of them."""
    parts = [plan["parts"] for plan in plans]
    names = [name for name in parts[0] if name not in (WHOLE, TEACHER, STOCK_LOADING)]
    names.sort(key=lambda name: -parts[1][name]["median"])
    rows = [(name, *(cell for own in parts for cell in part_cells(own[name]))) for name in [*names, WHOLE]]
    head = ["part", *(f"{plan} {what}" for plan in PLANS for what in ("time", "operations", "bytes"))]
    loading, teacher = (_both([own[name]["median"] for own in parts]) for name in (STOCK_LOADING, TEACHER))
    turns = " and ".join(str(plan["turns"]) for plan in plans)
    text = PARTS.format(turns=turns, table=table(head, rows), loading=loading, teacher=teacher, again=_both(again))
    floors = []
    for plan, own in zip(plans, parts, strict=True):
        added = sum(part.get("flops", 0.0) for part in own.values()) - 1
        floors.append(
            (
                plan["configuration"],
                f"{plan['plain_convolution_flops_per_second'] / 1e9:.0f} GFLOP/s",
                f"{plan['stock_floor']:.2f}",
                f"{added:.2f}",
                f"{added * plan['stock_floor']:.2f}",
                f"{own[WHOLE]['median'] - 1:.2f}",
            )
        )
    few = [sum(part["median"] for part in own.values() if part.get("flops", 1.0) < NO_CONVOLUTIONS) for own in parts]
    return text + FLOOR.format(table=table(FLOOR_HEAD, floors), rest=_both(few))


def _both(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)


def part_cells(part: dict[str, Any]) -> tuple[str, str, str]:
    """Time with its spread, operations and bytes."""
    time = f"{part['median']:.3f} ({part['least']:.3f} to {part['most']:.3f})"
    return time, f"{part['flops']:.3f}" if "flops" in part else "", f"{part['bytes']:.3f}" if "bytes" in part else ""


def grown(named: tuple[str, list[dict[str, Any]]]) -> str:
    """A table of `growth.py`, and of the classes what becomes of the aim."""
    name, cases = named
    key = "batch_size" if name == "batch" else name
    rows = []
    for case in cases:
        added = case["added_seconds"]
        rows.append(
            (
                case["configuration"],
                " × ".join(map(str, case[key])) if key == "patch" else case[key],
                f"{1000 * case['stock_seconds']['median']:.0f}",
                f"{1000 * added['median']:.0f} ({1000 * added['least']:.0f} to {1000 * added['most']:.0f})",
                f"{case['added_ratio']:.2f}",
                f"{case['flops']['added'] / 1e9:.2f}",
                f"{case['bytes']['added'] / 1e9:.2f}",
            )
        )
    text = table(("plan", GROWS[key], "stock, ms", "added, ms", "ratio", "GFLOP added", "GB added"), rows)
    return text + (of_classes(cases) if name == "classes" else "") + "\n"


def of_classes(cases: list[dict[str, Any]]) -> str:
    """By how much what is added grows from the fewest to the most classes."""
    said = []
    for plan in PLANS:
        own = [case for case in cases if case["configuration"] == plan]
        time = own[-1]["added_seconds"]["median"] / own[0]["added_seconds"]["median"] - 1
        count = own[-1]["flops"]["added"] / own[0]["flops"]["added"] - 1
        said.append(f"in {plan} {100 * time:+.0f} % of the time and {100 * count:+.0f} % of the operations")
    return f"\nFrom 2 to 118 classes: {'; '.join(said)}. The aim is at most {100 * AIM_OF_CLASSES:.0f} %.\n"


def told(record: dict[str, Any]) -> str:
    """What the feedback's gradient tells."""
    plans: dict[str, dict[str, Any]] = record["plans"]
    sizes = list(next(iter(plans.values()))["slopes"])
    rows = [
        (plan, way, f"{found['seconds']:.2f}", *(f"{found[size][over]:.2f}" for size in sizes for over in ("each", "mean")))
        for plan, figures in plans.items()
        for way, found in figures["told"].items()
    ]
    measures = (f"{over}, φ moved by {size}" for size in sizes for over in ("over the batches", "of the means"))
    clear = []
    for plan, figures in plans.items():
        slopes, errors = figures["slopes"][sizes[-1]], figures["standard_errors"][sizes[-1]]
        count = sum(abs(slope) > 2 * error for slope, error in zip(slopes, errors, strict=True))
        clear.append(f"{count} of {len(slopes)} ({plan})")
    given = {"directions": record["directions"], "batches": record["batches"], "ratio": RATIO, "clear": ", ".join(clear)}
    return FEEDBACK.format(table=table(("plan", "gradient", "seconds", *measures), rows), **given)


def started(record: dict[str, Any]) -> str:
    """What is added before the first iteration."""
    rows = [
        (what, f"{record[name]['stock']['median']:.1f}", f"{record[name]['added']:.1f}", f"at most {aim}")
        for name, (what, aim) in STARTED.items()
    ]
    return START.format(turns=record["turns"], table=table(("", "stock", "added", "aim"), rows))
