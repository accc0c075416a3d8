"""The section on the values of pairs out of `pair_values.py`'s results."""

from __future__ import annotations

from typing import Any

import numpy as np

from gain_report import NAMES

REAL = "real"
"""The kind of a real patch; all others are synthetic."""
VALUES = ("loss", "hard", "agreement_heldout", "agreement_training", "agreement_validation", "random")
DRAWS = 2000
BOOTSTRAPS = 1000
HEAD = """
## Which pairs are worth training on

```bash
python benchmarks/pair_values.py --raw PATH/TO/nnUNet_raw --work FOLDER --dataset 102
```

The **true value** of a pair: by how much one SGD step on it alone lowers the loss on half of the validation part's cases, in the
middle of a training. Can a training know it? Each value below is compared with it, over all synthetic pairs:

- `loss`: the segmentation network's loss on the pair; `hard`: that less the loss of the averaged weights.
- `agreement_heldout`: product of the pair's gradient with that of two patches of the other half's cases, as a feedback step has
  them. `agreement_training`: with that of 32 real training patches. `agreement_validation`: with that of the cases that the true
  value is measured on, the most that an agreement could tell.

**Rank correlation**: Spearman's, with its 95 % bootstrap interval. **Within kinds**: the same without the kinds' means. **Best
of four**: what choosing the best of four pairs by the value gains over taking any, as a share of what choosing by the true value
gains. **With foreground**: rank correlation with the fraction of foreground.

The second table has the means of the kinds ± standard error, in standard deviations of all pairs.
"""


def rank_correlation(first: Any, second: Any) -> dict[str, float]:
    """Spearman's, with its 95 % bootstrap interval."""
    from scipy.stats import spearmanr

    first, second = np.asarray(first), np.asarray(second)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(first), size=len(first)) for _ in range(BOOTSTRAPS)]
    low, high = np.nanpercentile([spearmanr(first[index], second[index])[0] for index in drawn], (2.5, 97.5))
    return {"rank_correlation": float(spearmanr(first, second)[0]), "low": float(low), "high": float(high)}


def centred_by(kinds: list[str], values: list[float]) -> Any:
    """Values less the mean of their kind."""
    array, names = np.asarray(values), np.asarray(kinds)
    return array - np.array([array[names == name].mean() for name in names])


def best_of_4(values: Any, true: Any) -> float:
    """What choosing the best of four gains in the mean, as a share of what the true value would gain."""
    values, true = np.asarray(values), np.asarray(true)
    rng = np.random.default_rng(0)
    fours = np.stack([rng.choice(len(true), 4, replace=False) for _ in range(DRAWS)])
    chosen = true[fours[np.arange(DRAWS), values[fours].argmax(axis=1)]].mean()
    return float((chosen - true.mean()) / (true[fours].max(axis=1).mean() - true.mean()))


def compared(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What each value tells of the true one, over all synthetic candidates."""
    synthetic = [candidate for candidate in found if candidate["kind"] != REAL]
    true, kinds, foreground = ([candidate[key] for candidate in synthetic] for key in ("true", "kind", "foreground"))
    told = {}
    for name in VALUES:
        values = [candidate[name] for candidate in synthetic]
        told[name] = rank_correlation(values, true) | {
            "within_kinds": rank_correlation(centred_by(kinds, values), centred_by(kinds, true))["rank_correlation"],
            "best_of_4": best_of_4(values, true),
            "with_foreground": rank_correlation(values, foreground)["rank_correlation"],
        }
    return told


def by_kind(found: list[dict[str, Any]], value: str) -> dict[str, tuple[float, float]]:
    """Mean and standard error of a value of each kind, in standard deviations of all candidates."""
    spread = float(np.std([candidate[value] for candidate in found]))
    means = {}
    for kind in dict.fromkeys(candidate["kind"] for candidate in found):
        own = np.array([candidate[value] for candidate in found if candidate["kind"] == kind]) / spread
        means[kind] = float(own.mean()), float(own.std(ddof=1) / np.sqrt(len(own)))
    return means


def pair_values(results: list[dict[str, Any]]) -> str:
    """Markdown: two tables a result."""
    text = HEAD
    for result in results:
        found = result["candidates"]
        text += (
            f"\n### {NAMES[result['dataset']].capitalize()}, N = {result['budget']}\n\n"
            f"{len(found)} pairs, after half of {result['iterations']} iterations, seed {result['seed']}.\n\n"
            "| value | rank correlation | within kinds | best of four | with foreground |\n| --- | --- | --- | --- | --- |\n"
        )
        for name, told in compared(found).items():
            interval = f"{told['rank_correlation']:.2f} [{told['low']:.2f}, {told['high']:.2f}]"
            share = f"{100 * told['best_of_4']:.0f} %"
            text += f"| `{name}` | {interval} | {told['within_kinds']:.2f} | {share} | {told['with_foreground']:.2f} |\n"
        text += "\n| kind | pairs | true value | `agreement_heldout` |\n| --- | --- | --- | --- |\n"
        true, agreement = by_kind(found, "true"), by_kind(found, "agreement_heldout")
        for kind in true:
            count = sum(candidate["kind"] == kind for candidate in found)
            cells = (kind, count, *(f"{mean:.2f} ± {error:.2f}" for mean, error in (true[kind], agreement[kind])))
            text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text
