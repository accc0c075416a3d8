"""The curves of a training over its epochs, kept with the checkpoint and drawn into the fold folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from nnunetv2_genseg.files.atomic import replacing
from nnunetv2_genseg.plots import own_style

EPOCH, SHARE = "epoch", "share"
OF_UNLABELLED = ("teacher_agreement", "unlabelled_share", "pseudo_labels_used", "pseudo_labels_sure")
"""Names of what is logged of unlabelled images; fractions."""
PREFERRED = "preferred"
"""Fraction of the drawn pairs that the judgement of reviewers keeps."""
ACCEPTANCE, HELD_OUT, SYNTHETIC, NORM = "acceptance_rate", "loss_heldout", "loss_synthetic", "hypergradient_norm"
CHOSEN = ("deformation_factor", "style_factor", "largest_kernel_share")
"""Names of what the feedback chose."""


class ProgressRecord:
    """Mean values of every epoch, by name."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def add(self, epoch: int, share: float, values: dict[str, float]) -> None:
        """Records an epoch; a later record of the same epoch replaces it.

        Args:
            epoch: its number.
            share: share of synthetic patches at its end, in [0, 1].
            values: means over the epoch, by name. Names that this module does not know are drawn as the generator's losses.
        """
        self.rows = [row for row in self.rows if row[EPOCH] != epoch]
        self.rows.append({EPOCH: float(epoch), SHARE: share, **values})

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: the rows are not of numbers by name.
        """
        rows: list[dict[str, float]] = TypeAdapter(list[dict[str, float]]).validate_python(state["rows"])
        if not all(EPOCH in row and SHARE in row for row in rows):
            raise ValueError(f"an epoch without {EPOCH} or {SHARE}")
        self.rows = rows

    def panels(self) -> dict[str, list[str]]:
        """Titles of panels, and the names of the values in each."""
        names = {name for row in self.rows for name in row}
        shares = [SHARE, ACCEPTANCE, PREFERRED, *OF_UNLABELLED]
        contents = {
            "generator": sorted(names - {EPOCH, *shares, HELD_OUT, SYNTHETIC, NORM, *CHOSEN}),
            "synthetic patches": shares,
            "loss of the segmentation network, in the feedback": [HELD_OUT, SYNTHETIC],
            "what the feedback chose": list(CHOSEN),
        }
        return {title: lines for title, lines in contents.items() if SHARE in lines or names.intersection(lines)}

    def points(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of every epoch that has a value."""
        return [(row[EPOCH], row[name]) for row in self.rows if name in row]

    @own_style
    def plot(self, path: Path, num_epochs: int) -> None:
        """Writes a PNG with panels for the generator, the synthetic patches, the held-out cases and what the feedback chose."""
        figure = Figure(figsize=(9, 8))
        FigureCanvasAgg(figure)
        shown = self.panels()
        margins = {"left": 0.08, "right": 0.92, "bottom": 0.06, "top": 0.96, "hspace": 0.25}
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, gridspec_kw=margins)[:, 0]
        for panel, (title, lines) in zip(panels, shown.items(), strict=True):
            self._draw(panel, *lines)
            panel.set_title(title, loc="left")
            panel.set_xlim(-0.5, num_epochs - 0.5)
            if SHARE in lines:
                panel.set_ylim(-0.05, 1.05)
            if HELD_OUT in lines and any(row.get(NORM) for row in self.rows):
                norms = panel.twinx()
                norms.set_yscale("log")
                norms.set_ylabel("norm of the hypergradient", color="tab:red")
                self._draw(norms, NORM, color="tab:red")
            if panel.lines:
                panel.legend(loc="best")
        panels[-1].set_xlabel("epoch")
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=80)

    def _draw(self, axis: Any, *names: str, **style: Any) -> None:
        for name in names:
            known = self.points(name)
            if known:
                axis.plot(*zip(*known, strict=True), label=name, marker=".", **style)
