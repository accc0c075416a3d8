"""The progress picture of the documentation, of a short training on phantoms.

python benchmarks/progress_picture.py --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from building import build_trainer
from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.trainers.recording import PROGRESS_FILE
from preparing import run_nnunet

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "progress.png"
DATASET = PhantomDataset(903, dims=2, training_cases=10, test_cases=1, extent=32)
LENGTH = (40, 10, 1, 40)
"""Epochs, iterations, validation iterations, epochs between checkpoints."""
FEATURES = [8, 16, 32]
"""Channels of the stages: a small network."""


def plan(folder: Path) -> None:
    """Plans the phantoms with nnU-Net, then makes the network small."""
    DATASET.write(folder / "raw")
    options = ("-d", str(DATASET.dataset_id), "-c", "2d", "-np", "1", "-npfp", "1")
    run_nnunet(folder, "nnUNetv2_plan_and_preprocess", *options)
    path = folder / "preprocessed" / DATASET.name / "nnUNetPlans.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    configuration = plans["configurations"]["2d"]
    network = configuration["architecture"]["arch_kwargs"]
    stages = len(FEATURES)
    network |= {"n_stages": stages, "features_per_stage": FEATURES, "n_conv_per_stage": [1] * stages}
    network |= {"n_conv_per_stage_decoder": [1] * (stages - 1)}
    network |= {name: network[name][:stages] for name in ("strides", "kernel_sizes")}
    configuration["batch_size"] = 4
    path.write_text(json.dumps(plans), encoding="utf-8")


def main() -> None:
    """Trains and copies the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work.resolve()
    plan(work)
    settings = {"feedback": {"interval": 2}}
    trainer = build_trainer("GenSegTrainerShort", work, "903", "2d", work / "model", length=LENGTH, settings=settings)
    trainer.run_training()
    shutil.copy(Path(trainer.output_folder) / PROGRESS_FILE, PICTURE)


if __name__ == "__main__":
    main()
