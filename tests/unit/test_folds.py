"""The cases of a fold are those that nnU-Net trains on, also those of a fold that splits_final.json does not have."""

import json
from types import SimpleNamespace

import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.pair_folder import PairFolder, fold_cases

CASES = [f"case_{i:02d}" for i in range(13)]
DATA = "nnUNetPlans_2d"


@pytest.fixture
def preprocessed(tmp_path):
    """A preprocessed dataset of thirteen cases with the two folds of a user."""
    (tmp_path / DATA).mkdir()
    for case in CASES:
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (tmp_path / DATA / f"{case}{ending}").touch()
    folds = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:9], "val": CASES[8:11]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    return tmp_path


def pairs_of(cases):
    return PairFolder("pairs", {}, {}, {}, cases, {})


def of_nnunet(base, fold):
    """Training and validation cases by nnU-Net's own method."""
    trainer = SimpleNamespace(
        dataset_class=nnUNetDatasetBlosc2,
        preprocessed_dataset_folder=str(base / DATA),
        preprocessed_dataset_folder_base=str(base),
        folder_with_segs_from_previous_stage=None,
        fold=fold,
        print_to_log_file=lambda *text: None,
    )
    return [list(map(str, cases)) for cases in nnUNetTrainer.do_split(trainer)]


@pytest.mark.parametrize("fold", [0, 1, 2, 7])
def test_cases_are_those_of_nnunet(fold, preprocessed):
    training, validation = of_nnunet(preprocessed, fold)
    found = fold_cases(preprocessed, DATA, str(fold), pairs_of(training))
    assert found == (sorted(training), sorted(set(validation) - set(training)))
    assert len(training) == (11, 9)[fold] if fold < 2 else 10
    with pytest.raises(GenSegError, match=f"made from other training cases than those of fold {fold} in .*{training[0]}"):
        fold_cases(preprocessed, DATA, str(fold), pairs_of(training[1:]))


def test_all_cases_are_those_of_the_pairs(preprocessed):
    assert fold_cases(preprocessed, DATA, "all", pairs_of(["b", "a"])) == (["a", "b"], [])


def test_a_file_of_another_form_and_a_missing_one_are_told(preprocessed):
    path = preprocessed / "splits_final.json"
    path.write_text(json.dumps([{"train": CASES}]))
    with pytest.raises(GenSegError, match=r"splits_final\.json must be a list .*val"):
        fold_cases(preprocessed, DATA, "0", pairs_of(CASES))
    path.unlink()
    with pytest.raises(GenSegError, match=r"splits_final\.json, which says what cases fold 0 has, is missing"):
        fold_cases(preprocessed, DATA, "0", pairs_of(CASES))
