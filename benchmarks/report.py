"""Writes docs/benchmarks.md, generators.md and explanation/speed.md from benchmarks/results/: `python benchmarks/report.py`."""

from __future__ import annotations

import json
from pathlib import Path

from cells import ARMS, COARSE, MONTGOMERY, SMALL
from defaults_report import defaults
from gain_report import (
    SHOWN,
    Result,
    compared,
    figure,
    headroom,
    load,
    load_gain,
    longer,
    moved,
    on_the_same_cases,
    steps,
    summary,
    table,
)
from generators_report import merged
from generators_report import page as generators_page
from labels_report import labels_figure, labels_table
from pair_values_report import pair_values
from pairs_report import pairs
from speed_page import page as speed_page
from speed_report import speed

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "images"
HEAD = """# Benchmarks

You see how many Dice points GenSeg gains over stock nnU-Net, what it costs, and what each default rests on.

![Dice points over stock nnU-Net](images/gain.png)

*Dice points over stock nnU-Net with equal cases, plans and iterations. Dots: trainings that differ by their seed alone. Bars:
their mean. The table has more arms.*

{summary}
Points over stock ± standard error over the seeds (their number). Bold: above 0 by at least two standard errors. By chance alone
this happens in 1 of 11 comparisons with three seeds, and in 1 of 7 with two. The N cases are the same in all seeds. Dice is
nnU-Net's own, on the test part, without test-time mirroring. Some foot ulcer images have no ulcer. Such an image counts 1 if
nothing is predicted, and 0 if an ulcer is predicted; nnU-Net's own mean leaves the first out. 2D images are resampled to a longer
side of 64 pixels. Every training has the first N cases by rank and the plans that nnU-Net makes of them; GenSeg's held-out cases
belong to the same N.

| arm | in the tables above | trainer | batch | settings that are not the defaults |
| --- | --- | --- | --- | --- |
{arms}
The files under `benchmarks/results/` hold the command, seed, versions, machine, the figures of every case and, but for some of
stock nnU-Net, the commit. The page is made of them; do not edit it. The data are real and are not part of this repository.

```bash
python benchmarks/gain.py --raw PATH/TO/nnUNet_raw --work FOLDER long                 # CPU; goes on where it was interrupted
python benchmarks/gain.py --raw PATH/TO/nnUNet_raw --work FOLDER full --device cuda   # GPU, full resolution
python benchmarks/report.py
```

## Every comparison

The interval is a bootstrap over the test cases, or their sequences where there are some; **it does not hold the spread between
trainings**, which the seeds show. Dice of 0: the share of such test cases. Scales: `mini`, 64 pixels; `small`, 128 pixels;
`coarse`, every second voxel of volumes and labels along each axis.

{table}
Results of older code are in [benchmarks/results/archive](../benchmarks/results/archive/README.md).
"""
LABELS = """
## Fewer labelled cases

![Dice by the number of labelled cases](images/labels.png)

*Dice by the number of labelled cases, at 64 pixels. Dots: trainings that differ by their seed alone. Lines: their mean.*

Points over stock nnU-Net with the same cases ± standard error over the seeds (their number). More labelled cases than in the
tables above are trained with the batch, patch and network of those. The cases that stock nnU-Net needs are read off its line
in the figure.

"""
STEPS = """
## What each part gives

Points between an arm with the part and one without it, ± standard error over the seeds that both have (their number).
Deformation is compared with stock nnU-Net. *Feedback: cases held out* is the default whose feedback moves nothing, compared with
the default without feedback. *All, over* something: the default, compared with it. *All, added to* something: it with GenSeg,
compared with it alone. nnUNetTrainerDA5 is nnU-Net's own trainer with stronger augmentation.

"""
FEWER = """
With {cases} labelled cases:

"""
LARGER = """
## Larger images

Points over stock nnU-Net at a longer side of 128 pixels instead of 64, ± standard error over the seeds (their number). Below:
points between arms, as in [what each part gives](#what-each-part-gives).

"""
VOLUMES = """
## In 3D

Points over stock nnU-Net of `3d_fullres` on every second voxel along each axis, 1,600 iterations, ± standard error over the seeds
(their number). Below: points between arms, as in [what each part gives](#what-each-part-gives).

"""
LONGER = """
## Longer trainings

Points over stock nnU-Net of the same number of iterations ± standard error over the seeds (their number), beside the usual number
with the same seeds. Below: points between arms, as in [what each part gives](#what-each-part-gives).

"""
HEADROOM = """
## Headroom

Stock nnU-Net with more labels, and the batch, patch and network that are planned for N: nnU-Net plans larger batches for more
cases, which gains by itself.

"""
ELSEWHERE = """
## Chest X-ray, the other hospital

Trained in Shenzhen, tested on {cases} cases of Montgomery: those that every arm was judged on. `genseg_unlabelled_montgomery`
is given the other images of that hospital, without labels.

"""
SCREENING = """
## Screening

Trained with 10 labelled cases and 30 others without their labels, judged by 60 training cases that these trainings do not see.
Settings are chosen by such cases, never by the test part.

"""
PATH = """
## Training at full resolution, killed and resumed

One training an arm, far shorter than nnU-Net's default of 250,000 iterations: **it shows that the path works, not which arm is
better**. GenSeg's trainings were killed after their first checkpoint and resumed with `--c`.

| dataset | N | configuration | iterations | arm | test cases | Dice | seconds |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Command: `python benchmarks/real_data.py --raw PATH/TO/nnUNet_raw --work FOLDER`.
"""


def arm_lines(results: list[Result]) -> str:
    """Markdown: one line an arm that has results."""
    lines = []
    measured = {result["arm"] for result in results}
    for name, arm in ((name, arm) for name, arm in ARMS.items() if name in measured):
        special = "averaged weights" if arm.averaged else arm.rival.replace("_", " ")
        special = f"pairs chosen by {arm.chosen_by} patches" if arm.chosen_by else special
        trainer = arm.trainer.replace("Short", "") + (f" ({special})" if special else "")
        if arm.unlabelled:
            trainer += ", with unlabelled images" + (" of the other hospital" if arm.unlabelled == MONTGOMERY else "")
        settings = f"`{json.dumps(arm.settings)}`" if arm.settings else ""
        batch = f"× {arm.batch_factor}" + (f", learning rate × {arm.rate_factor}" if arm.rate_factor != 1 else "")
        lines.append(f"| {name} | {SHOWN.get(name, '')} | {trainer} | {batch} | {settings} |\n")
    return "".join(lines)


def path_row(result: Result) -> str:
    """One line of the table of trainings at full resolution."""
    keys = ("dataset", "budget", "configuration", "iterations", "arm", "test_cases")
    cells = (*(result[key] for key in keys), f"{result['dice']:.3f}", f"{result['training_seconds_with_validation']:.0f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def benchmarks_page(results: Path) -> str:
    """The page docs/benchmarks.md.

    Args:
        results: folder of all results; what is not there is left out of the page.
    """
    final, screened = load_gain(results / "gain"), load_gain(results / "gain" / "screening")
    page = HEAD.format(summary=summary(final, "test"), table=table(final, "test"), arms=arm_lines(final))
    page += STEPS + steps(final, "test") + moved(final)
    for cases in (5, 10):
        if compared(final, "test", cases):
            page += FEWER.format(cases=cases) + summary(final, "test", cases) + "\n" + steps(final, "test", cases)
    fewer = labels_table(final, "test")
    if fewer:
        page += LABELS + fewer
    for scale, title in ((SMALL, LARGER), (COARSE, VOLUMES)):
        if compared(final, "test", scale=scale):
            page += title + summary(final, "test", scale=scale) + "\n" + steps(final, "test", scale=scale)
    of_more_iterations = longer(final, "test")
    if of_more_iterations:
        page += LONGER + of_more_iterations
    more_labels = headroom(final, "test")
    if more_labels:
        page += HEADROOM + more_labels
    elsewhere = on_the_same_cases(final, MONTGOMERY)
    if elsewhere:
        page += ELSEWHERE.format(cases=len(elsewhere[0]["parts"][MONTGOMERY]["cases"]))
        page += "\n".join(made(elsewhere, MONTGOMERY) for made in (summary, steps, table))
    if (results / "speed.json").is_file():
        page += speed(json.loads((results / "speed.json").read_text(encoding="utf-8")))
    if (results / "pairs.json").is_file():
        page += pairs(json.loads((results / "pairs.json").read_text(encoding="utf-8")))
    valued = load(results / "pair_values")
    if valued:
        page += pair_values(valued)
    if screened:
        page += SCREENING + "\n".join((steps(screened, "validation", 10), table(screened, "validation")))
    page += defaults()
    real = load(results / "real_data")
    if real:
        page += PATH.format(rows="\n".join(map(path_row, real)))
    return page


def pages(results: Path) -> dict[str, str]:
    """All pages by their file name in docs/; one without results is left out."""
    found = {"benchmarks.md": benchmarks_page(results), "explanation/speed.md": speed_page(results)}
    families = merged(load(results / "generators" / "quality"), load(results / "generators" / "costs"))
    if families:
        found["generators.md"] = generators_page(families)
    return found


def main() -> None:
    """Reads all results, writes the pages and the figure."""
    for name, text in pages(RESULTS).items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")
    gains = load_gain(RESULTS / "gain")
    figure(gains, "test", PICTURES / "gain.png")
    labels_figure(gains, "test", PICTURES / "labels.png")


if __name__ == "__main__":
    main()
