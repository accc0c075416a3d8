"""The judgement of reviewers in a training: reviewed pairs are read once, and what reviewers prefer is learned from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.files.atomic import write_text_atomically
from nnunetv2_genseg.random_state import own_random_state
from nnunetv2_genseg.synthesis.pair_features import pair_features
from nnunetv2_genseg.synthesis.preference import FEWEST, FEWEST_CASES, Evidence, learn
from nnunetv2_genseg.trainers.loading import augmented
from nnunetv2_genseg.trainers.pair_folder import PairFolder, fold_cases
from nnunetv2_genseg.trainers.preflight import require_labels
from nnunetv2_genseg.trainers.progress_bar import with_progress
from nnunetv2_genseg.trainers.raw_cases import RawCases
from nnunetv2_genseg.trainers.review_file import Review, read_review, require_review

FILE_NAME = "genseg_review.json"
"""Which review the training learned from, how many decisions, and whether they can be told from the pairs."""
PATCHES = 6
"""Patches of a pair, or of a real case, that are looked at."""

CASES = 50
"""Real cases that are looked at, about: enough for means and standard deviations, whatever the size of the dataset."""


def learn_preference(trainer: Any) -> None:
    """Makes a GenSeg trainer prefer pairs like those that `review.file` accepts; nothing if there is no such file.

    Args:
        trainer: a GenSeg trainer of nnU-Net, initialised; its cases are split if there is such a file.

    Raises:
        GenSegError: the file or its pairs cannot be used, or belong to another fold; or a training case is faulty.
    """
    record = Path(trainer.output_folder) / FILE_NAME
    if trainer.genseg.review.file is None:
        if trainer.local_rank == 0:
            record.unlink(missing_ok=True)
        return
    path = Path(trainer.genseg.review.file)
    require_review(path)
    pairs = PairFolder.read(path.parent, trainer.plans_manager.dataset_name, str(trainer.fold), None)
    base, data = Path(trainer.preprocessed_dataset_folder_base), trainer.configuration_manager.data_identifier
    fold_cases(base, data, str(trainer.fold), pairs)
    review = read_review(path, pairs.sources)
    looking = _Looking(trainer)
    training = trainer._held_out.of_fold["training"]
    real = looking.at_real_cases(training[:: max(1, len(training) // CASES)])
    reviewed = looking.at_pairs(path.parent, list(review.decisions))
    trainer.loop.synchronise([real, reviewed])  # so that all processes learn the same, to the bit
    acceptance = torch.tensor([review.acceptance(pair) for pair in review.decisions])
    cases = [pairs.sources[pair] for pair in review.decisions]
    preference, found = learn(reviewed, acceptance, cases, real, trainer.loop.codec.foreground)
    trainer.loop.sampler.preference = preference
    trainer.print_to_log_file(_told(review, found))
    if trainer.local_rank == 0:
        content = {"file": str(path.resolve()), "sha256": _digest(path), "pairs": len(review.decisions)}
        content |= {"reviewers": review.reviewers, "accepted": found.accepted, "rejected": found.rejected}
        content |= {"auc": found.auc, "used": preference is not None}
        write_text_atomically(json.dumps(content, indent=2) + "\n", record)


def warn_of_changes(trainer: Any) -> None:
    """Logs a warning if the review is another one than the training learned from, which is part of its state."""
    record = Path(trainer.output_folder) / FILE_NAME
    if trainer.genseg.review.file is None or not record.is_file():
        return
    path = Path(trainer.genseg.review.file)
    if not path.is_file() or _digest(path) != read_json(record, dict[str, Any], "a mapping").get("sha256"):
        trainer.print_to_log_file(
            f"GenSeg WARNING: {path} has changed since this training began, which goes on with what it learned then; to learn "
            "from the new review, start anew without --c"
        )


class _Looking:
    """Sees reviewed pairs as a training sees pairs: patches of them, in nnU-Net's own preprocessing and augmentation.

    Args:
        trainer: a GenSeg trainer of nnU-Net.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.preprocessor = trainer.configuration_manager.preprocessor_class(verbose=False)
        self.description = {key: value for key, value in trainer.dataset_json.items() if key != "dataset"}
        self._case: tuple[Any, ...] = ()
        """The preprocessed case of which patches are looked at, as nnU-Net's datasets give it."""
        one_case = SimpleNamespace(identifiers=[""], load_case=lambda name: self._case)
        self._loader = augmented(trainer, one_case, PATCHES)

    def at_real_cases(self, names: list[str]) -> Tensor:
        """(cases·patches, features) of training cases of the fold.

        Raises:
            GenSegError: a case is faulty.
        """
        dataset = self.trainer.dataset_class(self.trainer.preprocessed_dataset_folder, list(names))
        require_labels(dataset, names, self.trainer.label_manager)
        shown = with_progress(names, "training cases")
        return torch.cat([self._features(dataset.load_case(name), k) for k, name in enumerate(shown)])

    def at_pairs(self, folder: Path, names: list[str]) -> Tensor:
        """(pairs, patches, features) of pairs in a folder.

        Raises:
            GenSegError: a pair cannot be read, or its mask holds undeclared labels.
        """
        plans, configuration = self.trainer.plans_manager, self.trainer.configuration_manager
        cases = RawCases(plans, configuration, self.description, folder, names)
        found = []
        for k, name in enumerate(with_progress(names, "reviewed pairs")):
            raw, segmentation, properties = cases.load(name)
            cases.classes(name, segmentation[0])
            of_npy = (raw, segmentation, dict(properties), plans, configuration, self.description)
            data, labels, completed = self.preprocessor.run_case_npy(*of_npy)
            found.append(self._features((data, labels, None, completed), k))
        return torch.stack(found)

    def _features(self, case: tuple[Any, ...], number: int) -> Tensor:
        """(patches, features) of a preprocessed case; its number seeds the augmentation."""
        trainer, self._case = self.trainer, case
        with own_random_state(trainer.genseg.seed + number, trainer.device):
            parts = trainer._batches.parts(next(self._loader))
        return pair_features(parts.image, parts.labels, trainer.loop.codec.foreground)


def _told(review: Review, found: Evidence) -> str:
    """What is to be said of a review."""
    reviewers = len(review.reviewers)
    counted = (
        f"{len(review.decisions)} pairs judged by {reviewers} reviewer{'s' * (reviewers > 1)}, {found.accepted} accepted, "
        f"{found.rejected} rejected"
    )
    if found.auc is None:
        return (
            f"GenSeg WARNING: {counted}; at least {FEWEST} of each, made from {FEWEST_CASES} cases, are needed, so the review is "
            "not used"
        )
    area = f"{counted}; cross-validated AUC {found.auc:.2f}"
    if not found.holds:
        return (
            f"GenSeg WARNING: {area}, not above {found.needed:.2f}, which decisions made at random may reach; the review is "
            "not used; review more pairs, for then a lower AUC is enough"
        )
    return f"GenSeg: {area}; pairs like the accepted ones are preferred"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
