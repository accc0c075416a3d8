"""The parts of the benchmarks that could be wrong without anybody noticing."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.io import imread, imsave

from nnunetv2_genseg import checkpoint
from nnunetv2_genseg.config import GenSegConfig, checked
from nnunetv2_genseg.coupling import LARGEST_SHARE

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def result(arm, seed, dice, dataset="101"):
    cases = {f"case{i}": {"1": {"Dice": value, "IoU": 0.0}} for i, value in enumerate(dice)}
    known = [value for value in dice if value is not None]
    return {
        **{"dataset": dataset, "budget": 20, "configuration": "2d", "scale": "mini", "iterations": 10, "cpu_seconds": 2.0},
        **{"arm": arm, "seed": seed, "parts": {"test": {"dice": float(np.mean(known)), "cases": cases}}},
    }


def test_every_arm_is_a_valid_configuration_and_every_cell_has_its_own_name():
    import cells

    for name, arm in cells.ARMS.items():
        checked(GenSegConfig, arm.settings, name)
    every = {cell for grid in cells.GRIDS.values() for cell in grid}
    assert len({cell.name for cell in every}) == len(every)
    assert all(cell.arm in cells.ARMS for cell in every)
    assert all(cells.Cell.from_json(json.dumps(asdict(cell))) == cell for cell in every)
    judged_by_choice = [cell for cell in every if "screening" in str(cell.result(Path()))]
    assert judged_by_choice
    assert all(cell.parts == ("validation",) and cell.budget <= 40 for cell in judged_by_choice)


def test_the_arms_of_the_families_are_the_presets():
    import cells

    from nnunetv2_genseg.trainers import GenSegTrainerDiffusion, GenSegTrainerGMM, GenSegTrainerVAE

    for name, trainer in (("genseg_vae", GenSegTrainerVAE), ("genseg_diffusion", GenSegTrainerDiffusion)):
        measured = cells.ARMS[f"{name}_more_cases"].settings
        assert measured == trainer.preset | {"feedback": trainer.preset.get("feedback", {}) | cells.MORE}
    assert cells.ARMS["genseg_gmm"].settings == GenSegTrainerGMM.preset | {"feedback": {"enabled": False}}


def test_validation_cases_belong_to_no_budget_that_choices_are_made_at():
    import cells
    import raw_datasets

    assert max(cells.BUDGET.values()) <= raw_datasets.VALIDATION_RANKS.start


def test_the_difference_is_paired_by_case_and_seed():
    import gain_report

    stock = [result("stock", 0, [0.1, 0.5, 0.9]), result("stock", 1, [0.2, 0.6, 0.8])]
    better = [result("ours", seed, [d + 0.1 for d in dice]) for seed, dice in ((0, [0.1, 0.5, 0.9]), (1, [0.2, 0.6, 0.8]))]
    mean, low, high = gain_report.paired_difference(better, stock, "test")
    assert np.allclose([mean, low, high], 0.1)
    assert gain_report.paired_difference([result("ours", 7, [0.5])], stock, "test") is None


def test_the_interval_widens_with_the_spread_over_cases():
    import gain_report

    stock = [result("stock", 0, [0.5] * 40)]
    mean, low, high = gain_report.paired_difference([result("ours", 0, [0.4, 0.8] * 20)], stock, "test")
    assert np.isclose(mean, 0.1)
    standard_error = 0.2 / np.sqrt(40)
    assert np.isclose(high - low, 2 * 1.96 * standard_error, rtol=0.15)


def test_cases_without_any_foreground_are_left_out_and_an_arm_without_stock_has_no_difference():
    import gain_report

    assert gain_report.case_dice(result("stock", 0, [0.5, None]), "test") == {"case0": 0.5}
    text = gain_report.table([result("ours", 0, [0.5], "102"), result("stock", 0, [0.25]), result("ours", 0, [0.5])], "test")
    lines = text.splitlines()[2:]
    assert [line.split("|")[5].strip() for line in lines] == ["stock", "ours", "ours"]
    assert "+0.250" in lines[1]
    assert "[" not in lines[2]
    assert "| ours | +0.250 | 1 |" in gain_report.mean_gains([result("stock", 0, [0.25]), result("ours", 0, [0.5])], "test")


def test_an_arm_run_on_few_datasets_does_not_lead_the_means():
    import gain_report

    every = [result(arm, 0, [dice], name) for name in ("101", "102") for arm, dice in (("stock", 0.5), ("a", 0.6), ("b", 0.7))]
    lines = gain_report.mean_gains([*every, result("lucky", 0, [0.9])], "test").splitlines()[2:]
    assert [line[2:].split(" | ")[:3] for line in lines] == [["b", "+0.200", "2"], ["a", "+0.100", "2"], ["lucky", "+0.400", "1"]]


def test_cpu_time_is_relative_to_stock_of_the_same_seed():
    import gain_report

    stock = [result("stock", seed, [0.5]) | {"cpu_seconds": seconds} for seed, seconds in ((0, 8.0), (1, 2.0))]
    ours = [result("ours", seed, [0.5]) | {"cpu_seconds": seconds} for seed, seconds in ((1, 3.0), (2, 100.0))]
    lines = gain_report.table(stock + ours, "test").splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["1.0 |", "1.5 |"]


def test_trainings_of_other_lengths_are_told_apart():
    import cells
    import gain_report

    usual = cells.length("103", "2d", "mini")
    every = [
        result(arm, 0, [dice], dataset="103") | {"iterations": length}
        for length, gain in ((usual, 0.1), (4 * usual, 0.3))
        for arm, dice in (("stock", 0.5), ("ours", 0.5 + gain))
    ]
    assert gain_report.usual([*every, every[0] | {"budget": 40}]) == every[:2]
    assert gain_report.usual([*every, every[2] | {"budget": 40}], longer=4) == every[2:]
    lines = gain_report.contrasts(every, "test", [("ours", "stock")]).splitlines()[2:]
    assert [line.split(" | ")[5:] for line in lines] == [
        [str(usual), "1", "+0.100 [+0.100, +0.100]", "+0.100 |"],
        [str(4 * usual), "1", "+0.300 [+0.300, +0.300]", "+0.300 |"],
    ]


def test_contrasts_say_what_each_seed_differs_by():
    import gain_report

    every = [result("stock", seed, [0.5]) for seed in range(3)] + [result("ours", seed, [0.6 + seed / 10]) for seed in (0, 2, 5)]
    (line,) = gain_report.contrasts(every, "test", [("ours", "stock")]).splitlines()[2:]
    assert line.split(" | ")[6:] == ["2", "+0.200 [+0.200, +0.200]", "+0.100, +0.300 |"]


def test_budgets_are_compared_at_equal_length_and_seed():
    import cells
    import gain_report

    usual = {"iterations": cells.length("103", "2d", "mini")}
    every = [result("stock", 0, [0.5 + n / 100], "103") | usual | {"budget": n} for n in (40, 5)]
    every += [result("ours", 0, [0.7], "103") | usual, result("ours", 1, [0.1], "103") | usual]
    every += [result("ours", 0, [0.2], "103"), result("ours", 0, [0.2], "103") | usual | {"configuration": "3d_fullres"}]
    every += [result("other", 0, [0.2], "103") | usual, result("stock", 0, [0.3], "104") | {"iterations": 600}]
    assert gain_report.budgets(every, "test", ("stock", "ours")).splitlines()[0::2] == [
        "| dataset | arm | N = 5 | N = 20 | N = 40 |",
        "| 103 chest X-ray | stock | 0.550 |  | 0.900 |",
    ]
    assert gain_report.budgets(every, "test", ("stock", "ours")).splitlines()[3:] == ["| 103 chest X-ray | ours |  | 0.700 |  |"]


def test_what_the_feedback_moved_is_read_from_a_training(tmp_path):
    import gain
    import gain_report

    rows = [{"epoch": 0.0, LARGEST_SHARE: 0.35}, {"epoch": 1.0, LARGEST_SHARE: 0.41239}, {"epoch": 2.0}]
    final = tmp_path / "checkpoint_final.pth"
    assert gain.chosen_by_feedback(final) == {}
    checkpoint.save_sibling({"progress": rows}, {}, final, gain.EPOCHS)
    chosen = gain.chosen_by_feedback(final)
    assert chosen == {LARGEST_SHARE: 0.4124}
    ours = result("ours", 3, [0.5]) | {"chosen": chosen}
    (line,) = gain_report.moved([ours, ours, result("stock", 0, [0.5])]).splitlines()[2:]
    assert line == f"| ours | 101 foot ulcer | 20 | 2d | 10 | 3 | {LARGEST_SHARE} 0.412 |"


@pytest.mark.parametrize("shape", [(120, 256, 3), (256, 120)])
def test_images_and_labels_are_resampled_alike_and_labels_stay_labels(tmp_path, shape):
    import raw_datasets

    image, label = np.zeros(shape, np.uint8), np.zeros(shape[:2], np.uint8)
    image[40:80, 40:100] = 200
    label[40:80, 40:100] = 1
    for name, values in (("image.png", image), ("label.png", label)):
        imsave(tmp_path / name, values, check_contrast=False)
    out = tmp_path / "out"
    out.mkdir()
    raw_datasets.copy_image(tmp_path / "image.png", out, "mini", order=1)
    raw_datasets.copy_image(tmp_path / "label.png", out, "mini", order=0)
    small, small_label = imread(out / "image.png"), imread(out / "label.png")
    assert max(small.shape[:2]) == raw_datasets.MINI_SIDE
    assert small.shape[:2] == small_label.shape
    assert small.shape[2:] == shape[2:]
    assert set(np.unique(small_label)) == {0, 1}
    bright = small.reshape(*small.shape[:2], -1)[..., 0] > 100
    assert (bright != (small_label == 1)).mean() < 0.02
    raw_datasets.copy_image(tmp_path / "label.png", out, "full", order=0)
    assert (out / "label.png").read_bytes() == (tmp_path / "label.png").read_bytes()


def test_the_reliability_page_is_made_of_the_results_that_are_there_and_holds_no_failure():
    import reliability_report

    folder = FOLDER / "results" / "reliability"
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert records.keys() == {"kills", "memory", "inputs"}
    page = reliability_report.page(records)
    assert page == (FOLDER.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert page.count("| yes |") == len(records["kills"]["kills"])
    assert all(row["expected"] and not row["traceback"] for row in records["inputs"]["inputs"])


def test_the_page_of_the_families_is_made_of_the_results_that_are_there():
    import gain_report
    import generators_report

    folder = FOLDER / "results" / "generators"
    results = generators_report.merged(gain_report.load(folder / "quality"), gain_report.load(folder / "costs"))
    assert results
    page = generators_report.page(results, gain_report.load(FOLDER / "results" / "gain"))
    assert page == (FOLDER.parent / "docs" / "generators.md").read_text(encoding="utf-8")
    for result in results:
        assert f"{result['parameters']:,}" in page or result["family"] == "gmm"


def test_families_and_judges_of_the_page_have_cells_of_their_own():
    import cells
    import generators
    import generators_report

    every = generators.cells()
    assert len({cell.training for cell in every}) == len(every)
    assert generators_report.TRAINED.keys() == generators.FAMILIES.keys()
    assert set(generators_report.TRAINED.values()) <= cells.ARMS.keys()


def test_the_kernel_distance_is_about_zero_between_samples_of_one_distribution_and_grows_with_a_shift():
    import generators

    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 120, 8)) for _ in range(50)]
    alike = np.array([generators.kernel_distance(one, other) for one, other in pairs])
    assert abs(alike.mean()) < 0.02, "a biased estimate would be 0.1: the kernel of a sample with itself"
    assert alike.min() < 0 < alike.max()
    shifted = [generators.kernel_distance(pairs[0][0], pairs[0][1] + shift) for shift in (0.0, 0.5, 1.0)]
    assert shifted == sorted(shifted)
    one, other = rng.normal(size=(3, 2)), np.array([[1.0, -1.0], [-1.0, 1.0]])  # of mean 0 and deviation 1

    def kernel(x, y):
        return (x @ y / 2 + 1) ** 3

    within = [sum(kernel(x, y) for i, x in enumerate(z) for j, y in enumerate(z) if i != j) for z in (one, other)]
    expected = within[0] / 6 + within[1] / 2 - 2 * sum(kernel(x, y) for x in one for y in other) / 6
    assert generators.kernel_distance(one, other) == pytest.approx(expected, rel=1e-4)


def test_mask_fidelity_is_the_dice_of_every_class_over_all_patches():
    import generators

    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, :2] = 1
    labels[1, :, :1] = 2
    seen = torch.zeros(2, 3, 4, 4)
    seen[0, 1, :1] = 1.0  # half of class 1: Dice 2 · 4 / (8 + 4)
    seen[1, 2, :, :1] = 1.0  # all of class 2
    seen[:, 0] += 0.5
    assert generators.fidelity(lambda image: seen[: len(image)], seen, labels, 2, 2) == pytest.approx((2 / 3 + 1) / 2)


def test_surface_distance_of_shifted_boxes_is_the_shift_in_mm():
    import surface

    first = np.zeros((20, 20, 20), dtype=bool)
    first[5:12, 5:12, 5:12] = True
    moved = np.roll(first, 3, axis=0)
    assert surface.hausdorff95(first, first, (2.0, 1.0, 1.0)) == 0
    assert surface.hausdorff95(first, moved, (2.0, 1.0, 1.0)) == 6
    assert np.isnan(surface.hausdorff95(first, np.zeros_like(first), (1.0, 1.0, 1.0)))


def test_surface_distance_leaves_out_the_farthest_twentieth():
    import surface

    first = np.zeros((64, 64), dtype=bool)
    first[10:40, 10:40] = True
    speck = first.copy()
    speck[60, 60] = True
    assert surface.hausdorff95(first, speck, (1.0, 1.0)) == 0
