"""The unlabelled images of a training: which they are, and patches of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from torch import Tensor

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.trainers.loading import unaugmented
from nnunetv2_genseg.trainers.preflight import first_of
from nnunetv2_genseg.trainers.unlabelled import NAMED, preprocess_beside

FILE_NAME = "genseg_unlabelled.json"
"""The unlabelled images that a training uses, by folder, and those of them by which it is validated or tested."""


class UnlabelledCases:
    """Preprocesses the images of `unlabelled.images` beside the dataset, unless that was done before, and loads patches of them.

    Images of the dataset's own `imagesTr` that train with labels are left out.

    Args:
        trainer: a GenSeg trainer of nnU-Net, its cases split.

    Raises:
        GenSegError: a folder holds no images for it, or the trainer is the second stage of a cascade.
    """

    def __init__(self, trainer: Any) -> None:
        if trainer.is_cascaded:
            raise GenSegError(
                "unlabelled.images cannot be used in the second stage of a cascade, since there is no previous segmentation of "
                "them; use them in the first stage, and train the second one without"
            )
        self.trainer = trainer
        folder, found = preprocess_beside(trainer, [Path(name) for name in trainer.genseg.unlabelled.images])
        own, of_fold = _raw(trainer), trainer._held_out.of_fold
        self.images = {
            name: file
            for name, file in found.items()
            if not (own and file.parent.resolve() == (own / "imagesTr").resolve() and _case(file) in of_fold["training"])
        }
        """The first file of each image, by the name of the preprocessed case."""
        if not self.images:
            raise GenSegError("all images in unlabelled.images train with labels already; name a folder with others, or none")
        validated = set(of_fold["validation"]) - set(of_fold["training"])
        tested = {(own / "imagesTs").resolve()} if own else set()
        self.judged_by = sorted(
            str(file) for file in self.images.values() if _case(file) in validated or file.parent.resolve() in tested
        )
        """Files of the images whose segmentations judge the training."""
        dataset = infer_dataset_class(str(folder))(str(folder), sorted(self.images))
        self._loader = unaugmented(trainer, dataset, 1, 0.0)

    def patches(self, count: int) -> Iterator[tuple[Tensor, str]]:
        """(1, C, *spatial) patches on the device one after another, not augmented, and the case of each.

        Global random states stay.
        """
        with self.trainer._own_random_state():
            batches = [next(self._loader) for _ in range(count)]
        for batch in batches:
            yield batch["data"].to(self.trainer.device, non_blocking=True), str(batch["keys"][0])

    def announce(self, log: Callable[[str], None]) -> None:
        """Logs how many images there are, with a warning if some of them judge the training."""
        count = len(self.images)
        log(f"GenSeg: pairs are also made from {count} unlabelled image{'s' * (count > 1)}")
        if _raw(self.trainer) is None:
            log("GenSeg WARNING: nnUNet_raw is not set, so unlabelled images that train with labels are not left out")
        if self.judged_by:
            names = first_of([Path(file).name for file in self.judged_by])
            log(
                f"GenSeg WARNING: {len(self.judged_by)} of the unlabelled images have the names of this fold's validation cases "
                f"or belong to imagesTs ({names}), so the scores on them are transductive; say so where you report them"
            )

    def write(self, folder: Path, **further: float) -> None:
        """Records the images, and what else is given, in `genseg_unlabelled.json` in an existing folder."""
        by_folder: dict[str, list[str]] = {}
        for file in self.images.values():
            by_folder.setdefault(str(file.parent.resolve()), []).append(_case(file))
        content: dict[str, Any] = {
            "images": {name: sorted(cases) for name, cases in by_folder.items()},
            "transductive": self.judged_by,
            **further,
        }
        write_text_atomically(json.dumps(content, indent=2) + "\n", folder / FILE_NAME)


def _case(file: Path) -> str:
    name = NAMED.fullmatch(file.name)
    return name["case"] if name else file.name


def _raw(trainer: Any) -> Path | None:
    """Folder of the dataset's raw images, if nnU-Net's environment names one."""
    raw = os.environ.get("nnUNet_raw")
    return Path(raw).resolve() / trainer.plans_manager.dataset_name if raw else None
