"""The cases of a fold, as nnU-Net splits them; told without a trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.preflight import Fold, read_splits


def cases_of_fold(base: Path, data: str, fold: int) -> Fold:
    """The fold's in splits_final.json; beyond its folds the random 80:20 split of `nnUNetTrainer.do_split`.

    Args:
        base: folder of the preprocessed dataset.
        data: name of the folder in it that holds the configuration's cases; nnU-Net's `data_identifier`.
        fold: its number.

    Raises:
        GenSegError: splits_final.json is missing or has another form.
        FileNotFoundError: the fold is beyond the file's, and the cases are not preprocessed.
    """
    path = base / "splits_final.json"
    if not path.is_file():
        raise GenSegError(f"{path}, which says what cases fold {fold} has, is missing; restore it")
    splits = read_splits(path)
    if fold < len(splits):
        return splits[fold]
    folder = str(base / data)
    names = sorted(map(str, infer_dataset_class(folder).get_identifiers(folder)))
    chosen = np.random.RandomState(seed=12345 + fold).choice(len(names), int(len(names) * 0.8), replace=False)
    train = [names[i] for i in chosen]
    return Fold(train=train, val=sorted(set(names) - set(train)))
