import json

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.preflight import (
    require_cases,
    require_description,
    require_foreground,
    require_labels,
    require_previous_stage,
    require_splits,
    shown_classes,
    warn_of_seen,
)

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Received empty chunks")
CASES = ["case.1", "case_2", "case_3", "case_4", "case_5"]
REMEDY = "first train configuration 3d_lowres with -tr GenSegTrainer to its end, every fold or `all`"
LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORING = LabelManager({"background": 0, "a": 1, "ignore": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2, 4], "core": [2, 4]}, [1, 2])
SHAPES = [(1, 6, 7), (4, 6, 7)]
"""Of 2D cases, which are volumes of one slice, and of 3D ones."""


def save(folder, case, segmentation, locations=None):
    """As nnU-Net's preprocessing does."""
    if locations is None:
        locations = {label: np.argwhere(segmentation == label) for label in range(1, 5)}
    image = np.zeros((1, *segmentation.shape), np.float32)
    properties = {"class_locations": locations}
    nnUNetDatasetBlosc2.save_case(image, segmentation[None].astype(np.int8), properties, str(folder / case))


def labelled(shape, *values):
    segmentation = np.zeros(shape, np.int8)
    for i, value in enumerate(values):
        segmentation[:, i] = value
    return segmentation


@pytest.mark.parametrize("shape", SHAPES)
def test_declared_labels_are_accepted_and_foreground_is_found(shape, tmp_path):
    save(tmp_path, "empty", labelled(shape, -1))
    save(tmp_path, "full", labelled(shape, -1, 1, 2))
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    assert require_labels(dataset, ["empty", "full"], LABELS)
    assert not require_labels(dataset, ["empty"], LABELS)
    assert require_labels(dataset, ["full"], IGNORING), "the ignore label is declared"


@pytest.mark.parametrize("shape", SHAPES)
def test_undeclared_labels_are_named_with_their_case(shape, tmp_path):
    save(tmp_path, "good", labelled(shape, 1))
    save(tmp_path, "bad", labelled(shape, 1, 3, 7))
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    found = r"case bad holds labels that dataset\.json does not declare: 3, 7; declared are 0, 1, 2\. Correct labelsTr"
    with pytest.raises(GenSegError, match=found):
        require_labels(dataset, ["good", "bad"], LABELS)
    assert require_labels(dataset, ["good"], LABELS)


def test_a_gap_between_the_labels_of_regions_is_not_declared(tmp_path):
    save(tmp_path, "declared", labelled((1, 6, 7), 4, 1))
    save(tmp_path, "gap", labelled((1, 6, 7), 4, 3))
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    assert require_labels(dataset, ["declared"], REGIONS)
    with pytest.raises(GenSegError, match=r"case gap holds labels .*: 3; declared are 0, 1, 2, 4"):
        require_labels(dataset, ["gap"], REGIONS)


def test_annotated_background_is_no_foreground(tmp_path):
    """With an ignore label nnU-Net lists all annotated voxels under a tuple that holds a negative label."""
    segmentation = labelled((1, 6, 7), 2)
    save(tmp_path, "case", segmentation, {1: [], (-1, 0, 1): np.argwhere(segmentation == 0)})
    save(tmp_path, "region", segmentation, {(1, 2): np.argwhere(segmentation == 2)})
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    assert not require_labels(dataset, ["case"], IGNORING)
    assert require_labels(dataset, ["region"], IGNORING)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
@pytest.mark.parametrize("fault", ["missing", "garbage"])
def test_a_case_that_cannot_be_read_is_named(ending, fault, tmp_path):
    save(tmp_path, "good", labelled((1, 6, 7), 1))
    save(tmp_path, "bad", labelled((1, 6, 7), 1))
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    path = tmp_path / f"bad{ending}"
    path.unlink()
    if fault == "garbage":
        path.write_bytes(b"{ this is neither")
    with pytest.raises(GenSegError, match=r"case bad cannot be read .*; run nnUNetv2_plan_and_preprocess"):
        require_labels(dataset, ["good", "bad"], LABELS)


def test_a_segmentation_damaged_inside_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3, (8, 32, 32)).astype(np.int8)
    save(tmp_path, "bad", noise)
    path = tmp_path / "bad_seg.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    try:
        changed = np.array_equal(blosc2.open(str(path), mode="r")[:][0], noise)
    except Exception:
        changed = True
    assert changed, "the damage shows"
    with pytest.raises(GenSegError, match="case bad"):
        require_labels(nnUNetDatasetBlosc2(str(tmp_path)), ["bad"], LABELS)


def test_a_fold_without_foreground_is_refused(tmp_path):
    save(tmp_path, "empty", labelled((1, 6, 7), -1))
    with pytest.raises(GenSegError, match="no training case of this fold holds a voxel of a foreground class"):
        require_foreground(nnUNetDatasetBlosc2(str(tmp_path)), LABELS)
    save(tmp_path, "full", labelled((1, 6, 7), 1))
    require_foreground(nnUNetDatasetBlosc2(str(tmp_path)), LABELS)


@pytest.mark.parametrize("missing", ["labels", "channel_names"])
def test_a_description_without_what_nnunet_needs_is_refused(missing):
    whole = {"labels": {"background": 0}, "channel_names": {"0": "MRI"}, "file_ending": ".png"}
    require_description(whole)
    require_description({"labels": {}, "modality": {"0": "MRI"}})
    with pytest.raises(GenSegError, match=rf"dataset\.json has no `{missing}`, found .*file_ending"):
        require_description({key: value for key, value in whole.items() if key != missing})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": ["a"]}, r"`labels` in dataset\.json must be a mapping of names to labels .*found \['a'\]"),
        ({"labels": {"0": "background"}}, r"`labels` .*found 'background'"),
        ({"channel_names": ["MRI"]}, r"`channel_names` in dataset\.json must be a mapping of numbers to names"),
        ({"channel_names": {"0": 3}}, r"`channel_names` .*0: .*found 3"),
    ],
)
def test_a_description_of_another_form_is_refused(change, message):
    with pytest.raises(GenSegError, match=message):
        require_description({"labels": {"background": 0, "a": [1, 2]}, "channel_names": {"0": "MRI"}} | change)
    with pytest.raises(GenSegError, match=r"dataset\.json must be a mapping"):
        require_description([change])


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ({"train": [], "val": []}, "must be a list"),
        ([{"train": ["case_2"]}], "must be a list"),
        ([{"train": "case_2", "val": []}], r"must be a list .*0\.train: .*found 'case_2'"),
        ([{"train": [["case_2"]], "val": []}], r"must be a list .*0\.train\.0: .*found \['case_2'\]"),
        ([{"train": [3], "val": []}], r"0\.train\.0: .*found 3"),
        (["case_2"], "must be a list"),
        (3, "must be a list"),
        ("[" * 100_000, "is not valid JSON"),
        ([{"train": ["case_2", "other"], "val": ["strange"]}], "cases that are not preprocessed: other, strange"),
    ],
)
def test_splits_that_nnunet_cannot_follow_are_refused(content, message, tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["case_2"], "val": ["case_3"]}]))
    require_splits(path, CASES)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(GenSegError, match=message):
        require_splits(path, CASES)


def test_few_cases_need_splits_of_their_own(tmp_path):
    require_cases(tmp_path, CASES)
    with pytest.raises(GenSegError, match=r"4 cases, too few for nnU-Net's five-fold .* fold `all`, or write your own"):
        require_cases(tmp_path, CASES[:4])
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["case_2"], "val": ["case_3"]}]))
    require_cases(tmp_path, CASES[:4])
    with pytest.raises(GenSegError, match="not preprocessed: case_2"):
        require_cases(tmp_path, ["case_3"])


def test_validation_cases_that_the_generator_has_seen_are_warned_of():
    said = []
    warn_of_seen({"case_2", "case_3"}, ["case_3", "case_4"], "/generator", said.append)
    assert "generator in /generator was trained on 1 of the 2 validation cases of this fold (case_3)" in said[0]
    warn_of_seen({"case_2"}, ["case_3"], None, said.append)
    assert len(said) == 1


def require(folder, previous):
    both = nnUNetDatasetBlosc2(str(folder), CASES, folder_with_segs_from_previous_stage=str(previous))
    require_previous_stage(both, "3d_lowres", "GenSegTrainer")


@pytest.fixture
def cascade(tmp_path):
    """Folders of cases, and of a previous stage's segmentations of them and of another fold's."""
    for case in CASES:
        save(tmp_path, case, labelled((4, 6, 7), 1))
    previous = tmp_path / "previous"
    previous.mkdir()
    for case in [*CASES, "of another fold"]:
        nnUNetDatasetBlosc2.save_seg(np.zeros((4, 6, 7), np.uint8), str(previous / case))
    return tmp_path, previous


def test_a_first_stage_that_segmented_every_case_is_enough(cascade):
    require(*cascade)


def test_cases_that_the_first_stage_did_not_segment_are_named(cascade):
    folder, previous = cascade
    for case in CASES[:1] + CASES[2:]:
        (previous / f"{case}.b2nd").unlink()
    names = "case.1, case_3, case_4, ..."
    with pytest.raises(GenSegError, match=rf"lacks the segmentations of 4 of 5 cases \({names}\); {REMEDY}"):
        require(folder, previous)
    with pytest.raises(GenSegError, match=rf"{folder}/none, the previous stage's segmentations, is missing; {REMEDY}"):
        require(folder, folder / "none")


def test_a_previous_segmentation_that_is_damaged_or_of_another_shape_is_named(cascade):
    folder, previous = cascade
    nnUNetDatasetBlosc2.save_seg(np.zeros((4, 6, 8), np.uint8), str(previous / "case_3"))
    with pytest.raises(GenSegError, match=r"case case_3 in .* has shape \(4, 6, 8\), but the case \(4, 6, 7\); .*--val"):
        require(folder, previous)
    (previous / "case_2.b2nd").write_bytes(b"")
    with pytest.raises(GenSegError, match=r"segmentation of case case_2 in .* cannot be read .*--val"):
        require(folder, previous)


def test_the_classes_that_a_case_shows_are_found(tmp_path):
    save(tmp_path, "both", labelled((1, 6, 7), 1, 2))
    save(tmp_path, "none", labelled((1, 6, 7), -1))
    save(tmp_path, "regions", labelled((1, 6, 7), 2), {(1, 2): [[0, 0, 0]], 2: []})
    dataset = nnUNetDatasetBlosc2(str(tmp_path))
    classes = {"a": 1, "b": 2, "whole": (1, 2)}
    found = shown_classes(dataset, ["both", "none", "regions"], classes)
    assert found == {"both": {"a", "b"}, "none": set(), "regions": {"whole"}}
    (tmp_path / "both.pkl").write_bytes(b"no pickle")
    with pytest.raises(GenSegError, match="preprocessed case both cannot be read"):
        shown_classes(dataset, ["both"], classes)
