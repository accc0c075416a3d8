"""How what GenSeg adds grows with classes, patch, batch and cases: results/growth.json.

    python benchmarks/growth.py [--device cpu] [--only classes]

Phantoms whose labels are small blocks, so that every patch shows all classes, planned by nnU-Net with a patch and a batch of
their own. In one process a GenSeg trainer goes through feedback intervals in the stage with pairs and feedback, and a stock
trainer takes an iteration after every second one of it. What GenSeg adds is the difference. The same is counted: floating-point
operations and bytes that a training step reads and writes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from iterations import KINDS, Subject, clock_of, moments, spread, trainer_of  # noqa: E402
from nnunetv2_genseg.phantoms import PhantomDataset  # noqa: E402
from provenance import provenance  # noqa: E402

RESULT = Path(__file__).parent / "results" / "growth.json"
STAGE = "pairs and feedback"
NUMBER = 941
SIDE = 2
"""Extent of a block of one class, voxels."""
TURNS = 3


@dataclass(frozen=True)
class Case:
    """A plan and its dataset."""

    patch: tuple[int, ...]
    batch_size: int
    classes: int = 2
    """Foreground classes."""
    cases: int = 6

    @property
    def configuration(self) -> str:
        """Of nnU-Net."""
        return "2d" if len(self.patch) == 2 else "3d_fullres"


BASE = {"2d": Case((48, 48), 4), "3d_fullres": Case((16, 32, 32), 2)}
GROWN: dict[str, list[Case]] = {
    "classes": [
        *(replace(BASE["2d"], classes=classes) for classes in (2, 10, 40, 118)),
        *(replace(BASE["3d_fullres"], classes=classes) for classes in (2, 118)),
    ],
    "patch": [
        *(replace(BASE["2d"], patch=(side, side)) for side in (32, 48, 64)),
        *(replace(BASE["3d_fullres"], patch=patch) for patch in ((16, 16, 16), (16, 32, 32), (32, 32, 32))),
    ],
    "batch": [replace(BASE["2d"], batch_size=size) for size in (2, 4, 8)],
    "cases": [replace(BASE["2d"], cases=cases) for cases in (6, 24, 96)],
}


def write(case: Case, folder: Path) -> None:
    """The raw dataset, with nnU-Net's planning and preprocessing."""
    import SimpleITK as sitk  # noqa: N813

    from phantom_plans import plan_phantom

    phantom = PhantomDataset(NUMBER, len(case.patch), case.cases, test_cases=0, extent=64 if len(case.patch) == 2 else 32)
    raw = phantom.write(folder / "raw")
    for path in (raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        shape = sitk.GetArrayViewFromImage(image).shape
        labels = sitk.GetImageFromArray(blocks(shape, case.classes))
        labels.CopyInformation(image)
        sitk.WriteImage(labels, str(path))
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"] = {"background": 0, **{f"class{i}": i for i in range(1, case.classes + 1)}}
    (raw / "dataset.json").write_text(json.dumps(description))
    plan_phantom(folder, NUMBER, case.configuration, case.patch, case.batch_size)


def blocks(shape: tuple[int, ...], classes: int) -> Any:
    """A label map of blocks of all classes in turn, with background at the border."""
    index = np.zeros(shape, dtype=int)
    for axis, places in enumerate(np.indices(shape, sparse=True)):
        index = index * (shape[axis] // SIDE + 1) + places // SIDE
    labels = (1 + index % classes).astype(np.uint8)
    inside = tuple(slice(1, -1) for _ in shape)
    framed = np.zeros_like(labels)
    framed[inside] = labels[inside]
    return framed


def measured(case: Case, device: str) -> dict[str, Any]:
    """What GenSeg adds to an iteration of one plan."""
    from operations import Counter, count_steps

    clock = clock_of(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(case, folder)
        subject = Subject(str(folder), str(NUMBER), case.configuration, device, str(folder / "models"))
        stock, genseg = (trainer_of(kind, subject) for kind in KINDS)
        epoch, count = moments(genseg.genseg)[STAGE]
        stocks, added = [], []
        for turn in range(TURNS + 1):
            own, taken = interval(stock, genseg, epoch, count if turn else 2, clock)
            if turn:  # the first turn is a warm-up
                stocks.append(own)
                added.append(taken - own)
        own_counter, counter = Counter(), Counter()
        count_steps(stock, epoch, 1, own_counter)
        count_steps(genseg, epoch, count, counter)
    operations = {}
    for what in ("flops", "bytes"):
        base = getattr(own_counter, what)
        operations[what] = {"stock": base, "added": round(getattr(counter, what) / count) - base}
    return {
        **asdict(case),
        "configuration": case.configuration,
        "stock_seconds": spread(stocks),
        "added_seconds": spread(added),
        "added_ratio": round(statistics.median(added) / statistics.median(stocks), 3),
        **operations,
    }


def interval(stock: Any, genseg: Any, epoch: int, count: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Mean seconds of an iteration of both trainers, which take turns so closely that they have the same work beside them."""
    for trainer in (stock, genseg):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
    seconds: dict[Any, list[float]] = {stock: [], genseg: []}
    for i in range(count):
        for trainer in (genseg, stock) if i % 2 else (genseg,):
            start = clock()
            trainer.train_step(next(trainer.dataloader_train))
            seconds[trainer].append(clock() - start)
    return statistics.fmean(seconds[stock]), statistics.fmean(seconds[genseg])


def show(case: dict[str, Any]) -> None:
    """Prints a line."""
    said = f"{case['patch']} batch {case['batch_size']}, {case['classes']} classes, {case['cases']} cases"
    stock, added = case["stock_seconds"]["median"], case["added_seconds"]
    times = f"stock {1000 * stock:.1f} ms, added {1000 * added['median']:.1f} ({1000 * added['least']:.1f} to "
    times += f"{1000 * added['most']:.1f}), {case['added_ratio']:.3f}"
    counts = [f"{what} {case[what]['stock'] / 1e9:.2f} + {case[what]['added'] / 1e9:.2f} G" for what in ("flops", "bytes")]
    print(f"{said}: {times}; {', '.join(counts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="*", choices=GROWN, default=list(GROWN))
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    found: dict[Case, dict[str, Any]] = {}
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in chosen.only:
        for case in GROWN[name]:
            if case not in found:
                found[case] = measured(case, chosen.device)
            show(found[case])
        tables[name] = [found[case] for case in GROWN[name]]
    command = f"python benchmarks/growth.py --device {chosen.device}"
    content = {"command": command, **provenance(chosen.device), "turns": TURNS, "tables": tables}
    chosen.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
