"""Figure and table of `gain.py`'s results: Dice, and points over stock nnU-Net seed by seed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from cells import BUDGET, length
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Result = dict[str, Any]
Setting = tuple[str, int, str, str, int]
"""dataset, budget, configuration, scale, iterations"""

STOCK = "stock"
NAMES = {"101": "foot ulcer", "102": "breast ultrasound", "103": "chest X-ray", "104": "hippocampus"}
SHOWN = {
    "genseg": "GenSeg (default)",
    "genseg_deformation": "deformation alone",
    "genseg_random": "GenSeg without feedback",
    "stock_doubled_batch_and_rate": "stock, batch and learning rate doubled",
}
"""Arms in the order of the figure's legend, and their names there."""
BOOTSTRAPS = 5000


def load(folder: Path) -> list[Result]:
    """All results of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def setting_of(result: Result) -> Setting:
    """What two results must have in common to be compared."""
    return (result["dataset"], result["budget"], result["configuration"], result["scale"], result["iterations"])


def is_compared(result: Result) -> bool:
    """Whether a result is of the comparison that the figure shows: 2D images at the scale `mini`, usual budget and length."""
    dataset, budget, configuration, scale, iterations = setting_of(result)
    usual = BUDGET.get(dataset), length(dataset, configuration, scale)
    return (configuration, scale) == ("2d", "mini") and (budget, iterations) == usual


def case_dice(result: Result, part: str) -> dict[str, float]:
    """Mean foreground Dice of every case; classes that are neither there nor predicted are left out."""
    means = {}
    for case, classes in result["parts"][part]["cases"].items():
        values = [metrics["Dice"] for metrics in classes.values() if metrics["Dice"] is not None]
        if values:
            means[case] = float(np.mean(values))
    return means


def paired_difference(arm: list[Result], rival: list[Result], part: str) -> tuple[float, float, float] | None:
    """Mean difference over the cases, each the mean over the seeds that both have, and its 95 % bootstrap interval."""
    by_seed = {result["seed"]: case_dice(result, part) for result in rival}
    differences = defaultdict(list)
    for result in arm:
        for case, dice in case_dice(result, part).items():
            if case in by_seed.get(result["seed"], {}):
                differences[case].append(dice - by_seed[result["seed"]][case])
    if not differences:
        return None
    values = np.array([np.mean(each) for each in differences.values()])
    drawn = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAPS, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def seed_differences(arm: list[Result], rival: list[Result], part: str) -> dict[int, float]:
    """Mean difference over the cases, by seed, for the seeds that both have."""
    found = {result["seed"]: paired_difference([result], rival, part) for result in arm}
    return {seed: difference[0] for seed, difference in sorted(found.items()) if difference}


def by_setting(results: list[Result], part: str) -> dict[Setting, dict[str, list[Result]]]:
    """Results that were judged on a part, by setting and arm, in the order of both."""
    groups: dict[Setting, dict[str, list[Result]]] = defaultdict(dict)
    order = {arm: place for place, arm in enumerate((STOCK, *SHOWN))}
    for result in sorted(results, key=lambda one: (setting_of(one), order.get(one["arm"], len(order)), one["seed"])):
        if part in result["parts"]:
            groups[setting_of(result)].setdefault(result["arm"], []).append(result)
    return groups


def table(results: list[Result], part: str) -> str:
    """Markdown: one line a setting and arm; below them an arm's mean over the datasets of the comparison that it was run on."""
    lines = [
        "| dataset | N | plan | scale | iterations | arm | Dice (seeds) | points over stock [95 %] | seed by seed | HD95, mm |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    gains: dict[str, list[float]] = defaultdict(list)
    for setting, arms in by_setting(results, part).items():
        stock = arms.get(STOCK, [])
        for name, runs in arms.items():
            found = paired_difference(runs, stock, part) if name != STOCK else None
            if found and all(map(is_compared, runs)):
                gains[name].append(found[0])
            lines.append(f"| {_described(setting)} | {name} | {_figures(runs, stock if found else [], found, part)} |")
    for name, values in gains.items():
        cells = (f"mean of {len(values)}", *[""] * 4, name, "", f"{100 * np.mean(values):+.1f}", "", "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _described(setting: Setting) -> str:
    dataset, budget, configuration, scale, iterations = setting
    return f"{dataset} {NAMES[dataset]} | {budget} | {configuration} | {scale} | {iterations}"


def _figures(runs: list[Result], stock: list[Result], found: tuple[float, float, float] | None, part: str) -> str:
    dice = [run["parts"][part]["dice"] for run in runs]
    spread = f" ± {np.std(dice, ddof=1):.3f}" if len(dice) > 1 else ""
    gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in found)) if found else ""
    each = ", ".join(f"{100 * value:+.1f}" for value in seed_differences(runs, stock, part).values())
    surface = [run["parts"][part]["hd95"] for run in runs if run["parts"][part].get("hd95") is not None]
    distance = f"{np.mean(surface):.2f}" if len(surface) == len(runs) else ""
    return f"{np.mean(dice):.3f}{spread} ({len(dice)}) | {gain} | {each} | {distance}"


def figure(results: list[Result], part: str, path: Path) -> None:
    """Writes a PNG: points over stock by dataset and arm, a dot a seed and a bar for their mean, and the mean of the datasets."""
    groups = {setting[0]: arms for setting, arms in by_setting(list(filter(is_compared, results)), part).items()}
    picture = Figure(figsize=(8, 3.6), layout="constrained")
    FigureCanvasAgg(picture)
    axis = picture.subplots()
    for i, (arm, label) in enumerate(SHOWN.items()):
        gains = {
            dataset: list(seed_differences(arms[arm], arms.get(STOCK, []), part).values())
            for dataset, arms in groups.items()
            if arm in arms
        }
        gains = {dataset: values for dataset, values in gains.items() if values}
        offset, colour = 0.2 * (i - (len(SHOWN) - 1) / 2), f"C{i}"
        for dataset, values in gains.items():
            place = list(groups).index(dataset) + offset
            axis.bar(place, 100 * np.mean(values), width=0.18, color=colour, alpha=0.4)
            axis.plot([place] * len(values), [100 * value for value in values], ".", color=colour)
        if gains:
            place = len(groups) + offset
            mean = 100 * np.mean([np.mean(values) for values in gains.values()])
            axis.bar(place, mean, width=0.18, color=colour, label=f"{label} ({len(gains)} datasets)")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(groups) + 1), [*(f"{NAMES[dataset]}\nN = {BUDGET[dataset]}" for dataset in groups), "mean"])
    axis.set_xlim(-0.5, len(groups) + 0.5)
    axis.set_ylabel("Dice points over stock nnU-Net")
    if axis.patches:
        axis.legend(fontsize=8)
    picture.savefig(path, dpi=100, metadata={"Software": None})
