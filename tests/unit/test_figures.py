"""Figures of whole sets of images: summaries, halves, distances, nearest images and their tables."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from nnunetv2_genseg.quality.feature_figures import distribution_figures, diversity_figures
from nnunetv2_genseg.quality.figures import estimate, figure, summary
from nnunetv2_genseg.quality.frechet_distance import frechet_distance
from nnunetv2_genseg.quality.halves import beside_real, divisions
from nnunetv2_genseg.quality.intensities import MOST, intensity_figures, sampled
from nnunetv2_genseg.quality.nearest import nearest_figures
from nnunetv2_genseg.quality.table import as_text


def of_cases(count, pairs_each):
    """For every pair the case that it was made from."""
    return {f"pair_{i}_{j}": f"case_{i}" for i in range(count) for j in range(pairs_each)}


def test_a_summary_has_the_quartiles_and_leaves_out_what_is_not_determined():
    found = summary([1, 2, 3, 4, 10, math.nan])
    assert found == {
        "mean": 4,
        "least": 1,
        "lower_quartile": 2,
        "median": 3,
        "upper_quartile": 4,
        "largest": 10,
        "count": 5,
    }
    assert set(summary([math.nan]).values()) == {None, 0}
    assert estimate([1.0, 3.0]) == {"mean": 2, "deviation": 1, "count": 2}
    assert estimate([1.0, math.nan])["mean"] is None, "a mean of some would be of other halves"
    assert estimate([]) == {"mean": None, "deviation": None, "count": 0}
    assert figure(math.inf) is None and figure(1 / 3) == 0.333333


def test_halves_are_equal_and_each_pair_stays_with_its_case():
    sources = of_cases(7, 3)
    divided = divisions(sources, 40, np.random.default_rng(0))
    assert len(divided) == 40
    for division in divided:
        first, second = division.cases
        assert len(first) == len(second) == 3
        assert not set(first) & set(second)
        for cases, pairs in zip(division.cases, division.pairs, strict=True):
            assert [sources[pair] for pair in pairs] == cases
    assert len({tuple(division.cases[0]) for division in divided}) > 30, "they differ"
    used = Counter(pair for division in divided for part in division.pairs for pair in part)
    assert set(used) == set(sources), "all pairs are used"
    assert divisions(of_cases(3, 5), 10, np.random.default_rng(0)) == []


def test_pairs_of_one_half_are_compared_with_the_other_half():
    """Copies of the real cases are as far as the real cases are."""
    sources = of_cases(6, 1)
    values = dict(zip(sorted(set(sources.values())), (0.0, 1.0, 4.0, 9.0, 16.0, 25.0), strict=True))
    divided = divisions(sources, 5, np.random.default_rng(0))

    def distance(one, other):
        assert not set(one) & set(other), "a pair beside its own source"
        return abs(sum(one) - sum(other))

    copies = {pair: values[case] for pair, case in sources.items()}
    found = beside_real(distance, values, copies, divided)
    assert found["synthetic"] == found["real"]
    moved = {pair: values[case] + 100 for pair, case in sources.items()}
    assert beside_real(distance, values, moved, divided)["synthetic"]["mean"] > found["real"]["mean"] + 100


@pytest.mark.parametrize(("count", "channels"), [(200, 6), (10, 30)])
def test_the_frechet_distance_is_that_of_two_normal_distributions(count, channels, rng):
    pytest.importorskip("torchmetrics")
    one = torch.randn(count, channels, generator=rng).double()
    other = 0.5 + 2 * torch.randn(count, channels, generator=rng).double()
    means, spreads = [x.mean(dim=0).numpy() for x in (one, other)], [np.cov(x.numpy().T) for x in (one, other)]
    root = sqrtm(spreads[0] @ spreads[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-4)


def vectors(rng, sources, channels=12, patches=4):
    real = {case: torch.randn(patches, channels, generator=rng) for case in sorted(set(sources.values()))}
    return real, {pair: torch.randn(patches, channels, generator=rng) for pair in sources}


def test_images_of_the_same_distribution_are_as_far_as_real_ones_and_others_farther(rng):
    pytest.importorskip("torchmetrics")
    sources = of_cases(40, 2)
    real, drawn = vectors(rng, sources)
    divided = divisions(sources, 10, np.random.default_rng(0))
    alike = distribution_figures(real, drawn, divided)
    assert (alike["channels"], alike["patches"]) == (12, [80, 80])
    far = distribution_figures(real, {name: of + 1 for name, of in drawn.items()}, divided)
    for name in ("kid", "fid"):
        held, near = alike[name]["real"]["mean"], alike[name]["synthetic"]["mean"]
        assert far[name]["real"] == alike[name]["real"]
        assert far[name]["synthetic"]["mean"] > held + 10 * abs(near - held), name
    assert abs(alike["kid"]["real"]["mean"]) < 0.05 < far["kid"]["synthetic"]["mean"], "halves of the same are near"
    scaled = distribution_figures(*({name: 7 * of for name, of in part.items()} for part in (real, drawn)), divided)
    assert scaled["kid"]["synthetic"]["mean"] == pytest.approx(alike["kid"]["synthetic"]["mean"], rel=1e-3)


def test_diversity_compares_pairs_of_different_cases_and_of_the_same(rng):
    sources = of_cases(8, 2)
    real = {case: torch.randn(5, generator=rng) for case in sorted(set(sources.values()))}
    divided = divisions(sources, 5, np.random.default_rng(0))
    copies = diversity_figures(real, {pair: real[case] for pair, case in sources.items()}, sources, divided)
    assert copies["synthetic"] == copies["real"] and copies["same_source"] == 0
    one = diversity_figures(real, dict.fromkeys(sources, real["case_0"]), sources, divided)
    assert one["synthetic"]["mean"] == 0 < one["real"]["mean"]
    moved = {pair: real[case] + (3.0 if pair.endswith("1") else 0) for pair, case in sources.items()}
    assert diversity_figures(real, moved, sources, divided)["same_source"] == pytest.approx(3 * 5**0.5, rel=1e-4)
    single = of_cases(8, 1)
    assert diversity_figures(real, {pair: real[case] for pair, case in single.items()}, single, [])["same_source"] is None


def test_the_source_of_a_pair_is_told_apart_from_other_cases():
    real = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 30.0]])
    drawn = torch.tensor([[0.0, 1.0], [10.0, 2.0], [1.0, 0.0]])
    sources = {"near_its_own": "a", "near_another": "a", "of_none": "x"}
    found = nearest_figures(real, ["a", "b", "c"], drawn, list(sources), sources)
    assert found["real_nearest_other"]["least"] == 10 and found["real_nearest_other"]["largest"] == 30
    assert found["closest_source"][0] == {"pair": "near_its_own", "case": "a", "distance": 1}
    assert [one["pair"] for one in found["closest_other"]] == ["of_none", "near_another", "near_its_own"]
    assert found["closest_other"][1] == {"pair": "near_another", "case": "b", "distance": 2}
    assert found["nearest_source"]["count"] == 2, "one has no source among the cases"
    assert found["closer_than_real"] == 2


def test_the_distance_of_intensities_is_that_of_a_shift(rng):
    sources = of_cases(6, 2)
    numbers = np.random.default_rng(0)
    real = {case: numbers.normal(100, 10, 500) for case in sorted(set(sources.values()))}
    drawn = {pair: numbers.normal(120, 10, 500) for pair in sources}
    divided = divisions(sources, 5, np.random.default_rng(0))
    found = intensity_figures(real, drawn, divided)
    assert found["real"]["mean"] == pytest.approx(100, abs=1) and found["synthetic"]["mean"] == pytest.approx(120, abs=1)
    assert found["real"]["deviation"] == pytest.approx(10, abs=0.5)
    assert (found["real"]["count"], found["synthetic"]["count"]) == (3000, 6000)
    assert found["wasserstein_synthetic"]["mean"] == pytest.approx(20, abs=1)
    assert found["wasserstein_real"]["mean"] < 1.5
    empty = intensity_figures({case: np.zeros(0) for case in real}, drawn, divided)
    assert empty["real"] == {"mean": None, "deviation": None, "count": 0}
    assert empty["wasserstein_synthetic"]["mean"] is None


def test_an_image_counts_with_a_thousand_voxels_of_a_class_at_most():
    numbers = np.random.default_rng(0)
    channel = np.arange(6000.0).reshape(60, 100)
    found = sampled(channel, channel >= 3000, numbers)
    assert len(found) == MOST == len(np.unique(found)) and found.min() >= 3000
    few = sampled(channel, channel < 7, numbers)
    assert few.tolist() == list(range(7))


def test_the_tables_show_what_is_known_and_a_dash_for_the_rest(rng):
    sources = of_cases(4, 1)
    real, drawn = vectors(rng, sources)
    divided = divisions(sources, 2, np.random.default_rng(0))
    held = {case: of.mean(dim=0) for case, of in real.items()}
    pairs = {pair: of.mean(dim=0) for pair, of in drawn.items()}
    distribution = distribution_figures(real, drawn, divided)
    of_masks = {"new_masks": 3, "distinct_masks": 4}
    content = {
        **{"pairs": 4, "training_cases": 4, "validation_cases": 0, "dataset": "Dataset001_A", "configuration": "2d", "fold": "0"},
        "network": {"trainer": "nnUNetTrainer"},
        "fidelity": {"heart": {"synthetic": summary([0.25, 0.75]), "real": summary([])}},
        "intensities": {
            "CT": {"heart": intensity_figures(*({name: of.numpy() for name, of in part.items()} for part in (held, pairs)), [])}
        },
        "distribution": distribution | {"fid": None},
        "memorisation": {
            "pixels": nearest_figures(torch.stack([*held.values()]), [*held], torch.stack([*pairs.values()]), [*pairs], sources)
        },
        "diversity": diversity_figures(held, pairs, sources, divided) | of_masks,
        "remarks": ["a remark"],
    }
    text = as_text(content)
    lines = [line.split() for line in text.splitlines()]
    assert ["heart", "synthetic", "0.5", "0.375", "0.5", "0.625", "2"] in lines
    assert ["heart", "real", "-", "-", "-", "-", "0"] in lines
    assert "KID" in text and "FID" not in text and "3 of 4 masks are new, 4 are different" in text and "Note: a remark" in text
    without = as_text(content | {"distribution": None, "diversity": of_masks})
    assert "KID" not in without and "3 of 4 masks are new" in without
