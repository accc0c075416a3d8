"""The generator's curves over the epochs, kept with the checkpoint and drawn into the fold folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunetv2_genseg.coupling import LARGEST_SHARE
from nnunetv2_genseg.pictures import own_style
from nnunetv2_genseg.policy import FACTORS

SYNTHETIC = ("synthetic", "new masks", "learned masks")
FEEDBACK, HYPERGRADIENT = "feedback", "hypergradient"
CHOSEN = (*FACTORS, LARGEST_SHARE)


class ProgressRecord:
    """Mean values of every epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, epoch: int, gamma: float, values: dict[str, float]) -> None:
        """Takes up an epoch; a later record of the same epoch replaces it."""
        self.rows = [row for row in self.rows if row["epoch"] != epoch]
        self.rows.append({"epoch": float(epoch), "gamma": gamma, **values})

    def state(self) -> list[dict[str, float]]:
        """For a checkpoint."""
        return [dict(row) for row in self.rows]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """The inverse of `state`."""
        self.rows = [dict(row) for row in state]

    @own_style
    def plot(self, path: Path, num_epochs: int) -> None:
        """Writes a PNG with panels for the generator's losses, the synthetic pairs, the feedback and what it chose."""
        figure = Figure(figsize=(9, 8), layout="constrained")
        FigureCanvasAgg(figure)
        names = {name for row in self.rows for name in row}
        titles = ["generator", "segmenter on synthetic pairs", "loss on held-aside cases"]
        titles += ["what the feedback chose"] if names.intersection(CHOSEN) else []
        panels = figure.subplots(len(titles), 1, sharex=True)
        others = names - {"epoch", "gamma", FEEDBACK, HYPERGRADIENT, *SYNTHETIC, *CHOSEN}
        self._draw(panels[0], *sorted(others))
        self._draw(panels[1], *SYNTHETIC)
        epochs, gammas = [row["epoch"] for row in self.rows], [row["gamma"] for row in self.rows]
        panels[1].plot(epochs, gammas, color="black", linestyle=":", label="γ")
        self._draw(panels[2], FEEDBACK)
        if any(row.get(HYPERGRADIENT) for row in self.rows):
            norms = panels[2].twinx()
            norms.set_yscale("log")
            norms.set_ylabel("norm of the hypergradient", color="tab:orange")
            self._draw(norms, HYPERGRADIENT, color="tab:orange")
        self._draw(panels[-1], *CHOSEN)
        for panel, title in zip(panels, titles, strict=True):
            panel.set_title(title, loc="left")
            panel.set_xlim(-0.5, num_epochs - 0.5)
            if panel.lines:
                panel.legend(loc="best")
        panels[-1].set_xlabel("epoch")
        figure.savefig(path, dpi=80)

    def _draw(self, axis: Any, *names: str, **style: Any) -> None:
        for name in names:
            known = [(row["epoch"], row[name]) for row in self.rows if name in row]
            if known:
                axis.plot(*zip(*known, strict=True), label=name, marker=".", **style)
