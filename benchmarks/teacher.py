"""Does the agreement of a teacher's labels of mirror images tell how good they are? results/teacher/, one JSON a training.

    python benchmarks/teacher.py --raw PATH/TO/nnUNet_raw --work FOLDER [--dataset 105] [--iterations 1600] [--device cpu]

Trains stock nnU-Net on the labelled cases and measures its moving average several times on the validation part, cases that the
training never sees: by the agreement, which needs no labels, and by the Dice of its labels. Between `POOR` and `GOOD` of
`nnunetv2_genseg/trainers/teacher_quality.py` the share of unlabelled images grows with the agreement.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from building import without_pictures
from cells import Cell, cell_of
from gain import build_cell
from pair_judge import validation_patches
from preparing import Place, prepare
from provenance import provenance

RESULTS = Path(__file__).parent / "results" / "teacher"
TIMES = 10
"""How often a teacher is measured."""


def measured(cell: Cell, place: Place) -> list[dict[str, float]]:
    """Trains; iterations, agreement and Dice at every time."""
    trainer = build_cell(cell, place, place.work / "models" / f"teacher_{cell.training}")
    import torch

    from nnunetv2_genseg.synthesis.pseudo_labels import PseudoLabels
    from nnunetv2_genseg.trainers.planning import label_codec
    from nnunetv2_genseg.trainers.teacher import Teacher
    from nnunetv2_genseg.trainers.teacher_quality import TeacherQuality
    from pair_measures import dice

    without_pictures(trainer)
    trainer.on_train_start()
    teacher = Teacher(trainer.network, cell.iterations)
    codec = label_codec(trainer.label_manager)
    labels = PseudoLabels(codec, 0.5, False, trainer.device)
    image, truth = (values.to(trainer.device) for values in validation_patches(trainer, cell, place))
    points = []
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        for _ in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(trainer.dataloader_train))
            teacher.update(trainer.network)
        if (epoch + 1) % (trainer.num_epochs // TIMES):
            continue
        quality = TeacherQuality(codec.foreground, trainer.device, lambda tensors: None)
        axes = trainer.inference_allowed_mirroring_axes
        quality.measure(image.split(1), lambda patch: labels.classify(teacher(patch))[0], axes)
        drawn = torch.cat([labels.classify(teacher(patch))[0] for patch in image.split(1)])
        iterations = (epoch + 1) * trainer.num_iterations_per_epoch
        points.append({"iterations": iterations, "agreement": quality.agreement, "dice": dice(drawn, truth, codec.foreground)})
        print(points[-1], flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--dataset", default="105")
    parser.add_argument("--iterations", type=int, default=0, help="of the training; the usual ones")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    place = Place(given.raw.resolve(), given.work.resolve(), given.device)
    cell = cell_of(given.dataset, "stock", 0, iterations=given.iterations, parts=("validation",))
    prepare(cell, place)
    command = f"python benchmarks/teacher.py --dataset {cell.dataset} --iterations {cell.iterations}"
    result = {**asdict(cell), "points": measured(cell, place), "command": command, **provenance(given.device)}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"{cell.training}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
