"""The generator's curves over the epochs, kept with the checkpoint and drawn into the fold folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PANELS = {
    "generator": ("l1", "generator", "discriminator"),
    "segmenter on synthetic pairs": ("synthetic",),
    "feedback": ("feedback", "hypergradient"),
}


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

    def plot(self, path: Path, num_epochs: int) -> None:
        """Writes a PNG with a panel for the generator, the synthetic loss and the feedback."""
        figure = Figure(figsize=(9, 8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(PANELS), 1, sharex=True)
        for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
            for name in names:
                known = [(row["epoch"], row[name]) for row in self.rows if name in row]
                if known:
                    axis.plot(*zip(*known, strict=True), label=name, marker=".")
            if "segmenter" in title:
                axis.plot([row["epoch"] for row in self.rows], [row["gamma"] for row in self.rows], "k:", label="γ")
            if title == "feedback" and any("hypergradient" in row for row in self.rows):
                axis.set_yscale("symlog", linthresh=1e-6)
            axis.set_title(title, loc="left")
            axis.set_xlim(-0.5, num_epochs - 0.5)
            if axis.lines:
                axis.legend(loc="upper right")
        axes[-1].set_xlabel("epoch")
        figure.savefig(path, dpi=80)
