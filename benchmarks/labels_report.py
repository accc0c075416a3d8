"""Table and figure of Dice by the number of labelled cases, of `gain.py`'s results."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cells import BUDGET
from gain_report import COLOURS, NAMES, SHOWN, STOCK, Result, gain_over_seeds, is_compared, mean_dice, points

ARMS = {STOCK: "stock nnU-Net", **{arm: SHOWN[arm] for arm in ("genseg", "genseg_unlabelled", "stock_da5", "genseg_da5")}}
"""What is shown, and its name."""
Curves = dict[str, dict[str, dict[int, list[Result]]]]
"""Results by dataset, arm and number of labelled cases."""


def curves(results: list[Result], part: str) -> Curves:
    """Results at 64 pixels and of the comparison's length, with any number of labelled cases; of datasets with GenSeg at two.

    More labelled cases than the comparison has are those with its plans, fewer have plans of their own.
    """
    found: Curves = defaultdict(lambda: {arm: defaultdict(list) for arm in ARMS})
    for result in results:
        dataset, budget, usual = result["dataset"], result["budget"], BUDGET[result["dataset"]]
        planned_for = usual if budget > usual else 0
        alike = is_compared(result | {"planned_for": 0}, budget)
        if alike and result["arm"] in ARMS and part in result["parts"] and result.get("planned_for", 0) == planned_for:
            found[dataset][result["arm"]][budget].append(result)
    return {dataset: arms for dataset, arms in sorted(found.items()) if len(arms["genseg"]) > 1}


def equal_cases(stock: dict[int, list[Result]], dice: float, part: str) -> float:
    """Number of labelled cases with which stock nnU-Net has this Dice, on a line between the measured ones over the logarithm.

    Args:
        stock: results by number of labelled cases.
        dice: in [0, 1].
        part: what the results are judged on.

    Returns:
        The number; NaN if no two measured ones enclose the Dice.
    """
    budgets = sorted(stock)
    means = [_dice(stock[budget], part) for budget in budgets]
    for (low, below), (high, above) in zip(zip(budgets, means), zip(budgets[1:], means[1:]), strict=False):
        if below <= dice <= above:
            return float(np.exp(np.interp(dice, [below, above], np.log([low, high]))))
    return float("nan")


def labels_table(results: list[Result], part: str) -> str:
    """Markdown: a line a dataset and number of labelled cases; empty if there are no such results."""
    rows = []
    for dataset, arms in curves(results, part).items():
        for budget, stock in sorted(arms[STOCK].items()):
            cells = [f"{dataset} {NAMES[dataset]}", f"{budget}", mean_dice(stock, part)]
            for arm in list(ARMS)[1:]:
                runs = arms[arm].get(budget, [])
                cells.append(points(*gain_over_seeds(runs, stock, part)) if runs else "")
            ours = [run for run in arms["genseg"].get(budget, []) if run["seed"] in {one["seed"] for one in stock}]
            equal = equal_cases(arms[STOCK], _dice(ours, part), part) if ours else float("nan")
            rows.append([*cells, "" if np.isnan(equal) else f"{equal:.0f}"])
    head = ["dataset", "labelled cases", *ARMS.values(), "cases that stock nnU-Net needs for the default's Dice"]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows)) if rows else ""


def labels_figure(results: list[Result], part: str, path: Path) -> None:
    """Writes a PNG: Dice by number of labelled cases, a panel a dataset; dots are trainings, lines go through their mean."""
    found = curves(results, part)
    picture = Figure(figsize=(2 + 4 * max(1, len(found)), 3.4), layout="constrained")
    FigureCanvasAgg(picture)
    for axis, (dataset, arms) in zip(np.atleast_1d(picture.subplots(1, max(1, len(found)))), found.items(), strict=False):
        for arm, name in ARMS.items():
            budgets = sorted(arms[arm])
            axis.plot(budgets, [_dice(arms[arm][budget], part) for budget in budgets], color=COLOURS[arm], label=name)
            for budget in budgets:
                dice = [run["parts"][part]["dice"] for run in arms[arm][budget]]
                axis.plot([budget] * len(dice), dice, ".", color=COLOURS[arm])
        axis.set_title(NAMES[dataset])
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sorted(arms[STOCK]), [str(budget) for budget in sorted(arms[STOCK])])
        axis.set_xlabel("labelled cases")
        axis.set_ylabel("Dice")
    if found:
        picture.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    picture.savefig(path, dpi=100, metadata={"Software": None})


def _dice(runs: list[Result], part: str) -> float:
    return float(np.mean([run["parts"][part]["dice"] for run in runs]))
