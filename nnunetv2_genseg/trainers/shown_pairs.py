"""The pairs of a folder as a report shows them: in several orders, as pictures beside real cases."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from nnunetv2_genseg.plots.gallery import Detail, Strip, fitted, strip
from nnunetv2_genseg.plots.page import csv_of
from nnunetv2_genseg.plots.report import FOR_PICTURES, Item, View
from nnunetv2_genseg.plots.slices import window_of_volume
from nnunetv2_genseg.trainers.pair_folder import PairFolder
from nnunetv2_genseg.trainers.raw_cases import RawCases
from nnunetv2_genseg.trainers.raw_formats import in_colour

FIRST = 12
"""Pairs at the head of each order that are shown in any case."""


class ShownPairs:
    """Orders and pictures of the pairs of a folder.

    Args:
        folder: of the pairs.
        figures: the content of quality.json; None if they were not judged.

    Raises:
        KeyError: the figures are of other pairs.
    """

    def __init__(self, folder: PairFolder, figures: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.dice = _mean_dice(figures)
        self.views = [self._view("In the order of their names", "Each pair is beside the case that it was made from.", None)]
        if self.dice:
            note = "Mean over the classes: Dice of the pair's mask and of what the network of the fold segments in its image."
            self.views.append(self._view("Lowest Dice first", note, 1))
            self.views.append(self._view("Highest Dice first", note, -1))
        for space, found in (figures or {}).get("memorisation", {}).items():
            for key, said in (("closest_other", "another case"), ("closest_source", "its own case")):
                items = [
                    Item(one["pair"], one["case"], f"{self._origin(one['pair'])}, distance {one['distance']:.4g}")
                    for one in found[key]
                ]
                note = f"The closest pairs, each beside that case. The distance is that of {space}, see the tables."
                self.views.append(View(f"Closest to {said} ({space})", note, items))

    def _view(self, title: str, note: str, sign: int | None) -> View:
        names = list(self.folder.sources)
        if sign is not None:
            names = sorted(self.dice, key=lambda name: (sign * self.dice[name], name))
        return View(title, note, [self._item(name) for name in names])

    def _item(self, name: str) -> Item:
        judged = f", Dice {self.dice[name]:.3f}" if name in self.dice else ""
        return Item(name, self.folder.sources[name], self._origin(name) + judged)

    def _origin(self, name: str) -> str:
        return f"{self.folder.made_by[name]} of {self.folder.sources[name]}"

    def as_csv(self) -> str:
        """A row a pair."""
        rows = [
            (name, case, self.folder.made_by[name], self.folder.new_masks[name], self.dice.get(name, ""))
            for name, case in self.folder.sources.items()
        ]
        return csv_of(("pair", "case", "source", "new_mask", "mean_dice"), rows)

    @property
    def cases(self) -> list[str]:
        """Real cases that are shown."""
        return sorted({item.case for view in self.views for item in view.items})

    def drawn(self, real: RawCases, written: RawCases) -> tuple[list[View], dict[str, Strip], list[str]]:
        """The views, without pairs for which there is no room, the pictures, and what is to be said of them.

        Raises:
            GenSegError: a file cannot be read.
        """
        drawing = _Drawing(real, written, self.folder.sources)
        heads = [item for view in self.views for item in view.items[:FIRST]]
        rest = [item for view in self.views for item in view.items[FIRST:]]
        groups = [(f"case {item.case}", f"pair {item.pair}") for item in [*heads, *rest]]
        pictures, detail = fitted(groups, drawing.strip, FOR_PICTURES)

        def there(item: Item) -> bool:
            return f"case {item.case}" in pictures and f"pair {item.pair}" in pictures

        views = [View(view.title, view.note, list(filter(there, view.items))) for view in self.views]
        return views, pictures, list(self._said(len(views[0].items), detail, any(of["of"] > 1 for of in pictures.values())))

    def _said(self, shown: int, detail: Detail, volumes: bool) -> Iterator[str]:
        what = "Slices" if volumes else "Images"
        slices = f", and at most {detail.slices} slices of a volume, evenly spread" if volumes else ""
        yield f"{what} are shown with at most {detail.longest} pixels a side{slices}. The files have all."
        if shown < len(self.folder.sources):
            yield f"{shown} of {len(self.folder.sources)} pairs are shown: more do not fit into this file."


class _Drawing:
    """Reads cases and pairs and draws them in the window of their real case."""

    def __init__(self, real: RawCases, written: RawCases, sources: Mapping[str, str]) -> None:
        self.real = real
        self.written = written
        self.sources = sources
        self._windows: dict[str, Any] = {}

    def strip(self, name: str, detail: Detail) -> Strip:
        """The picture of `case NAME` or `pair NAME`."""
        kind, _, own = name.partition(" ")
        image, segmentation, properties = (self.real if kind == "case" else self.written).load(own)
        case = own if kind == "case" else self.sources[own]
        if case not in self._windows:
            shown = image if kind == "case" else self.real.load(case)[0]
            self._windows[case] = window_of_volume(shown, in_colour(shown, self.real.reader))
        return strip(image, segmentation[0], properties["spacing"][-2:], self._windows[case], detail)


def _mean_dice(figures: Mapping[str, Any] | None) -> dict[str, float]:
    """By pair; pairs whose Dice is not determined are left out."""
    found = {} if figures is None else figures["dice_of_pairs"]
    known = {name: [value for value in of.values() if value is not None] for name, of in found.items()}
    return {name: statistics.fmean(values) for name, values in known.items() if values}
