"""Kills, bad inputs and memory as figures: `python benchmarks/reliability.py --work FOLDER [kills|inputs|memory ...]`.

Runs the same code as `tests/integration/test_killed.py`, `tests/e2e/test_bad_inputs.py` and `tests/integration/
test_memory.py`, from the repository's root, and writes JSON files under `benchmarks/results/reliability/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from provenance import provenance  # noqa: E402

from nnunetv2_genseg.phantoms import PhantomDataset  # noqa: E402
from tests.bad_inputs import TABLE, answer, place_for  # noqa: E402
from tests.integration.conftest import Workspace  # noqa: E402
from tests.integration.kills import MOMENTS, SEED, killed_and_continued  # noqa: E402
from tests.integration.memory import BOUND, ITERATIONS, PATCH_BATCH, SETTINGS, WARM_UP, long_training  # noqa: E402
from tests.integration.processes import Moment, Training, memory_slope  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "reliability"
PHANTOM = PhantomDataset(901, dims=2, training_cases=8, test_cases=2, extent=32)
SMALL_PHANTOM = PhantomDataset(903, dims=2, training_cases=5, test_cases=1, extent=32)


def planned(work: Path, dataset: PhantomDataset) -> Workspace:
    """A phantom, planned by nnU-Net for a small network, once."""
    space = Workspace(work)
    if not (space.preprocessed(dataset.name) / "nnUNetPlans.json").is_file():
        dataset.write(work / "nnUNet_raw")
        space.plan(dataset.dataset_id, "2d")
    space.shrink(dataset.name, "2d")
    return space


def kills(work: Path) -> dict[str, Any]:
    """Every moment of `MOMENTS`: what was repeated and whether the end is the same."""
    space = planned(work, PHANTOM)
    undisturbed = Training(space, work / "undisturbed")
    if undisturbed.run().exit_status:
        raise RuntimeError("the undisturbed training failed")
    rows = []
    for number, moments in enumerate(MOMENTS):
        training = Training(space, work / f"kill_{number}")
        found = killed_and_continued(training, moments, undisturbed.final_state())
        rows.append(
            {
                "moments": list(map(str, moments)),
                "killed": found.killed,
                "epochs_begun": [run.epochs for run in found.runs],
                "epochs_repeated": found.repeated,
                "differences": found.changed,
                "unfinished_files": found.left_over,
            }
        )
        shutil.rmtree(training.results)
    names = ("epochs", "iterations", "validation_iterations", "save_every", "seed")
    length = dict(zip(names, map(int, undisturbed.length.split(","))))
    return {"training": length, "settings": undisturbed.settings, "seed_of_the_moments": SEED, "kills": rows}


def inputs(work: Path) -> dict[str, Any]:
    """Every row of the table of bad inputs: status, what was said and what was written."""
    space = planned(work, SMALL_PHANTOM)
    killed = Training(space, work / "killed", dataset=SMALL_PHANTOM.name, settings={})
    if not killed.run(Moment("train_step", 10)).killed:
        raise RuntimeError("the training to be continued was not killed")
    rows = []
    for bad in TABLE:
        folder = work / "input"
        found = answer(bad, place_for(bad, folder, work, SMALL_PHANTOM.name, killed.results))
        shutil.rmtree(folder)
        said = found.said[found.said.rfind("genseg: ") :] if "genseg: " in found.said else found.said
        for there, name in ((str(folder), "FOLDER"), (sys.prefix, "VENV"), (str(ROOT), "REPOSITORY")):
            said = said.replace(there, name)
        rows.append(
            {
                "name": bad.name,
                "command": " ".join(("genseg", *bad.arguments)).replace("{id}", "903").replace("{folder}", "FOLDER"),
                "status": found.status,
                "said": said.strip(),
                "expected": bad.message in found.said and found.status == 2,
                "traceback": "Traceback" in found.said,
                "written": found.changed,
            }
        )
    return {"inputs": rows}


def memory(work: Path) -> dict[str, Any]:
    """Resident memory of a long training on the CPU."""
    outcome = long_training(planned(work, PHANTOM), work / "memory").run()
    if outcome.exit_status:
        raise RuntimeError(outcome.trace)
    return {
        "iterations": ITERATIONS,
        "warm_up": WARM_UP,
        "settings": SETTINGS,
        "slope_bytes_per_iteration": memory_slope(outcome.memory, WARM_UP),
        "bound_bytes_per_iteration": BOUND,
        "patch_batch_bytes": PATCH_BATCH,
        "seconds": outcome.seconds,
        "resident_bytes": outcome.memory,
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"kills": kills, "inputs": inputs, "memory": memory}


def main() -> None:
    """Measures the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where phantoms and trainings are written")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    chosen = parser.parse_args()
    for part in chosen.parts or PARTS:
        record = {
            "command": f"python benchmarks/reliability.py --work FOLDER {part}",
            **provenance("cpu"),
            **PARTS[part](chosen.work.resolve()),
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{part}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
