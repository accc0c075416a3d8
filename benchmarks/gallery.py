"""Draws the pictures of the gallery and of the README from phantoms, and writes docs/gallery.md: `python benchmarks/gallery.py`.

Everything is drawn by the package itself, from tensors, without nnU-Net's planning. Settings that go wrong are shown too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from generators import FAMILIES as PRESETS
from nnunetv2_genseg import trainers
from nnunetv2_genseg.config import GenSegConfig, Settings, checked
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.phantoms import LABELS, PhantomDataset
from nnunetv2_genseg.plots.samples import Picture, coloured, grey, middle_slice, window_of
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.pasting import PASTES
from nnunetv2_genseg.synthesis.sampler import PairSampler
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES

DOCS = Path(__file__).parent.parent / "docs"
FOLDER = DOCS / "images" / "gallery"
ITERATIONS = {2: 120, 3: 40}
"""Steps of a generator in 2D and 3D: far fewer than in a training."""
BATCH = {2: 4, 3: 1}
LEARNED = f"{ITERATIONS[2]} steps in 2D and {ITERATIONS[3]} in 3D"
CODEC = LabelCodec.from_labels([1, 2], None)
FAMILIES: dict[str, Settings] = {name: getattr(trainers, kind).preset.get("generator", {}) for name, kind in PRESETS.items()}
MODES = ("mask", "tissue", "residual")
STILL = {"displacement": 0.0, "rotation": 0.0, "scaling": 0.0}
SHOWN = 1
"""Index of the phantom that most pictures show."""


@dataclass(frozen=True)
class Cell:
    """One small picture."""

    picture: Picture
    title: str = ""
    outline: Any = None
    """(H, W) class map whose borders are drawn."""


@dataclass(frozen=True)
class Phantoms:
    """All phantoms of a kind as one batch, and the network that nnU-Net would plan for such patches."""

    image: Tensor
    labels: Tensor
    plan: NetworkPlan

    @property
    def dims(self) -> int:
        """2 or 3."""
        return self.plan.dims


def phantoms(dims: int) -> Phantoms:
    """Makes them: RGB images in 2D, volumes of one channel in 3D, each normalised to mean 0 and deviation 1."""
    dataset = PhantomDataset(
        900 + dims, dims, training_cases=16 if dims == 2 else 8, test_cases=0, extent=64 if dims == 2 else 32
    )
    with TemporaryDirectory() as raw:
        folder = dataset.write(Path(raw))
        read = [[sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted((folder / part).iterdir())]
                for part in ("imagesTr", "labelsTr")]  # fmt: skip
    image, labels = (torch.from_numpy(np.stack(arrays).astype(np.float32)) for arrays in read)
    image = image.movedim(-1, 1) if dims == 2 else image[:, None]
    image = (image - image.flatten(2).mean(dim=2).view(*image.shape[:2], *(1,) * dims)) / image.flatten(2).std(dim=2).view(
        *image.shape[:2], *(1,) * dims
    )
    stages = 4 if dims == 2 else 3
    plan = NetworkPlan(
        tuple(labels.shape[1:]),
        (16, 32, 64, 128)[:stages],
        ((1,) * dims, *((2,) * dims,) * (stages - 1)),
        ((3,) * dims,) * stages,
    )
    return Phantoms(image, labels.long(), plan)


class Drawer:
    """A pair sampler on phantoms, whose generator learns for some steps.

    Args:
        data: the phantoms.
        settings: of the sampler; feedback is off.
        iterations: steps of the generator.
    """

    def __init__(self, data: Phantoms, settings: Settings, iterations: int = 0) -> None:
        config = checked(GenSegConfig, settings | {"feedback": {"enabled": False}}, "gallery")
        self.data = data
        self.sampler = PairSampler(config, data.plan, CODEC, data.image.shape[1], torch.device("cpu"))
        self.sampler.observe(data.labels)
        self.learn(iterations)

    def learn(self, iterations: int) -> None:
        """Further steps."""
        rng = torch.Generator().manual_seed(1)
        for _ in range(iterations):
            chosen = torch.randint(len(self.data.image), (BATCH[self.data.dims],), generator=rng)
            self.sampler.training_step(self.data.image[chosen], self.data.labels[chosen], rng)

    def configured(self, settings: Settings) -> Drawer:
        """The same generator with other settings of what is drawn."""
        other = Drawer(self.data, settings)
        for name, source in self.sampler.sources.items():
            if name in other.sampler.sources:
                other.sampler.sources[name].load_state_dict(source.state_dict())
        return other

    @torch.no_grad()
    def pair(self, source: str, which: int = SHOWN, seed: int = 0) -> Pairs:
        """One pair made from a phantom."""
        image, labels = self.data.image[which : which + 1], self.data.labels[which : which + 1]
        return self.sampler.replace(image, labels, {source: [0]}, torch.Generator().manual_seed(seed)).pairs

    def cell(self, source: str, title: str = "", which: int = SHOWN, seed: int = 0) -> Cell:
        """A pair's image with its mask outlined; the title says if the mask was rejected."""
        pairs = self.pair(source, which, seed)
        window = window_of(middle_slice(self.data.image[which], self.data.labels[which])[0])
        picture, mask = middle_slice(pairs.image[0], pairs.labels[0])
        return Cell(grey(picture, window), title + ("" if bool(pairs.accepted[0]) else "\nmask rejected"), mask)


def real(data: Phantoms, title: str = "real", which: int = SHOWN) -> Cell:
    """A phantom with its mask outlined."""
    picture, mask = middle_slice(data.image[which], data.labels[which])
    return Cell(grey(picture, window_of(picture)), title, mask)


def mask_cell(data: Phantoms, labels: Tensor, title: str) -> Cell:
    """A mask, (*spatial), in colours."""
    return Cell(coloured(middle_slice(data.image[SHOWN], labels)[1], CODEC.foreground), title)


def redrawn(mode: str, family: str = "gan", **further: Settings) -> Settings:
    """Settings of the source `redraw` alone."""
    return {"mixing": {"sources": {"redraw": 1.0}}, "redraw": {"mode": mode}, "generator": FAMILIES[family]} | further


def save(rows: Sequence[Sequence[Cell]], path: Path, names: Sequence[str] = ()) -> None:
    """Writes rows of cells as a PNG; `names` are those of the rows."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.7 * columns + 0.3 * bool(names), 1.95 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (line, cells) in enumerate(zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True)):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        for axis, cell in zip(line, cells, strict=False):
            axis.imshow(cell.picture, interpolation="nearest")
            axis.set_title(cell.title, fontsize=9)
            if cell.outline is not None and cell.outline.max() > 0:
                axis.contour(cell.outline, levels=np.arange(0.5, CODEC.foreground + 1), colors="red", linewidths=0.7)
        if names:
            line[0].set_ylabel(names[i], fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


# ---------------------------------------------------------------------- the panels


def deformations(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """Every setting of the deformation alone, at several strengths."""
    strengths = {"displacement": (0.02, 0.04, 0.08, 0.2), "rotation": (15.0, 30.0, 90.0, 180.0), "scaling": (0.1, 0.25, 0.5, 0.8)}
    rows = []
    for name, values in strengths.items():
        row = [real(data)]
        for value in values:
            settings = {
                "deformation": STILL | {name: value},
                "intensity": {"tone": 0.0},
                "mixing": {"sources": {"deformation": 1.0}},
            }
            row.append(Drawer(data, settings).cell("deformation", f"{value:g}", seed=2))
        rows.append(row)
    return rows, list(strengths)


def intensities(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """The tone curve and the shift of class intensities, at several strengths."""
    tones = [
        Drawer(data, {"deformation": STILL, "intensity": {"tone": tone}, "mixing": {"sources": {"deformation": 1.0}}}).cell(
            "deformation", f"{tone:g}", seed=5
        )
        for tone in (0.1, 0.25, 0.5, 2.0)
    ]
    shifts = [
        trained["gan", "tissue"]
        .configured(redrawn("residual", deformation=STILL, intensity={"tone": 0.0, "shift": shift}))
        .cell("redraw", f"{shift:g}", seed=5)
        for shift in (0.1, 0.5, 1.0, 3.0)
    ]
    return [[real(data), *tones], [real(data), *shifts]], ["intensity.tone", "intensity.shift"]


def sources(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """Every registered pair source with the default settings."""
    names = PAIR_SOURCES.names()
    rows = []
    for name in names:
        drawer = trained["gan", "tissue"].configured({"mixing": {"sources": {name: 1.0}}})
        rows.append([real(data, which=which) if seed < 0 else drawer.cell(name, "synthetic", which, seed)
                     for which in (1, 2) for seed in (-1, 1, 2)])  # fmt: skip
    return rows, names


def pasting(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """Every way to paste; nothing is deformed."""
    receiver, donor, rows = SHOWN, SHOWN + 1, []
    for name in PASTES.names():
        paster = Drawer(data, {"paste": {"probability": 1.0, "kinds": {name: 1.0}}}).sampler.paster
        paster.context.free_classes = (1, 2)
        paster.remember(data.image[donor : donor + 1], data.labels[donor : donor + 1], ["donor"])
        row = [real(data, "real", receiver), real(data, "other case", donor)]
        for seed in range(3):
            rng, slot_rng = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
            own = data.image[receiver : receiver + 1], data.labels[receiver : receiver + 1]
            image, labels = paster.paste(*own, ["receiver"], [0], rng, slot_rng)
            picture, mask = middle_slice(image[0], labels[0])
            row.append(Cell(grey(picture, window_of(middle_slice(own[0][0], own[1][0])[0])), "pasted", mask))
        rows.append(row)
    return rows, PASTES.names()


def families(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """Every generator family in every mode."""
    rows = []
    for family in FAMILIES:
        row = [real(data)]
        for mode in MODES:
            learned = trained.get((family, "mask" if mode == "mask" else "tissue"))
            if learned is None:
                row.append(Cell(np.ones((1, 1, 3)), f"{mode}: refused"))
            else:
                row.append(learned.configured(redrawn(mode, family)).cell("redraw", mode, seed=2))
        rows.append(row)
    return rows, list(FAMILIES)


def training_length(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """The same pair while the generator learns."""
    rows: list[list[Cell]] = [[real(data)], [real(data)]]
    drawer, done = Drawer(data, redrawn("tissue")), 0
    for iterations in (0, *(ITERATIONS[data.dims] // part for part in (10, 3, 1))):
        drawer.learn(iterations - done)
        done = iterations
        for row, mode in zip(rows, ("tissue", "residual"), strict=True):
            row.append(drawer.configured(redrawn(mode)).cell("redraw", f"{iterations} steps", seed=2))
    return rows, ["tissue", "residual"]


def new_shapes(data: Phantoms, trained: dict[tuple[str, str], Drawer]) -> tuple[list[list[Cell]], list[str]]:
    """Masks of the mask source `shape_vae`, and the images that the generator draws for them."""
    drawer = Drawer(data, redrawn("tissue", masks={"source": "shape_vae"}, deformation=STILL), ITERATIONS[data.dims])
    pairs = [drawer.pair("redraw", seed=seed) for seed in range(4)]
    masks = [mask_cell(data, pair.labels[0], "new mask" if bool(pair.accepted[0]) else "rejected") for pair in pairs]
    drawn = [drawer.cell("redraw", "synthetic", seed=seed) for seed in range(4)]
    return [[mask_cell(data, data.labels[SHOWN], "real mask"), *masks], [real(data), *drawn]], ["mask", "image"]


Panel = Callable[[Phantoms, dict[tuple[str, str], Drawer]], tuple[list[list[Cell]], list[str]]]
PANELS: dict[str, tuple[Panel, str, str]] = {
    "sources": (
        sources,
        "Pair sources",
        "Each source with the default settings. Red: the outline of the mask that belongs to the image.",
    ),
    "pasting": (
        pasting,
        "Parts of other cases",
        "Each way to paste (`paste.kinds`). A box may cut a structure in two. A carved structure stays at its place. "
        "A lesion may get a place where no such structure can be: only classes that occur at any place of the images are pasted.",
    ),
    "deformations": (
        deformations,
        "Strength of the deformation",
        "One setting of `deformation` at a time, the others are 0. Space outside of the patch is filled by reflection: at the "
        "strongest settings, which are far above the defaults, structures are doubled or leave the patch. A mask that would lose "
        "a class, or shrink one below 0.3 of its voxels, is rejected; the pair then keeps its real mask.",
    ),
    "intensities": (
        intensities,
        "Strength of the intensity changes",
        "Nothing is deformed. The last column is far above the defaults (0.25 and 1). There, structures lose their contrast: "
        "such pairs can teach the segmentation network that a structure looks like its surroundings.",
    ),
    "families": (
        families,
        "Generator families and modes",
        f"Generators after {LEARNED}. Mode `mask` knows the labels alone. Most of a phantom has no label, so the "
        "generator can only guess what is there. This is a failure: use mode `mask` if labels fill the image. In mode `tissue` "
        "the generator draws everything; after so few steps there is little texture, and diffusion still draws noise. Mode "
        "`residual` keeps the texture of the "
        "real image. The Gaussian mixture (`gmm`) needs tissue classes, so mode `mask` is refused.",
    ),
    "training_length": (
        training_length,
        "While the generator learns",
        "The same pair after more and more steps of the GAN. An untrained generator draws flat areas of wrong "
        "intensities in mode `tissue`. In mode `residual` its errors nearly cancel from the beginning.",
    ),
    "new_shapes": (
        new_shapes,
        "New shapes",
        f"The mask source `shape_vae` after {LEARNED}, nothing is deformed. It is off by default.",
    ),
}
HEAD = """# Gallery

See what each setting does to an image before you train. All pictures show phantoms, which the package makes. To see your own
data, run `genseg preview` ([how](how-to/choose-settings.md)).

The page and its pictures are made by `python benchmarks/gallery.py`; do not edit it. Volumes are shown by the slice with most
labelled voxels. "mask rejected" means that the new mask was outside of the bounds, so that the pair keeps its real mask.
"""


def page() -> str:
    """The text of docs/gallery.md."""
    parts = [HEAD]
    for name, (_, title, caption) in PANELS.items():
        pictures = "\n".join(f"![{title}, {dims}D](images/gallery/{name}_{dims}d.png)\n" for dims in (2, 3))
        parts.append(f"\n## {title}\n\n{caption}\n\n{pictures}")
    return "".join(parts)


def readme_picture(drawn: dict[int, dict[tuple[str, str], Drawer]]) -> None:
    """Writes the picture of the README: a pair by each default source in 2D, and one in 3D."""
    rows, names = [], []
    for dims, source, which in ((2, "deformation", 2), (2, "redraw", 1), (3, "redraw", 1)):
        drawer = drawn[dims]["gan", "tissue"].configured({"mixing": {"sources": {source: 1.0}}})
        pairs, data = drawer.pair(source, which, seed=2), drawer.data
        before = middle_slice(data.image[which], data.labels[which])
        after = middle_slice(pairs.image[0], pairs.labels[0])
        window = window_of(before[0])
        masks = [coloured(mask, CODEC.foreground) for mask in (before[1], after[1])]
        pictures = (grey(before[0], window), *masks, grey(after[0], window))
        titles = ("real image", "its mask", "new mask", "synthetic image") if not rows else ("",) * 4
        rows.append([Cell(picture, title) for picture, title in zip(pictures, titles, strict=True)])
        names.append(f"{source}, {dims}D")
    save(rows, DOCS / "images" / "pairs.png", names)


def main() -> None:
    """Trains the generators, writes all pictures and the page."""
    torch.set_num_threads(1)
    drawn = {dims: draw(dims) for dims in (2, 3)}
    readme_picture(drawn)
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


def draw(dims: int) -> dict[tuple[str, str], Drawer]:
    """Trains the generators of one number of dimensions and writes the pictures; returns the drawers by family and mode."""
    data = phantoms(dims)
    trained: dict[tuple[str, str], Drawer] = {}
    for family in FAMILIES:
        for mode in ("tissue", "mask")[: 1 if family == "gmm" else 2]:
            print(f"{dims}D {family} {mode}", flush=True)
            trained[family, mode] = Drawer(data, redrawn(mode, family), ITERATIONS[dims])
    for name, (panel, _, _) in PANELS.items():
        print(f"{dims}D {name}", flush=True)
        rows, names = panel(data, trained)
        save(rows, FOLDER / f"{name}_{dims}d.png", names)
    return trained


if __name__ == "__main__":
    assert set(LABELS.values()) == {0, 1, 2}
    main()
