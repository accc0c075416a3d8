"""The figures of `genseg quality` as tables, and these as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Found = Mapping[str, Any]
NOTHING = "-"


class Table(NamedTuple):
    """A table of figures, rounded."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def as_text(content: Found) -> str:
    """Tables of the content of quality.json, and its remarks.

    Args:
        content: see `trainers.judging.judge`.
    """
    return "\n\n".join([headline(content), *map(_text, tables(content)), "\n".join(f"Note: {said}" for said in remarks(content))])


def headline(content: Found) -> str:
    """What was judged."""
    real = f"{content['training_cases']} training cases and {content['validation_cases']} validation cases"
    where = f"{content['dataset']}, {content['configuration']}, fold {content['fold']}"
    return f"{content['pairs']} pairs, {real} of {where}; network of {content['network']['trainer']}"


def remarks(content: Found) -> list[str]:
    """What is said beside the tables."""
    found = content["diversity"]
    masks = f"{found['new_masks']} of {content['pairs']} masks are new, {found['distinct_masks']} are different from each other."
    return [masks, *content["remarks"]]


def tables(content: Found) -> list[Table]:
    """All figures."""
    found = [_fidelity(content["fidelity"]), _intensities(content["intensities"])]
    if content["distribution"] is not None:
        found.append(_distribution(content["distribution"]))
    found += _memorisation(content["memorisation"])
    return [*found, _diversity(content["diversity"])] if "real" in content["diversity"] else found


def _fidelity(classes: Found) -> Table:
    rows = [
        (name, part, *_cells(found[part], "mean", "lower_quartile", "median", "upper_quartile", "count"))
        for name, found in classes.items()
        for part in ("synthetic", "real")
    ]
    return Table("Dice of mask and network", ("class", "images", "mean", "25 %", "median", "75 %", "n"), rows)


def _intensities(channels: Found) -> Table:
    rows = [
        (channel, name, *_cells(found["real"], "mean", "deviation"), *_cells(found["synthetic"], "mean", "deviation"))
        + (_cells(found["wasserstein_synthetic"], "mean") + _cells(found["wasserstein_real"], "mean"))
        for channel, classes in channels.items()
        for name, found in classes.items()
    ]
    head = ("channel", "class", "real mean", "SD", "synthetic mean", "SD", "distance", "real-to-real")
    return Table("Intensities, and 1-Wasserstein distance", head, rows)


def _distribution(found: Found) -> Table:
    rows = [
        (name.upper(), part, *_cells(found[name][part], "mean", "deviation"))
        for name in ("kid", "fid")
        if found[name] is not None
        for part in ("synthetic", "real")
    ]
    fewest, most = found["patches"]
    title = f"Distance from real images in feature space ({fewest} to {most} patches a sample, {found['channels']} channels)"
    return Table(title, ("figure", "images", "mean", "SD"), rows)


def _memorisation(spaces: Found) -> list[Table]:
    rows = [
        (space, said, *_cells(found[key], "least", "lower_quartile", "median", "count"))
        for space, found in spaces.items()
        for key, said in (
            ("nearest_source", "pair to its source"),
            ("nearest_other", "pair to nearest other"),
            ("real_nearest_other", "real to nearest other"),
        )
    ]
    parts = [Table("Distance to the nearest real training case", ("space", "from", "least", "25 %", "median", "n"), rows)]
    for space, found in spaces.items():
        closest = [(one["pair"], one["case"], _cell(one["distance"])) for one in found["closest_other"][:3]]
        title = f"Pairs nearer to another case than any two real cases, by {space}: {found['closer_than_real']}; the closest"
        parts.append(Table(title, ("pair", "case", "distance"), closest))
    return parts


def _diversity(found: Found) -> Table:
    rows = [
        ("real cases", *_cells(found["real"], "mean")),
        ("pairs of different cases", *_cells(found["synthetic"], "mean")),
        ("pairs of the same case", _cell(found["same_source"])),
    ]
    return Table("Diversity: mean distance of two images in feature space", ("images", "distance"), rows)


def _cells(figures: Found, *names: str) -> tuple[str, ...]:
    return tuple(_cell(figures[name]) for name in names)


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _text(table: Table) -> str:
    """Columns as wide as their content; text to the left, columns of numbers to the right."""
    columns = []
    for title, *cells in zip(table.head, *table.rows, strict=True):
        width = max(map(len, (title, *cells)))
        numbers = bool(cells) and all(map(_is_number, cells))
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in (title, *cells)])
    return "\n".join([f"{table.title}:", *("  ".join(line).rstrip() for line in zip(*columns, strict=True))])


def _is_number(cell: str) -> bool:
    return cell == NOTHING or cell.lstrip("-")[:1].isdigit()
