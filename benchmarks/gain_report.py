"""Figure and table of `gain.py`'s results: Dice, and points over stock nnU-Net seed by seed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cells import BUDGET, COARSE, MINI, POOL, length
from nnunetv2_genseg.generators.networks import MIXED_KERNELS

Result = dict[str, Any]
Setting = tuple[str, int, str, str, int, int]
"""dataset, budget, configuration, scale, iterations, budget of the plans if another"""

STOCK = "stock"
NAMES = {"101": "foot ulcer", "102": "breast ultrasound", "103": "chest X-ray", "104": "hippocampus", "105": "polyp"}
SHOWN = {
    "genseg": "GenSeg (default)",
    "genseg_unlabelled": "with unlabelled images",
    "genseg_unlabelled_montgomery": "with the other hospital's images",
    "genseg_da5": "GenSeg on nnUNetTrainerDA5",
    "genseg_da5_unlabelled": "GenSeg on nnUNetTrainerDA5, with unlabelled images",
    "genseg_da5_random": "GenSeg on nnUNetTrainerDA5 without feedback",
    "genseg_da5_random_without_redraw": "without generator as well",
    "genseg_still": "GenSeg, feedback that moves nothing",
    "genseg_fast": "GenSeg, feedback with a rate of 0.1",
    "genseg_random": "GenSeg without feedback",
    "genseg_random_without_redraw": "without generator",
    "genseg_deformation": "deformation alone",
    "stock_pseudo_labels": "stock, trained again with predictions",
    "stock_mean_teacher": "stock, mean teacher",
    "stock_da5": "nnUNetTrainerDA5",
    "stock_ema": "stock, averaged weights",
    "stock_doubled_batch_and_rate": "stock, batch and learning rate doubled",
}
"""Arms in the order of the tables, and their names there."""
IN_FIGURE = ("genseg", "genseg_unlabelled", "stock_da5", "genseg_da5", "genseg_deformation")
"""Those that the figures show."""
CLOSING = ("genseg", "genseg_unlabelled", "stock_da5", "genseg_da5")
"""Those whose share of the gap to four times as many labels is shown."""
COLOURS = {arm: f"C{i}" for i, arm in enumerate((STOCK, *IN_FIGURE))}
STEPS = {
    "deformation": ("genseg_deformation", STOCK),
    "pasting": ("genseg_random_without_redraw", "genseg_deformation"),
    "generator": ("genseg_random", "genseg_random_without_redraw"),
    "feedback": ("genseg", "genseg_random"),
    "feedback: cases held out": ("genseg_still", "genseg_random"),
    "feedback: moving the generator": ("genseg", "genseg_still"),
    "unlabelled images": ("genseg_unlabelled", "genseg"),
    "deformation, with unlabelled images": ("genseg_unlabelled", "genseg_unlabelled_without_deformation"),
    "pasting, with unlabelled images": ("genseg_unlabelled", "genseg_unlabelled_without_paste"),
    "generator and feedback, with unlabelled images": ("genseg_unlabelled", "genseg_unlabelled_without_redraw"),
    "all synthetic pairs from unlabelled images, instead of half": ("genseg_unlabelled_more", "genseg_unlabelled"),
    "pseudo-labels of confidence 0.95, instead of 0.8": ("genseg_unlabelled_sure", "genseg_unlabelled"),
    "all with unlabelled images, over stock trained again with predictions": ("genseg_unlabelled", "stock_pseudo_labels"),
    "all with unlabelled images, over a mean teacher": ("genseg_unlabelled", "stock_mean_teacher"),
    "choice by training patches": ("genseg_agreeing", "genseg_random"),
    "choice by validation patches": ("genseg_oracle", "genseg_random"),
    "all, over nnUNetTrainerDA5": ("genseg", "stock_da5"),
    "all, added to nnUNetTrainerDA5": ("genseg_da5", "stock_da5"),
    "deformation and pasting, added to nnUNetTrainerDA5": ("genseg_da5_random_without_redraw", "stock_da5"),
    "generator, added to these": ("genseg_da5_random", "genseg_da5_random_without_redraw"),
    "feedback, added to these": ("genseg_da5", "genseg_da5_random"),
    "unlabelled images, added to GenSeg on nnUNetTrainerDA5": ("genseg_da5_unlabelled", "genseg_da5"),
    "unlabelled images of the other hospital": ("genseg_unlabelled_montgomery", "genseg"),
    "all, over averaged weights": ("genseg", "stock_ema"),
}
"""What a part gives: an arm that has it, and the one that it is compared with."""
SHARE = "largest_kernel_share"
MOVED = """
The default's feedback moved the generator little. The largest share of a kernel in any mixture is {start:.3f} at the start.
At the end of {trainings} trainings it was {low:.3f} to {high:.3f}.
"""
BOOTSTRAPS = 5000


def load(folder: Path) -> list[Result]:
    """All results of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def load_gain(folder: Path) -> list[Result]:
    """All results of `gain.py` in a folder, with a Dice for every class of every case.

    nnU-Net gives none where a class is neither in the mask nor predicted. Here it is 1 there. It is 0 where the class is
    predicted but not in the mask.
    """
    results = load(folder)
    for result in results:
        for part in result["parts"].values():
            for classes in part["cases"].values():
                for metrics in classes.values():
                    if metrics["Dice"] is None:
                        metrics["Dice"] = 1.0
            part["dice"] = mean_over_classes(part["cases"])
    return results


def setting_of(result: Result) -> Setting:
    """What two results must have in common to be compared."""
    keys = ("dataset", "budget", "configuration", "scale", "iterations")
    return (*(result[key] for key in keys), result.get("planned_for", 0))


def is_compared(result: Result, budget: int = 0, scale: str = MINI) -> bool:
    """Whether a result is of the comparison at a scale: usual length, and the usual number of labelled cases, or
    another one."""
    dataset = result["dataset"]
    configuration = "3d_fullres" if scale == COARSE else "2d"
    cases = budget or BUDGET.get(dataset, 0)
    return setting_of(result) == (dataset, cases, configuration, scale, length(dataset, configuration, scale), 0)


def case_dice(result: Result, part: str) -> dict[str, float]:
    """Mean foreground Dice of every case."""
    cases = result["parts"][part]["cases"]
    return {case: float(np.mean([metrics["Dice"] for metrics in classes.values()])) for case, classes in cases.items()}


def mean_over_classes(cases: dict[str, dict[str, dict[str, float]]]) -> float:
    """The mean over the classes of their mean Dice."""
    of_classes = defaultdict(list)
    for classes in cases.values():
        for name, metrics in classes.items():
            of_classes[name].append(metrics["Dice"])
    return float(np.mean([np.mean(values) for values in of_classes.values()]))


def on_the_same_cases(results: list[Result], part: str) -> list[Result]:
    """The results that were judged on a part, on the cases of the part that all of them were judged on."""
    judged = [result for result in results if part in result["parts"]]
    common = set.intersection(*(set(result["parts"][part]["cases"]) for result in judged)) if judged else set()
    found = []
    for result in judged:
        cases = {case: classes for case, classes in result["parts"][part]["cases"].items() if case in common}
        found.append(result | {"parts": {part: {"cases": cases, "dice": mean_over_classes(cases)}}})
    return found


def paired_difference(arm: list[Result], rival: list[Result], part: str) -> tuple[float, float, float] | None:
    """Mean difference over the cases, each the mean over the seeds that both have, and its 95 % bootstrap interval.

    Cases that belong together, such as pictures of one sequence, are drawn together.
    """
    by_seed = {result["seed"]: case_dice(result, part) for result in rival}
    differences = defaultdict(list)
    groups: dict[str, str] = {}
    for result in arm:
        groups |= result.get("groups", {})
        for case, dice in case_dice(result, part).items():
            if case in by_seed.get(result["seed"], {}):
                differences[case].append(dice - by_seed[result["seed"]][case])
    if not differences:
        return None
    together = defaultdict(list)
    for case, each in differences.items():
        together[groups.get(case, case)].append(np.mean(each))
    sums, counts = (np.array([measure(values) for values in together.values()]) for measure in (np.sum, len))
    drawn = np.random.default_rng(0).integers(len(sums), size=(BOOTSTRAPS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (2.5, 97.5))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def seed_differences(arm: list[Result], rival: list[Result], part: str) -> dict[int, float]:
    """Mean difference over the cases, by seed, for the seeds that both have."""
    found = {result["seed"]: paired_difference([result], rival, part) for result in arm}
    return {seed: difference[0] for seed, difference in sorted(found.items()) if difference}


def gain_over_seeds(arm: list[Result], rival: list[Result], part: str) -> tuple[float, float, int]:
    """Mean of the seeds' differences, its standard error, and the number of seeds; the error of fewer than two is NaN."""
    values = list(seed_differences(arm, rival, part).values())
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return (float(np.mean(values)) if values else float("nan")), error, len(values)


def by_setting(results: list[Result], part: str) -> dict[Setting, dict[str, list[Result]]]:
    """Results that were judged on a part, by setting and arm, in the order of both."""
    groups: dict[Setting, dict[str, list[Result]]] = defaultdict(dict)
    order = {arm: place for place, arm in enumerate((STOCK, *SHOWN))}
    for result in sorted(results, key=lambda one: (setting_of(one), order.get(one["arm"], len(order)), one["seed"])):
        if part in result["parts"]:
            groups[setting_of(result)].setdefault(result["arm"], []).append(result)
    return groups


def compared(results: list[Result], part: str, budget: int = 0, scale: str = MINI) -> dict[str, dict[str, list[Result]]]:
    """Results of the comparison at a scale by dataset and arm, for datasets that have stock and another arm.

    With another number of labelled cases, datasets are left out whose usual number it is.
    """
    chosen = [one for one in results if is_compared(one, budget, scale) and budget != BUDGET[one["dataset"]]]
    groups = by_setting(chosen, part)
    return {
        f"{NAMES[dataset]}, N = {cases}": arms for (dataset, cases, *_), arms in groups.items() if STOCK in arms and len(arms) > 1
    }


def summary(results: list[Result], part: str, budget: int = 0, scale: str = MINI) -> str:
    """Markdown: points over stock ± standard error over the seeds, a line an arm and a column a dataset of the comparison.

    The mean is left out for an arm that lacks a dataset, and for all if there is one dataset.
    """
    return _over_stock(compared(results, part, budget, scale), part)


def steps(results: list[Result], part: str, budget: int = 0, scale: str = MINI) -> str:
    """The same for what each part of GenSeg gives."""
    return _differences(compared(results, part, budget, scale), part, "part", STEPS)


def longer(results: list[Result], part: str) -> str:
    """Markdown: points over stock for trainings that were longer, beside the usual length with the same seeds and arms.

    Below it what each part gives; empty if there are no such results.
    """
    groups: dict[str, dict[str, list[Result]]] = {}
    settings = by_setting(results, part)
    for (dataset, cases, configuration, scale, iterations, planned_for), arms in settings.items():
        usual = length(dataset, configuration, scale)
        if iterations <= usual or planned_for or STOCK not in arms:
            continue
        seeds = {result["seed"] for result in arms[STOCK]}
        shorter = settings.get((dataset, cases, configuration, scale, usual, 0), {})
        for count, found in ((usual, shorter), (iterations, arms)):
            kept = {arm: [run for run in runs if run["seed"] in seeds] for arm, runs in found.items() if arm in arms}
            groups[f"{NAMES[dataset]}, N = {cases}, {count:,}"] = {arm: runs for arm, runs in kept.items() if runs}
    if not groups:
        return ""
    return _over_stock(groups, part, mean=False) + "\n" + _differences(groups, part, "part", STEPS, mean=False)


def moved(results: list[Result]) -> str:
    """Text: how far feedback moved the kernel mixture in trainings of the comparison; empty without any that tells."""
    shares: list[float] = []
    for result in filter(is_compared, results):
        told = [epoch[SHARE] for epoch in result.get("progress", []) if SHARE in epoch]
        if result["arm"] == "genseg" and told:
            shares.append(told[-1])
    if not shares:
        return ""
    return MOVED.format(trainings=len(shares), low=min(shares), high=max(shares), start=1 / len(MIXED_KERNELS))


def _over_stock(groups: dict[str, dict[str, list[Result]]], part: str, mean: bool = True) -> str:
    return _differences(groups, part, "arm", {name: (arm, STOCK) for arm, name in SHOWN.items()}, mean)


def _differences(
    groups: dict[str, dict[str, list[Result]]], part: str, title: str, rows: dict[str, tuple[str, str]], mean: bool = True
) -> str:
    """Markdown: an arm less a rival, a line each, with or without the mean over several groups; those that no group has are
    left out."""
    mean = mean and len(groups) > 1
    head = [title, *groups, *(["mean"] if mean else [])]
    lines = [head, ["---"] * len(head)]
    for name, (arm, rival) in rows.items():
        both = {dataset: arms for dataset, arms in groups.items() if arm in arms and rival in arms}
        if not both:
            continue
        found = {dataset: gain_over_seeds(arms[arm], arms[rival], part) for dataset, arms in both.items()}
        cells = [points(*found[dataset]) if dataset in found else "" for dataset in groups]
        if mean:
            means, errors, _ = zip(*found.values(), strict=True)
            all_groups = points(float(np.mean(means)), float(np.sqrt(np.square(errors).sum()) / len(errors)))
            cells.append(all_groups if len(found) == len(groups) else "")
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def points(gain: float, error: float, seeds: int = 0) -> str:
    """Text of a gain in Dice points with its standard error; bold where it is at least two of them."""
    text = f"{100 * gain:+.1f}" + ("" if np.isnan(error) else f" ± {100 * error:.1f}")
    text = f"**{text}**" if gain >= 2 * error else text
    return f"{text} ({seeds})" if seeds else text


def table(results: list[Result], part: str) -> str:
    """Markdown: one line a setting and arm."""
    lines = [
        "| dataset | N | plan | scale | iterations | arm | Dice (seeds) | Dice of 0 | points over stock [95 %] "
        "| seed by seed | HD95, mm |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, arms in by_setting(results, part).items():
        stock = arms.get(STOCK, [])
        for name, runs in arms.items():
            found = paired_difference(runs, stock, part) if name != STOCK else None
            lines.append(f"| {_described(setting)} | {name} | {_figures(runs, stock if found else [], found, part)} |")
    return "\n".join(lines) + "\n"


def headroom(results: list[Result], part: str) -> str:
    """Markdown: stock with more labels and the plans of N, and which share of the gap from N to 4N each arm closes.

    The share is left out unless the gap is larger than two standard errors, the mean unless all datasets have a share. A column
    without any value is left out, too.

    Empty as long as no dataset of the comparison has results with more labels.
    """
    rows, shares = [], []
    for dataset, budget in BUDGET.items():
        own = [one for one in results if (one["dataset"], one["scale"]) == (dataset, MINI) and part in one["parts"]]
        of_comparison = list(filter(is_compared, own))
        stock = [result for result in of_comparison if result["arm"] == STOCK]
        more = defaultdict(list)
        for result in own:
            if result["arm"] == STOCK and result.get("planned_for") == budget:
                more[result["budget"]].append(result)
        if not more or not stock:
            continue
        gap, error, _ = gain_over_seeds(more[4 * budget], stock, part)
        gains = [gain_over_seeds([one for one in of_comparison if one["arm"] == arm], stock, part)[0] for arm in CLOSING]
        shares.append([gain / gap if gap > 2 * error else float("nan") for gain in gains])
        with_more = [mean_dice(more[cases], part) for cases in (2 * budget, 4 * budget, POOL)]
        of_gap = "" if np.isnan(gap) else f"{100 * gap:.1f}"
        rows.append([f"{dataset} {NAMES[dataset]}, N = {budget}", mean_dice(stock, part), *with_more, of_gap])
    if not rows:
        return ""
    if len(rows) > 1:
        rows.append(["mean", "", "", "", "", ""])
        shares.append(list(np.mean(shares, axis=0)))
    cells = [row + ["" if np.isnan(share) else f"{100 * share:.0f} %" for share in own] for row, own in zip(rows, shares)]
    head = ["dataset", "N", "2N", "4N", str(POOL), "points from N to 4N", *(f"closed by: {SHOWN[arm]}" for arm in CLOSING)]
    kept = [column for column in zip(head, ["---"] * len(head), *cells) if any(column[2:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*kept))


def of_zero(runs: list[Result], part: str) -> float:
    """Fraction of the cases with a Dice of 0."""
    return float(np.mean([dice == 0 for run in runs for dice in case_dice(run, part).values()]))


def mean_dice(runs: list[Result], part: str) -> str:
    """Text of the mean Dice of some trainings and of their number; empty without any."""
    return f"{np.mean([run['parts'][part]['dice'] for run in runs]):.3f} ({len(runs)})" if runs else ""


def _described(setting: Setting) -> str:
    dataset, budget, configuration, scale, iterations, planned_for = setting
    cases = f"{budget}" + (f", planned as {planned_for}" if planned_for else "")
    return f"{dataset} {NAMES[dataset]} | {cases} | {configuration} | {scale} | {iterations}"


def _figures(runs: list[Result], stock: list[Result], found: tuple[float, float, float] | None, part: str) -> str:
    dice = [run["parts"][part]["dice"] for run in runs]
    spread = f" ± {np.std(dice, ddof=1):.3f}" if len(dice) > 1 else ""
    gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found)) if found else ""
    each = ", ".join(f"{100 * value:+.1f}" for value in seed_differences(runs, stock, part).values())
    surface = [run["parts"][part]["hd95"] for run in runs if run["parts"][part].get("hd95") is not None]
    distance = f"{np.mean(surface):.2f}" if len(surface) == len(runs) else ""
    zero = f"{100 * of_zero(runs, part):.0f} %"
    return f"{np.mean(dice):.3f}{spread} ({len(dice)}) | {zero} | {gain} | {each} | {distance}"


def figure(results: list[Result], part: str, path: Path) -> None:
    """Writes a PNG: points over stock by dataset and arm, a dot a seed and a bar for their mean, and the mean of the datasets.

    An arm that lacks a dataset has no mean, as in `summary`.
    """
    groups = compared(results, part)
    picture = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(picture)
    axis = picture.subplots()
    step = 0.8 / len(IN_FIGURE)
    for i, arm in enumerate(IN_FIGURE):
        gains = {
            dataset: list(seed_differences(arms[arm], arms[STOCK], part).values())
            for dataset, arms in groups.items()
            if arm in arms
        }
        gains = {dataset: values for dataset, values in gains.items() if values}
        offset, colour = step * (i - (len(IN_FIGURE) - 1) / 2), COLOURS[arm]
        for dataset, values in gains.items():
            place = list(groups).index(dataset) + offset
            axis.bar(place, 100 * np.mean(values), width=0.9 * step, color=colour, alpha=0.4)
            axis.plot([place] * len(values), [100 * value for value in values], ".", color=colour)
        if not gains:
            continue
        axis.bar(0, 0, color=colour, label=SHOWN[arm])
        if gains.keys() == groups.keys():
            mean = 100 * np.mean([np.mean(values) for values in gains.values()])
            axis.bar(len(groups) + offset, mean, width=0.9 * step, color=colour)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(groups) + 1), [*(name.replace(", ", "\n", 1) for name in groups), "mean"])
    axis.set_xlim(-0.5, len(groups) + 0.5)
    axis.set_ylabel("Dice points over stock nnU-Net")
    if axis.patches:
        picture.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    picture.savefig(path, dpi=100, metadata={"Software": None})
