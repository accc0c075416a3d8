"""The parts of the benchmarks that could be wrong without anybody noticing."""

import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image
from skimage.io import imread, imsave
from torch.utils.flop_counter import FlopCounterMode

import building
import cells
import defaults_report
import feedback
import gain
import gain_report
import generators
import generators_report
import growth
import iterations
import labels_report
import operations
import parts
import provenance
import raw_datasets
import report
import scaling
import speed_report
import surface
from defaults_report import EVIDENCE
from nnunetv2_genseg.config import GenSegConfig, checked
from pair_values_report import by_kind, compared, pair_values

FOLDER = Path(__file__).parents[2] / "benchmarks"


def result(arm, seed, dice, dataset="101"):
    cases = {f"case{i}": {"1": {"Dice": value, "IoU": 0.0}} for i, value in enumerate(dice)}
    known = [value for value in dice if value is not None]
    return {
        **{"dataset": dataset, "budget": 20, "configuration": "2d", "scale": "mini", "iterations": 4000},
        **{"arm": arm, "seed": seed, "parts": {"test": {"dice": float(np.mean(known)), "cases": cases}}},
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_module_can_be_imported(name):
    importlib.import_module(name)


def test_how_far_feedback_moved_the_generator_is_read_at_the_end_of_the_defaults_trainings():
    def told(arm, seed, *shares):
        progress = [{"epoch": 0.0}, *({"largest_kernel_share": share} for share in shares), {"epoch": 3.0}]
        return result(arm, seed, [0.5]) | {"progress": progress}

    ours = [told("genseg", 0, 0.4, 0.35), told("genseg", 1, 0.36), told("genseg", 2)]
    others = [
        told("genseg_fast", 0, 0.9),
        told("genseg", 2, 0.1) | {"budget": 5},
        told("genseg", 3, 0.8) | {"iterations": 16_000},
    ]
    text = " ".join(gain_report.moved(ours + others).split())
    assert "is 0.333 at the start. At the end of 2 trainings it was 0.350 to 0.360." in text
    assert gain_report.moved(others) == ""


def test_what_a_part_gives_is_the_arm_with_it_less_the_arm_without():
    runs = [result(arm, seed, [dice + seed / 100]) for arm, dice in (("genseg", 0.53), ("genseg_random", 0.5)) for seed in (0, 1)]
    runs += [result("stock", 0, [0.4])]
    (line,) = gain_report.steps(runs, "test").splitlines()[2:]
    assert line == "| feedback | **+3.0 ± 0.0** (2) |"
    (same,) = gain_report.steps([run | {"budget": 5} for run in runs], "test", 5).splitlines()[2:]
    assert same == line
    assert len(gain_report.steps(runs, "test", 5).splitlines()) == 2, "no dataset has results"
    assert not gain_report.compared(runs, "test", 20), "that is the usual number"


def test_every_arm_is_a_valid_configuration_and_every_cell_has_its_own_name():
    for name, arm in cells.ARMS.items():
        checked(GenSegConfig, arm.settings, name)
    every = {cell for grid in cells.GRIDS.values() for cell in grid}
    assert len({cell.name for cell in every}) == len(every)
    assert all(cell.arm in cells.ARMS for cell in every)
    assert all(cells.MONTGOMERY in cell.parts for cell in every if cell.unlabelled == cells.MONTGOMERY)
    assert all(cells.Cell.from_json(json.dumps(asdict(cell))) == cell for cell in every)
    for_choices = [cell for cell in every if "screening" in str(cell.result(Path()))]
    assert for_choices
    assert all(cell.parts == ("validation",) and cell.budget <= 40 for cell in for_choices)


def test_the_comparison_is_run_seed_by_seed_and_what_tells_most_comes_first():
    order = [(cell.seed, cell.dataset, cell.arm) for cell in cells.GRIDS["long"]]
    assert order == [
        (seed, dataset, arm)
        for seed in range(5)
        for dataset in ("102", "104", "101", "105", "103")
        if seed < 3 or dataset == "102"
        for arm in ("stock", "genseg", "genseg_random_without_redraw", "genseg_deformation")
    ]
    assert {cell.iterations for cell in cells.GRIDS["long"] if cell.dataset != "104"} == {4000}
    assert {cell.iterations for cell in cells.GRIDS["long"] if cell.dataset == "104"} == {2400}


def test_validation_cases_belong_to_no_budget_that_choices_are_made_at():
    assert max(cells.BUDGET.values()) <= raw_datasets.VALIDATION_RANKS.start


def test_the_difference_is_paired_by_case_and_seed():
    stock = [result("stock", 0, [0.1, 0.5, 0.9]), result("stock", 1, [0.2, 0.6, 0.8])]
    better = [result("ours", seed, [d + 0.1 for d in dice]) for seed, dice in ((0, [0.1, 0.5, 0.9]), (1, [0.2, 0.6, 0.8]))]
    mean, low, high = gain_report.paired_difference(better, stock, "test")
    assert np.allclose([mean, low, high], 0.1)
    assert gain_report.paired_difference([result("ours", 7, [0.5])], stock, "test") is None


def test_arms_are_compared_on_the_cases_that_all_were_judged_on():
    half = result("genseg", 0, [0.7])
    half["parts"]["test"]["cases"] = {"case1": half["parts"]["test"]["cases"]["case0"]}
    first, second = gain_report.on_the_same_cases([result("stock", 0, [0.9, 0.5]), half], "test")
    assert (first["parts"]["test"]["dice"], second["parts"]["test"]["dice"]) == (0.5, 0.7)
    assert list(first["parts"]["test"]["cases"]) == ["case1"]
    assert gain_report.on_the_same_cases([half], "montgomery") == []


@pytest.mark.parametrize("configuration, scale, iterations", [("3d_fullres", "coarse", 1600), ("2d", "small", 2400)])
def test_volumes_and_larger_images_have_tables_of_their_own(configuration, scale, iterations):
    usual = {"budget": 10, "iterations": 2400}
    of_scale = usual | {"configuration": configuration, "scale": scale, "iterations": iterations}
    every = [
        result(arm, seed, [dice + seed / 100], "104") | of_scale
        for arm, dice in (("stock", 0.8), ("genseg", 0.81), ("genseg_deformation", 0.83))
        for seed in range(2)
    ]
    small = [result(arm, 0, [dice], "104") | usual for arm, dice in (("stock", 0.5), ("genseg", 0.6))]
    lines = gain_report.summary(every + small, "test", scale=scale).splitlines()
    assert lines[0] == "| arm | hippocampus, N = 10 |", "one dataset has no mean"
    assert lines[2] == "| GenSeg (default) | **+1.0 ± 0.0** (2) |"
    assert "| deformation | **+3.0 ± 0.0** (2) |" in gain_report.steps(every + small, "test", scale=scale)
    assert gain_report.compared(small, "test", scale=scale) == {}
    assert "+10.0" in gain_report.summary(every + small, "test")


def test_longer_trainings_are_shown_beside_usual_ones_with_the_same_seeds_and_arms():
    usual = [("stock", 0, 0.5), ("genseg", 0, 0.52), ("stock", 1, 0.1), ("genseg", 1, 0.9), ("genseg_random", 0, 0.6)]
    usual += [("genseg_da5", 0, 0.6), ("stock_da5", 0, 0.55)]
    more = [("stock", 0, 0.5), ("genseg", 0, 0.54), ("genseg_da5", 0, 0.65), ("stock_da5", 0, 0.5)]
    every = [result(arm, seed, [dice], "102") for arm, seed, dice in usual]
    assert gain_report.longer(every, "test") == ""
    every += [result(arm, seed, [dice], "102") | {"iterations": 16_000} for arm, seed, dice in more]
    lines = gain_report.longer(every, "test").splitlines()
    assert lines[0] == "| arm | breast ultrasound, N = 20, 4,000 | breast ultrasound, N = 20, 16,000 |"
    assert "| GenSeg (default) | +2.0 (1) | +4.0 (1) |" in lines, "seed 1 has no long training"
    assert "| all, added to nnUNetTrainerDA5 | +5.0 (1) | +15.0 (1) |" in lines
    assert not [line for line in lines if "without feedback" in line], "no long training"


def test_the_interval_widens_with_the_spread_over_cases():
    stock = [result("stock", 0, [0.5] * 40)]
    mean, low, high = gain_report.paired_difference([result("ours", 0, [0.4, 0.8] * 20)], stock, "test")
    assert np.isclose(mean, 0.1)
    standard_error = 0.2 / np.sqrt(40)
    assert np.isclose(high - low, 2 * 1.96 * standard_error, rtol=0.15)


def test_a_case_without_foreground_counts_1_where_nothing_is_predicted(tmp_path):
    for content in (result("stock", 0, [0.5, None, 0.0]), result("genseg", 0, [0.5, 0.0, 0.0])):
        (tmp_path / f"{content['arm']}.json").write_text(json.dumps(content))
    wrong, stock = gain_report.load_gain(tmp_path)
    assert gain_report.case_dice(stock, "test") == {"case0": 0.5, "case1": 1.0, "case2": 0.0}
    assert stock["parts"]["test"]["dice"] == 0.5
    assert np.isclose(gain_report.paired_difference([wrong], [stock], "test")[0], -1 / 3), "a false positive costs"
    assert " | 33 % | " in gain_report.table([stock], "test"), "one of three has a Dice of 0"


def test_an_arm_without_stock_has_no_difference():
    every = [result("genseg", 0, [0.5], "102"), result("stock", 0, [0.25]), result("genseg", 0, [0.5])]
    lines = [line.split(" | ") for line in gain_report.table(every, "test").splitlines()[2:]]
    assert [(line[0][2:], line[5], line[8]) for line in lines] == [
        ("101 foot ulcer", "stock", ""),
        ("101 foot ulcer", "genseg", "+25.0 [+25.0, +25.0]"),
        ("102 breast ultrasound", "genseg", ""),
    ]


def test_the_table_says_what_each_seed_differs_by_and_the_summary_the_mean_over_datasets():
    every = [result("stock", seed, [0.5], name) for seed in range(3) for name in ("102", "103")]
    every += [result("genseg", seed, [0.6 + seed / 20], "102") for seed in (0, 2, 5)] + [result("genseg", 1, [0.4], "103")]
    lines = [line.split(" | ") for line in gain_report.table(every, "test").splitlines()[2:]]
    assert [line[6:10] for line in lines if line[5] == "genseg"] == [
        ["0.717 ± 0.126 (3)", "0 %", "+15.0 [+15.0, +15.0]", "+10.0, +20.0"],
        ["0.400 (1)", "0 %", "-10.0 [-10.0, -10.0]", "-10.0"],
    ]
    head, _, line = gain_report.summary(every, "test").splitlines()
    assert head == "| arm | breast ultrasound, N = 20 | chest X-ray, N = 20 | mean |"
    assert line == "| GenSeg (default) | **+15.0 ± 5.0** (2) | -10.0 (1) | +2.5 |"
    assert "mean | |" not in gain_report.summary(every[:4], "test"), "an arm that lacks a dataset has no mean"


def test_cases_of_one_group_are_drawn_together():
    stock = [result("stock", 0, [0.5] * 40)]
    alone = result("ours", 0, [0.4] * 20 + [0.8] * 20)
    together = alone | {"groups": {f"case{i}": f"seq{i // 10}" for i in range(40)}}
    (mean, low, high), (same, lower, higher) = (gain_report.paired_difference([one], stock, "test") for one in (alone, together))
    assert np.isclose(mean, same)
    assert higher - lower > 2 * (high - low)


def test_the_headroom_is_that_of_the_same_plans_and_a_gain_is_its_share():
    every = [result("stock", seed, [0.5 + seed / 100], "102") for seed in range(2)]
    every += [result("stock", seed, [0.7 + seed / 100], "102") | {"budget": 80, "planned_for": 20} for seed in range(2)]
    every += [result("stock", 0, [0.9], "102") | {"budget": 80}]
    every += [result("genseg", 0, [0.55], "102"), result("genseg_da5", 0, [0.6], "102")]
    head, _, line = gain_report.headroom(every, "test").splitlines()
    assert head.startswith("| dataset | N | 4N | points from N to 4N |")
    assert line == "| 102 breast ultrasound, N = 20 | 0.505 (2) | 0.705 (2) | 20.0 | 25 % | 50 % |"
    assert not gain_report.headroom(every[:2], "test")
    others = [one | {"dataset": "101"} for one in every if one["arm"] != "genseg_da5"]
    others[-1] = result("genseg", 0, [0.6])
    *_, mean = gain_report.headroom(every + others, "test").splitlines()
    assert mean == "| mean |  |  |  | 38 % |  |", "of the datasets' shares, where all have one"


def at(budgets, arm="stock", **others):
    """Results of two seeds by number of labelled cases and Dice."""
    return [result(arm, seed, [dice], "102") | {"budget": n} | others for n, dice in budgets.items() for seed in range(2)]


def test_a_gain_is_shown_for_each_number_of_labelled_cases_and_as_the_cases_that_stock_needs():
    every = at({20: 0.6}) + at({80: 0.7}, planned_for=20) + at({20: 0.8}, "genseg") + at({20: 0.65}, "stock_da5")
    every += at({5: 0.4}) + at({5: 0.5}, "genseg")
    every += at({5: 0.9}, iterations=16_000) + at({80: 0.1}) + at({40: 0.1}, scale="small") + at({5: 0.9}, "genseg_oracle")
    rows = labels_report.labels_table(every, "test").splitlines()[2:]
    lines = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert lines[1][5] == "**+5.0 ± 0.0** (2)", "nnU-Net's stronger augmentation"
    assert [line[1:4] for line in lines] == [
        ["5", "0.400 (2)", "**+10.0 ± 0.0** (2)"],
        ["20", "0.600 (2)", "**+20.0 ± 0.0** (2)"],
        ["80", "0.700 (2)", ""],
    ]
    assert lines[0][7] == "10", "halfway between 5 and 20 on a logarithmic scale"
    assert not lines[1][7], "stock never had this Dice, and nothing is said of it"
    assert not labels_report.labels_table(at({5: 0.4, 20: 0.6}) + at({5: 0.5}, "genseg"), "test")


def test_the_figure_of_labelled_cases_shows_a_line_an_arm(tmp_path):
    every = at({5: 0.4, 20: 0.6}) + at({5: 0.5, 20: 0.8}, "genseg")
    labels_report.labels_figure(every, "test", tmp_path / "labels.png")
    labels_report.labels_figure([], "test", tmp_path / "none.png")
    shown, empty = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("labels.png", "none.png"))
    colours = [np.all(np.abs(shown.astype(int) - colour) < 3, axis=-1).sum() for colour in ([31, 119, 180], [255, 127, 14])]
    assert min(colours) > 200
    assert not np.any(np.all(np.abs(empty.astype(int) - [31, 119, 180]) < 3, axis=-1))


def test_trainings_of_other_lengths_are_told_apart():
    usual = cells.length("103", "2d", "mini")
    every = [
        result(arm, 0, [dice], dataset="103") | {"iterations": length}
        for length, gain in ((usual, 0.1), (4 * usual, 0.3))
        for arm, dice in (("stock", 0.5), ("genseg", 0.5 + gain))
    ]
    lines = [line.split(" | ") for line in gain_report.table(every, "test").splitlines()[2:]]
    assert [line[8][:5] for line in lines if line[5] == "genseg"] == ["+10.0", "+30.0"]
    kept = list(filter(gain_report.is_compared, [*every, every[0] | {"budget": 40}, every[0] | {"configuration": "3d_fullres"}]))
    assert kept == every[:2]


def test_the_figure_shows_a_bar_and_a_dot_a_seed_for_every_arm(tmp_path):
    every = [
        result(arm, seed, [0.5 + gain + seed / 100], "102")
        for seed in range(2)
        for arm, gain in (("stock", 0.0), ("genseg", 0.2))
    ]
    gain_report.figure(every, "test", tmp_path / "gain.png")
    gain_report.figure(every[::2], "test", tmp_path / "stock.png")  # stock alone
    shown, empty = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("gain.png", "stock.png"))
    orange = (shown[..., 0] > shown[..., 2].astype(int) + 60).sum()
    assert orange > 5000
    assert (empty[..., 0] > empty[..., 2].astype(int) + 60).sum() == 0


def test_pages_are_made_of_the_results_that_are_there():
    pages = report.pages(FOLDER / "results")
    assert "benchmarks.md" in pages
    for name, text in pages.items():
        assert text == (FOLDER.parent / "docs" / name).read_text(encoding="utf-8"), f"run: python benchmarks/report.py ({name})"
    assert (FOLDER.parent / "docs" / "images" / "gain.png").is_file()


def test_every_setting_has_its_line_of_evidence():
    page = defaults_report.defaults()
    for key in GenSegConfig().flat():
        assert key == "seed" or key.startswith(("mixing.sources.", "paste.kinds.")) or f"| `{key}` |" in page
    assert "| `mixing.sources` | deformation 0.5, redraw 0.5 |" in page
    assert "| `paste.kinds` | box 1 |" in page


def test_results_say_by_which_code_they_were_made(monkeypatch, tmp_path):
    made = provenance.provenance("cpu")
    assert made.keys() == {"commit", "machine", "versions"}
    assert made["versions"].keys() >= {"nnunetv2-genseg", "nnunetv2", "torch"}
    monkeypatch.setenv("GENSEG_COMMIT", "abc")
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert provenance.commit() == "abc"


@pytest.mark.parametrize("scale, side", [("mini", 64), ("small", 128)])
@pytest.mark.parametrize("shape", [(120, 256, 3), (256, 120)])
def test_images_and_labels_are_resampled_alike_and_labels_stay_labels(tmp_path, shape, scale, side):
    image, label = np.zeros(shape, np.uint8), np.zeros(shape[:2], np.uint8)
    image[40:80, 40:100] = 200
    label[40:80, 40:100] = 1
    for name, values in (("image.png", image), ("label.png", label)):
        imsave(tmp_path / name, values, check_contrast=False)
    out = tmp_path / "out"
    out.mkdir()
    raw_datasets.copy_image(tmp_path / "image.png", out, scale, order=1)
    raw_datasets.copy_image(tmp_path / "label.png", out, scale, order=0)
    small, small_label = imread(out / "image.png"), imread(out / "label.png")
    assert max(small.shape[:2]) == side
    assert small.shape[:2] == small_label.shape
    assert small.shape[2:] == shape[2:]
    assert set(np.unique(small_label)) == {0, 1}
    bright = small.reshape(*small.shape[:2], -1)[..., 0] > 100
    assert (bright != (small_label == 1)).mean() < 0.02
    raw_datasets.copy_image(tmp_path / "label.png", out, "full", order=0)
    assert (out / "label.png").read_bytes() == (tmp_path / "label.png").read_bytes()


def test_images_that_are_given_without_labels_are_neither_trained_nor_judged_with_labels(tmp_path):
    source = tmp_path / "raw" / "Dataset103_Lungs"
    for name in ("Tr", "Ts", "Ts_montgomery"):
        for kind, ending in (("images", "_0000.png"), ("labels", ".png")):
            (source / f"{kind}{name}").mkdir(parents=True)
            for case in range(102 if name == "Tr" else 5):
                imsave(source / f"{kind}{name}" / f"{name}{case:02}{ending}", np.zeros((8, 8), np.uint8), check_contrast=False)
    (source / "dataset.json").write_text(json.dumps({"file_ending": ".png"}))
    lines = [f"Tr{case:02},Tr,{101 - case}" for case in range(102)]
    (source / "cases.csv").write_text("\n".join(["case,part,rank", *lines]))

    def given_and_judged(arm, parts=()):
        cell = cells.cell_of("103", arm, 0, scale="mini", parts=parts)
        images = raw_datasets.unlabelled_images(source, cell, tmp_path / "given")
        parts = [raw_datasets.part_of(cell, part, tmp_path / "raw", tmp_path / "parts") for part in cell.parts]
        return [{path.name[:-9] for path in images.iterdir()}, *({path.stem for path in labels.iterdir()} for _, labels in parts)]

    everywhere = {f"Ts_montgomery{case:02}" for case in range(5)}
    given, test, elsewhere = given_and_judged("genseg_unlabelled")
    assert given == {f"Tr{case:02}" for case in range(82)}, "the first 20 by rank have labels"
    assert test == {f"Ts{case:02}" for case in range(5)}
    assert elsewhere == everywhere
    given, validated = given_and_judged("genseg_unlabelled", ("validation",))
    assert len(validated) == 60
    assert given == {f"Tr{case:02}" for case in range(82)} - validated
    given, test, elsewhere = given_and_judged("genseg_unlabelled_montgomery")
    assert test == {f"Ts{case:02}" for case in range(5)}
    assert given and elsewhere and given | elsewhere == everywhere and not given & elsewhere


@pytest.mark.parametrize("first", [0, 1])
def test_volumes_become_coarser_in_place_and_labels_stay_labels(tmp_path, first):
    values = np.zeros((20, 31, 24), np.float32)
    values[4 + first : 13 + first, 6 + first : 23 + first, 4 + first : 19 + first] = 100
    out = tmp_path / "out"
    out.mkdir()
    for name, kind in (("image.nii.gz", np.float32), ("label.nii.gz", np.uint8)):
        volume = SimpleITK.GetImageFromArray((values / (1 if kind is np.float32 else 50)).astype(kind))
        volume.SetSpacing((1.0, 2.0, 3.0))
        SimpleITK.WriteImage(volume, tmp_path / name)
        raw_datasets.copy_image(tmp_path / name, out, cells.COARSE, order=int(kind is np.float32))
    image, label = (SimpleITK.ReadImage(out / name) for name in ("image.nii.gz", "label.nii.gz"))
    assert label.GetSpacing() == image.GetSpacing() == (2.0, 4.0, 6.0)
    assert label.GetOrigin() == image.GetOrigin() == (0.0, 0.0, 0.0)
    bright, mask = SimpleITK.GetArrayFromImage(image), SimpleITK.GetArrayFromImage(label)
    assert np.array_equal(mask, 2 * (values[::2, ::2, ::2] > 0))
    inside = np.argwhere(mask == 2).mean(axis=0)
    centre = [np.average(place, weights=bright) for place in np.indices(bright.shape)]
    assert np.allclose(centre, inside, atol=0.3)
    assert bright[mask == 2].mean() > 60 > 10 > bright[mask == 0].mean()


def test_a_training_costs_the_mean_of_its_stages_weighed_by_the_schedule():
    shares = {name: round(end - begin, 6) for name, (begin, end) in iterations.stages(GenSegConfig()).items()}
    assert shares == {"warm-up": 0.2, "ramp": 0.1, "pairs and feedback": 0.55, "tail": 0.15}
    late = checked(GenSegConfig, {"feedback": {"start": 0.5}, "schedule": {"ramp": 0.0}}, "")
    assert list(iterations.stages(late)) == ["warm-up", "pairs", "pairs and feedback", "tail"]
    without = checked(GenSegConfig, {"feedback": {"enabled": False}}, "")
    assert list(iterations.stages(without)) == ["warm-up", "ramp", "pairs", "tail"]

    interval = GenSegConfig().feedback.interval
    steps = [13.0, *[2.0, 4.0] * interval][:interval]  # the first with feedback, every second with the generator
    seconds = {
        "stock": [[(1.0, 2.0)] * 4] * 3,
        "warm-up": [[(1.0, 5.0)] * 4] * 2 + [[(90.0, 90.0)] * 4],
        "ramp": [[(1.0, 5.0)] * 4] * 3,
        "pairs and feedback": [[(1.0, step) for step in steps]] * 3,
        "tail": [[(1.0, 2.0)] * 4] * 3,
    }
    found = iterations.summary(seconds, GenSegConfig())
    mean = sum(steps) / len(steps)
    assert found["stage_ratios"]["warm-up"] == 2.0, "the median of the turns"
    assert found["stage_seconds"]["warm-up"] == {"median": 6.0, "least": 6.0, "most": 180.0}
    assert found["iteration_ratio"] == pytest.approx((0.3 * 6 + 0.55 * (1 + mean) + 0.15 * 3) / 3, abs=1e-3)
    assert found["step_ratio"] == pytest.approx((0.3 * 5 + 0.55 * mean + 0.15 * 2) / 2, abs=1e-3)
    assert found["feedback_iterations"] == pytest.approx((13 - 4) / 3, abs=0.01)


def test_waits_for_the_device_are_counted_without_those_of_optimisers():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], foreach=False)

    class Trainer:
        dataloader_train = iter([0, 3, 1, 0, 2])

        def on_train_epoch_start(self):
            pass

        def train_step(self, waits):
            weight.grad = torch.ones(2)
            optimizer.step()
            for _ in range(waits):
                float(weight.detach().sum())

    assert operations.count_steps(Trainer(), 3, 5, operations.Counter()) == [0, 3, 1, 0, 2]


def test_operations_are_those_that_torch_counts_and_bytes_are_read_and_written():
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 6, 3))
    network.insert(1, torch.nn.ConvTranspose2d(4, 4, 2, 2))
    network.insert(2, torch.nn.Conv2d(4, 4, 3, stride=2, padding=1))
    image = torch.randn(2, 2, 8, 8, requires_grad=True)
    counter, of_torch = operations.Counter(), FlopCounterMode(display=False)
    with of_torch:
        network(image).square().sum().backward()
    with operations.counting(counter):
        network(image).square().sum().backward()
    assert counter.flops > 0
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5):  # older ones count backward convolutions wrongly
        assert counter.flops == of_torch.get_total_flops()
    assert (counter.backward, counter.waits) == (1, 0)
    before = counter.bytes
    with operations.counting(counter):
        image.detach().add(1).view(4, 64)  # a view moves nothing
    assert counter.bytes - before == 2 * 4 * image.numel()


def test_time_in_an_inner_part_does_not_count_for_the_outer_one_but_within_the_feedback():
    now = [0.0]

    def passing(seconds, inner=None):
        now[0] += seconds
        if inner is not None:
            inner()

    stopwatch = parts.Stopwatch(lambda: now[0])
    draw, step, feedback = (lambda: passing(2), lambda: passing(3, work.draw), lambda: passing(5, work.draw))
    work = SimpleNamespace(draw=draw, step=step, feedback=feedback)
    for name, part in (("draw", "drawing"), ("step", "generator step"), ("feedback", parts.FEEDBACK)):
        stopwatch.wrap(work, name, part)
    for function in (work.step, work.draw, work.feedback):
        function()
    assert stopwatch.passed == {"generator step": 3, "drawing": 4, parts.FEEDBACK: 7}


def test_the_label_maps_of_growing_phantoms_show_all_classes_and_background():
    for classes in (2, 118):
        for shape in ((64, 64), (16, 32, 24)):
            assert np.array_equal(np.unique(growth.blocks(shape, classes)), np.arange(classes + 1))


def test_a_gradient_is_compared_with_what_was_measured_by_batch_and_in_the_mean():
    rng = np.random.default_rng(0)
    slopes = rng.standard_normal((8, 1))
    measured = slopes + rng.standard_normal((8, 400))
    found = feedback.comparison(measured, np.broadcast_to(slopes / 2, measured.shape))
    assert found["each"] == pytest.approx(np.std(slopes) / np.sqrt(np.var(slopes) + 1), abs=0.05)
    assert found["mean"] == pytest.approx(1, abs=0.02)
    assert found["ratio"] == pytest.approx(2, abs=0.2)


def test_a_value_that_tells_the_kind_alone_is_told_apart_from_one_that_tells_the_pair():
    rng = np.random.default_rng(0)
    found = []
    for number in range(120):
        kind = ("real", "deformation", "redraw")[number % 3]
        own = rng.normal()
        drawn = {name: rng.normal() for name in ("loss", "agreement_heldout", "agreement_training", "random")}
        known = {"true": own + 5 * (kind == "redraw"), "hard": (kind == "redraw") + rng.normal() / 10, "foreground": -own}
        found.append({"kind": kind, **known, "agreement_validation": known["true"] ** 3, **drawn})
    told = compared(found)
    assert told["agreement_validation"]["rank_correlation"] == pytest.approx(1)
    assert told["agreement_validation"]["best_of_4"] == pytest.approx(1)
    assert told["hard"]["low"] > 0.6
    assert abs(told["hard"]["within_kinds"]) < 0.3
    assert abs(told["random"]["best_of_4"]) < 0.5 and told["random"]["low"] < 0 < told["random"]["high"]
    means = by_kind(found, "true")
    spread = np.std([one["true"] for one in found])
    assert means["redraw"][0] - means["deformation"][0] == pytest.approx(5 / spread, abs=0.25)
    assert means["redraw"][1] == pytest.approx(1 / spread / np.sqrt(40), rel=0.3)
    page = pair_values([{"dataset": "102", "budget": 20, "iterations": 4000, "seed": 0, "candidates": found}])
    assert "| `agreement_validation` | 1.00 [1.00, 1.00] |" in page and "| real | 40 |" in page


def test_the_page_shows_speed_and_memory():
    plan = {"dataset": "104", "configuration": "2d", "patch_size": [40, 56], "batch_size": 14}
    plan |= {"stock_seconds": {"median": 0.2}, "iteration_ratio": 1.4, "step_ratio": 1.5, "stage_ratios": {"tail": 1.0}}
    plan |= {"feedback_iterations": 3.0, "memory_ratio": 1.25, "host_syncs": 4, "feedback_host_syncs": 9, "stock_host_syncs": 1}
    page = speed_report.speed({"machine": "M", "versions": {"torch": "2"}, "commit": "c", "plans": [plan]})
    assert "| 104 | 2d | 40 × 56 | 14 | 200 | **1.40** | 1.50 | tail 1.00 | 3.0 | **1.25** | 4, 9 (1) |" in page


def family_result(family, fidelity, sharpness, passes, configuration="2d"):
    values = {"fidelity": fidelity, "kernel_distance": 1.5, "diversity": 0.75, "sharpness": sharpness}
    real = {"fidelity": 0.8, "kernel_distance": 0.25, "diversity": 1.0, "sharpness": 1.0}
    return {
        **{"family": family, "dataset": "104", "budget": 10, "configuration": configuration, "iterations": 600, "scale": "mini"},
        **{"patch_size": [40, 56], "batch_size": 14, "preset_mode": "residual", "real": real, "deformation": real},
        "redraw": {"residual": values, "tissue": values | {"fidelity": 0.1}},
    }, {
        **{"family": family, "dataset": "104", "budget": 10, "configuration": configuration, "iterations": 600, "scale": "mini"},
        **{"parameters": 1234, "segmenter_parameters": 4936, "seconds_a_pair": 0.01, "pair_in_forward_passes": passes},
        **{"generator_step_in_training_steps": 0.5, "peak_memory_bytes": 2**30},
    }


def test_the_page_of_the_families_shows_costs_and_quality_and_who_misses_a_target():
    made = [family_result("gmm", 0.71, 0.5, 1.9), family_result("gan", 0.73, 0.8, 2.1), family_result("vae", 0.8, 0.5, 1, "3d")]
    results = generators_report.merged([quality for quality, _ in made], [cost for _, cost in made[:2]])
    assert [result["family"] for result in results] == ["gmm", "gan"], "of the third there are no costs"
    page = generators_report.page(results)
    assert page.index("`gan`") < page.index("`gmm`")
    assert "| `gan` | 1,234 (0.25) | 10.0 (2.10) | 0.50 | 1,024 |" in page
    assert "| `gan`, residual | 0.730 (0.91) | 1.50 | 0.75 | 0.80 |" in page
    assert "| deformation | 0.800 (1.00) | 0.25 | 1.00 | 1.00 |" in page
    missed = [line.split("Missed by: ")[1] for line in page.splitlines() if "Missed by" in line]
    assert missed == ["`gan` on 104 2d.", "`gmm` on 104 2d.", "`gmm` on 104 2d."]


def test_families_and_the_networks_that_judge_have_cells_of_their_own():
    every = generators.cells()
    assert len({cell.training for cell in every}) == len(every)
    assert tuple(generators.FAMILIES) == generators_report.FAMILIES
    for dataset, plan in generators.ITERATIONS:
        arms = [cell.arm for cell in every if (cell.dataset, cell.configuration) == (dataset, plan)]
        assert arms == [generators.ORACLE, *generators.FAMILIES], "who judges is trained first"


def test_surface_distance_of_shifted_boxes_is_the_shift_in_mm():
    first = np.zeros((20, 20, 20), dtype=bool)
    first[5:12, 5:12, 5:12] = True
    moved = np.roll(first, 3, axis=0)
    assert surface.hausdorff95(first, first, (2.0, 1.0, 1.0)) == 0
    assert surface.hausdorff95(first, moved, (2.0, 1.0, 1.0)) == 6
    assert np.isnan(surface.hausdorff95(first, np.zeros_like(first), (1.0, 1.0, 1.0)))


def test_surface_distance_leaves_out_the_farthest_twentieth():
    first = np.zeros((64, 64), dtype=bool)
    first[10:40, 10:40] = True
    speck = first.copy()
    speck[60, 60] = True
    assert surface.hausdorff95(first, speck, (1.0, 1.0)) == 0


def test_the_average_of_the_weights_is_delivered_at_the_end_alone():
    class Trainer:
        def initialize(self):
            self.network = torch.nn.Linear(1, 1, bias=False)
            self.saved = []

        def train_step(self, batch):
            torch.nn.init.constant_(self.network.weight, batch["value"])
            return {"loss": 0.0}

        def save_checkpoint(self, filename):
            self.saved.append(self.network.weight.item())

    trainer = Trainer()
    building.deliver_average(trainer, iterations=200)  # a time constant of three iterations
    for value in (3.0, 0.0, 0.0):
        trainer.train_step({"value": value})
    for name in ("checkpoint_latest.pth", "checkpoint_final.pth"):
        trainer.save_checkpoint(name)
    assert trainer.saved == pytest.approx([0.0, 3 * (2 / 3) ** 2])


def test_cells_are_run_by_the_sweep_and_one_that_fails_does_not_keep_the_next_from_its_turn(tmp_path, capsys):
    place = gain.Place(tmp_path / "none", tmp_path / "work", "cpu", tmp_path / "results")
    lost, finished = list(gain.wanted(["long"]))[:2]
    finished.result(place.results).parent.mkdir(parents=True)
    finished.result(place.results).write_text(json.dumps(result("stock", 0, [0.5])))
    gain.run_cells([lost, finished], place, 1, "local")
    said = capsys.readouterr().out
    assert f"{finished.name}: test 0.5000" in said
    assert f"{lost.name}: failed, attempt 2: exit status 1: " in said
    assert cells.Cell.from_json(gain.task_of(lost, place).command[-1]) == lost


def test_the_page_on_scaling_shows_the_figures_that_were_measured_and_computed():
    found = json.loads((FOLDER / "results" / "scaling.json").read_text())
    page = (FOLDER.parent / "docs" / "explanation" / "scaling.md").read_text()
    two, three = (
        [row for row in found["computed"] if row["configuration"] == name and row["faster"] == 100]
        for name in ("2d", "3d_fullres")
    )
    for flat, solid in zip(two, three, strict=True):
        cells = [f"{flat['gpus']:,}"]
        cells += [f"{row[key]:,.1f}" for key in ("loading_cores", "checkpoint_megabytes_per_second") for row in (flat, solid)]
        cells += [f"{100 * row['sweep_share']:.3f} %" for row in (flat, solid)]
        assert f"| {' | '.join(cells)} |" in page
    for key, scale, digits in (
        ("batch_size", 1, 0),
        ("iteration_seconds", 1, 3),
        ("loading_seconds", 1, 3),
        ("parameters", 1e-6, 2),
        ("checkpoint_bytes", 1e-6, 1),
        ("write_seconds", 1, 2),
    ):
        assert " | ".join(f"{row[key] * scale:.{digits}f}" for row in found["measured"]) in page
    assert f"{found['sweep_overhead_seconds']:.3f}" in page
    assert f"{three[-1]['one_training_gradient_megabytes_per_second'] / 1000:.1f} GB/s" in page


def test_two_gpus_send_half_of_the_gradients_each_way_and_a_third_has_no_volume_to_work_on():
    subject = {"iteration_seconds": 2.0, "loading_seconds": 0.5, "batch_size": 2, "parameters": 1e6, "checkpoint_bytes": 25e6}
    one, two, three = (scaling.computed(subject, gpus, 1, 1.0) for gpus in (1, 2, 3))
    assert (one["one_training_gradient_megabytes_per_second"], two["one_training_gradient_megabytes_per_second"]) == (0, 4)
    assert three["one_training_gpus"] == 2
    assert three["loading_cores"] == 0.75
    assert three["checkpoint_megabytes_per_second"] == 0.003


def test_every_figure_in_the_text_stands_in_a_measured_table():
    docs = FOLDER.parent / "docs"
    page, _, _ = (docs / "benchmarks.md").read_text(encoding="utf-8").partition("## Defaults")
    tables = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    texts = {
        str(path.relative_to(docs.parent)): path.read_text(encoding="utf-8")
        for path in (docs.parent / "README.md", *docs.rglob("*.md"))
    }
    del texts["docs/benchmarks.md"]
    texts |= {setting: evidence for setting, evidence in EVIDENCE.items() if "archived" not in evidence}
    found = {
        (name, " ".join(figure.split())) for name, text in texts.items() for figure in re.findall(r"\d\S*\s±\s+\d+\.\d", text)
    }
    assert len(found) > 100
    whole = {figure: re.compile(rf"(?<![\d.]){re.escape(figure)}(?!\d)") for _, figure in found}
    assert not [(name, figure) for name, figure in sorted(found) if not whole[figure].search(tables)]
