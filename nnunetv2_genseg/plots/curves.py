"""Curves over the epochs of a training as SVG that takes its colours from the page around it, and as CSV."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_genseg.plots import own_style
from nnunetv2_genseg.plots.page import csv_of

COLOURS = 8
"""Variables `--curve-0` and so on that the page sets."""
DASHES: tuple[tuple[int, ...], ...] = ((), (4, 2), (6, 2, 1, 2), (1, 2))
"""Of the lines in turn: lengths that are drawn and left out."""
FEW = 30
"""Epochs up to which every one has a marker."""
INK = "#010203"
"""Of texts and axes, in the page's own colour in the end."""
OWN_COLOURS = {INK: "currentColor"} | {f"#0102{16 + i:02x}": f"var(--curve-{i})" for i in range(COLOURS)}


@dataclass(frozen=True)
class Curves:
    """Some curves that share an axis."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """By name: (epoch, value)."""
    logarithmic: bool = False

    @property
    def legend(self) -> list[tuple[str, str, str]]:
        """Name, colour and dashes of each line, as CSS has them."""
        of_line = ((f"var(--curve-{i % COLOURS})", " ".join(map(str, DASHES[i % len(DASHES)]))) for i in range(len(self.lines)))
        return [(name, *style) for name, style in zip(self.lines, of_line)]

    def as_csv(self) -> str:
        """A row an epoch, a column a curve."""
        values = {name: dict(points) for name, points in self.lines.items()}
        epochs = sorted({epoch for points in values.values() for epoch in points})
        rows = [[f"{epoch:g}", *(f"{of[epoch]:.6g}" if epoch in of else "" for of in values.values())] for epoch in epochs]
        return csv_of(["epoch", *values], rows)

    @own_style
    def as_svg(self) -> str:
        """An element `svg`, to be put into a page that sets the variables."""
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.title, "font.size": 11}):
            figure = Figure(figsize=(5.2, 2.8), layout="constrained")
            FigureCanvasSVG(figure)
            axes = figure.add_subplot()
            for i, points in enumerate(self.lines.values()):
                colour, dashes = list(OWN_COLOURS)[1 + i % COLOURS], DASHES[i % len(DASHES)]
                marker = "." if len(points) <= FEW else ""
                axes.plot(*zip(*points), color=colour, linestyle=(0, dashes) if dashes else "-", marker=marker)
            axes.set_xlabel("epoch", color=INK)
            axes.tick_params(colors=INK)
            axes.spines[:].set_color(INK)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            if self.logarithmic:
                axes.set_yscale("log")
            text = io.StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        return _for_page(text.getvalue(), self.title)


def _for_page(svg: str, title: str) -> str:
    """Without what a page has only once: the head, the names of elements; in the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for own, colour in OWN_COLOURS.items():
        svg = svg.replace(own, colour)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
