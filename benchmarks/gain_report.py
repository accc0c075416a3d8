"""Tables of `gain.py`'s results: mean and spread over seeds, paired difference to stock with a bootstrap interval."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from cells import BUDGET, length

Result = dict[str, Any]
Setting = tuple[str, int, str, str, int]
"""dataset, budget, configuration, scale, iterations"""

NAMES = {"101": "foot ulcer", "102": "breast ultrasound", "103": "chest X-ray", "104": "hippocampus"}
BOOTSTRAPS = 5000


def load(folder: Path) -> list[Result]:
    """All results of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def setting_of(result: Result) -> Setting:
    """What two results must have in common to be compared."""
    return (result["dataset"], result["budget"], result["configuration"], result["scale"], result["iterations"])


def usual(results: list[Result], longer: int = 1) -> list[Result]:
    """Those of the budget that `gain.py` gives their dataset unless a grid says otherwise, `longer` times as long as usual."""
    return [one for one in of_length(results, longer) if one["budget"] == BUDGET[one["dataset"]]]


def of_length(results: list[Result], longer: int = 1) -> list[Result]:
    """Those `longer` times as long as usual, whatever their budget."""
    return [one for one in results if one["iterations"] == longer * length(one["dataset"], one["configuration"], one["scale"])]


def described(setting: Setting) -> str:
    """The columns dataset, N, plan and iterations of a table's line."""
    dataset, budget, configuration, _, iterations = setting
    return f"{dataset} {NAMES[dataset]} | {budget} | {configuration} | {iterations}"


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


def table(results: list[Result], part: str, rival: str = "stock") -> str:
    """Markdown: one line a setting and arm."""
    settings: dict[Setting, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if part in result["parts"]:
            settings[setting_of(result)][result["arm"]].append(result)
    lines = [
        "| dataset | N | plan | iterations | arm | seeds | Dice | difference to stock [95 %] | HD95, mm | CPU time / stock |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for setting, arms in sorted(settings.items()):
        stock = arms.get(rival, [])
        for name, runs in sorted(arms.items(), key=lambda item: item[0] != rival):
            dice = [run["parts"][part]["dice"] for run in runs]
            spread = f" ± {np.std(dice, ddof=1):.3f}" if len(dice) > 1 else ""
            found = paired_difference(runs, stock, part) if name != rival else None
            difference = f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]" if found else ""
            surface = [run["parts"][part]["hd95"] for run in runs if run["parts"][part].get("hd95") is not None]
            distance = f"{np.mean(surface):.2f}" if len(surface) == len(runs) else ""
            alone = {run["seed"]: run["cpu_seconds"] for run in stock}
            times = [run["cpu_seconds"] / alone[run["seed"]] for run in runs if run["seed"] in alone]
            ratio = f"{np.mean(times):.1f}" if times else ""
            figures = f"{np.mean(dice):.3f}{spread} | {difference} | {distance} | {ratio}"
            lines.append(f"| {described(setting)} | {name} | {len(runs)} | {figures} |")
    return "\n".join(lines) + "\n"


def contrasts(results: list[Result], part: str, pairs: list[tuple[str, str]]) -> str:
    """Markdown: paired differences between arms, a line a pair and setting."""
    lines = [
        "| arm | against | dataset | N | plan | iterations | seeds | difference [95 %] | seed by seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    there = [result for result in results if part in result["parts"]]
    for arm, rival in pairs:
        for setting in sorted({setting_of(result) for result in there}):
            ours, theirs = (
                [result for result in there if setting_of(result) == setting and result["arm"] == name] for name in (arm, rival)
            )
            found = paired_difference(ours, theirs, part)
            if found:
                each = [alone[0] for one in ours if (alone := paired_difference([one], theirs, part))]
                figures = f"{len(each)} | {found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"
                seeds = ", ".join(f"{difference:+.3f}" for difference in each)
                lines.append(f"| {arm} | {rival} | {described(setting)} | {figures} | {seeds} |")
    return "\n".join(lines) + "\n"


def mean_gains(results: list[Result], part: str, rival: str = "stock") -> str:
    """Markdown: every arm's mean difference to stock over the datasets on which both were run at equal settings, those of most
    datasets first."""
    gains: dict[str, dict[str, float]] = defaultdict(dict)
    there = [result for result in results if part in result["parts"]]
    for setting in {setting_of(result) for result in there}:
        here = [result for result in there if setting_of(result) == setting]
        stock = [result for result in here if result["arm"] == rival]
        for arm in {result["arm"] for result in here} - {rival}:
            found = paired_difference([result for result in here if result["arm"] == arm], stock, part)
            if found:
                gains[arm][f"{setting[0]} N={setting[1]} {setting[4]} it"] = found[0]
    lines = ["| arm | mean difference to stock | of | on |", "| --- | --- | --- | --- |"]
    for arm, values in sorted(gains.items(), key=lambda item: (-len(item[1]), -float(np.mean(list(item[1].values()))))):
        each = ", ".join(f"{where}: {value:+.3f}" for where, value in sorted(values.items()))
        lines.append(f"| {arm} | {np.mean(list(values.values())):+.3f} | {len(values)} | {each} |")
    return "\n".join(lines) + "\n"


def budgets(results: list[Result], part: str, arms: tuple[str, ...]) -> str:
    """Markdown: Dice over label budgets, of the first seed, 2D, at the usual length; only datasets with several budgets."""
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for one in of_length(results):
        if one["configuration"] == "2d" and one["seed"] == 0 and one["arm"] in arms and part in one["parts"]:
            found[one["dataset"], one["arm"]][one["budget"]] = one["parts"][part]["dice"]
    several = {dataset for (dataset, _), dice in found.items() if len(dice) > 1}
    columns = sorted({budget for (dataset, _), dice in found.items() if dataset in several for budget in dice})
    lines = ["| dataset | arm | " + " | ".join(f"N = {budget}" for budget in columns) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(columns))
    for (dataset, arm), dice in sorted(found.items(), key=lambda item: (item[0][0], arms.index(item[0][1]))):
        if dataset in several:
            values = " | ".join(f"{dice[budget]:.3f}" if budget in dice else "" for budget in columns)
            lines.append(f"| {dataset} {NAMES[dataset]} | {arm} | {values} |")
    return "\n".join(lines) + "\n"


def moved(results: list[Result]) -> str:
    """Markdown: what the feedback had moved at the end of the trainings that say so, a line a training on whatever part it was
    judged; 1 and 1 / 3 is where it starts."""
    rows = set()
    for one in filter(lambda one: one.get("chosen"), results):
        values = ", ".join(f"{name} {value:.3f}" for name, value in one["chosen"].items())
        rows.add((one["arm"], described(setting_of(one)), one["seed"], values))
    lines = ["| arm | dataset | N | plan | iterations | seed | what it moved |", "| --- | --- | --- | --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in sorted(rows)]
    return "\n".join(lines) + "\n"
