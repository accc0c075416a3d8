import pytest
import torch
from toy import CODECS, CPU, DEFORMATION, STILL, Setting, real_pairs, seeded, through_a_file

from nnunetv2_genseg.generators.smoothing import neighbourhood_mean
from nnunetv2_genseg.synthesis.pair_features import pair_features
from nnunetv2_genseg.synthesis.preference import FEWEST, LEAST, Preference, learn
from nnunetv2_genseg.synthesis.spatial import identity_grid

OFF = {"feedback": {"enabled": False}}
KINDS = pytest.mark.parametrize(("codec", "dims", "channels"), [
    ("labels", 2, 3), ("labels", 3, 1), ("regions", 2, 1), ("ignore", 3, 2), ("regions+ignore", 2, 3),
])  # fmt: skip


def pairs_of(codec, dims, channels, blurred, seed=0):
    """As many pairs as `blurred` has entries, those with True with a blurred image."""
    image, labels = real_pairs(CODECS[codec], dims, channels, count=len(blurred), seed=seed)
    defect = torch.tensor(blurred).view(-1, *(1,) * (dims + 1))
    return torch.where(defect, neighbourhood_mean(image), image), labels


def reviewed(codec="labels", dims=2, channels=1, count=60, patches=2):
    """Features of pairs, half of which are blurred; which are not; the cases, one a pair; and features of real patches."""
    blurred = [k % 2 == 1 for k in range(count)]
    of_pairs = [pair_features(*pairs_of(codec, dims, channels, blurred, seed), 2) for seed in range(patches)]
    real = pair_features(*pairs_of(codec, dims, channels, [False] * 20, seed=99), 2)
    return torch.stack(of_pairs, dim=1), 1 - torch.tensor(blurred).float(), [f"case_{k}" for k in range(count)], real


@KINDS
def test_what_reviewers_reject_is_learned_and_seldom_kept(codec, dims, channels):
    preference, found = learn(*reviewed(codec, dims, channels), 2)
    assert (found.accepted, found.rejected) == (30, 30)
    assert found.auc > 0.95 and found.holds
    kept = {}
    for defect in (False, True):
        image, labels = pairs_of(codec, dims, channels, [defect] * 200, seed=7)
        kept[defect] = preference.keeps(image, labels, seeded(1)).float().mean()
    assert kept[True] < 0.3 < 0.8 < kept[False]


def test_decisions_at_random_are_not_learned_from():
    features, acceptance, cases, real = reviewed()
    preference, found = learn(features, acceptance[torch.randperm(60, generator=seeded(2))], cases, real, 2)
    assert preference is None
    assert 0.2 < found.auc < found.needed < 0.8


@pytest.mark.parametrize("of_cases", [True, False], ids=["cases", "pairs"])
def test_a_liking_for_cases_is_not_taken_for_one_for_pairs(of_cases):
    """Ten pairs of each of six cases, each with a feature of its own: half of the cases, or of their pairs, are accepted."""
    features, sharp, _, real = reviewed()
    cases = [f"case_{k // 10}" for k in range(60)]
    features[:, :, :6] += 3 * torch.eye(6).repeat_interleave(10, dim=0)[:, None]
    liked = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]).repeat_interleave(10)
    preference, found = learn(features, liked if of_cases else sharp, cases, real, 2)
    assert (preference is None) == of_cases == (found.auc < 0.7)


def test_pairs_of_one_case_are_not_learned_from_and_a_case_may_have_all_of_a_kind():
    features, acceptance, _, real = reviewed()
    assert learn(features, acceptance, ["a"] * 60, real, 2)[1].auc is None
    by_kind = ["accepted" if accepted else "rejected" for accepted in acceptance]
    assert learn(features, acceptance, by_kind, real, 2)[1].auc == 0.5


def test_the_bound_of_chance_is_wider_for_fewer_pairs():
    features, acceptance, cases, real = reviewed(count=200)
    bounds = [learn(features[:count], acceptance[:count], cases[:count], real, 2)[1].needed for count in (20, 60, 200)]
    assert bounds[0] > bounds[1] > bounds[2] > 0.5
    assert bounds[2] == pytest.approx(0.5 + 3 * (201 / (12 * 100 * 100)) ** 0.5)


@pytest.mark.parametrize("accepts", [True, False])
def test_too_few_of_a_kind_are_not_learned_from(accepts):
    features, acceptance, cases, real = reviewed()
    of_kind = (acceptance == float(accepts)).nonzero().flatten()
    for fewest, learned in ((FEWEST - 1, False), (FEWEST, True)):
        chosen = torch.cat([of_kind[:fewest], (acceptance != float(accepts)).nonzero().flatten()])
        preference, found = learn(features[chosen], acceptance[chosen], cases[: len(chosen)], real, 2)
        assert (preference is not None) == learned == (found.auc is not None)
        assert {found.accepted, found.rejected} == {fewest, 30}


def test_pairs_on_which_reviewers_disagree_count_in_part():
    """Undecided pairs count for neither kind; a third of the reviewers makes a probability of a third."""
    features, acceptance, cases, real = reviewed()
    undecided = acceptance.clone()
    undecided[:20] = 0.5
    preference, found = learn(features, undecided, cases, real, 2)
    assert (found.accepted, found.rejected) == (20, 20)
    image, labels = pairs_of("labels", 2, 1, [True] * 50, seed=7)
    sharper = learn(features, acceptance, cases, real, 2)[0]
    assert preference.probability(image, labels).mean() > 1.2 * sharper.probability(image, labels).mean()
    mild = torch.where(acceptance == 1, 1.0, 1 / 3)
    preference, found = learn(features, mild, cases, real, 2)
    assert (found.accepted, found.rejected) == (30, 30)
    assert preference.probability(image, labels).mean() == pytest.approx(1 / 3, abs=0.1)


def test_equal_reviews_give_equal_bits_and_a_file_keeps_them():
    first, second = (learn(*reviewed(), 2)[0] for _ in range(2))
    kept = Preference.from_state(through_a_file(first.state_dict()), CPU)
    image, labels = pairs_of("labels", 2, 1, [False, True] * 5, seed=3)
    for other in (second, kept):
        assert torch.equal(first.probability(image, labels), other.probability(image, labels))
    assert torch.equal(first.keeps(image, labels, seeded(4)), kept.keeps(image, labels, seeded(4)))


def test_what_no_real_patch_shows_has_no_weight_of_its_own():
    features, acceptance, cases, real = reviewed()
    real[:, 5] = torch.nan
    features[:, :, 7] = torch.nan
    preference, _ = learn(features, acceptance, cases, real, 2)
    assert all(tensor.isfinite().all() for name, tensor in preference.state_dict().items() if name != "foreground")
    assert preference.weights[7] == 0


def flat_preference(probability, bright=0.0):
    """Keeps a pair with a probability, whatever it is, but for the mean of the background's inside times `bright`."""
    image, labels = real_pairs(CODECS["labels"], 2, 1)
    count = pair_features(image, labels, 2).shape[1]
    weights = torch.zeros(count)
    weights[0] = bright
    bias = torch.logit(torch.tensor(probability))
    return Preference(2, torch.zeros(count), torch.ones(count), weights, bias, torch.tensor(1.0))


def test_however_bad_pairs_are_some_are_kept():
    image, labels = real_pairs(CODECS["labels"], 2, 1, count=3000)
    kept = flat_preference(1e-6).keeps(image, labels, seeded()).float().mean()
    assert kept == pytest.approx(LEAST, abs=0.02)
    assert flat_preference(1 - 1e-7).keeps(image, labels, seeded()).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_refused_pair_is_drawn_once_more_and_then_the_patch_stays(dims, monkeypatch):
    setting = Setting(dims, 2, count=4, mixing=DEFORMATION, intensity={"tone": 0.0}, **OFF)
    sampler, chosen = setting.sampler, {"deformation": [3, 0, 2]}
    sampler.deformer.unbound()
    answers = iter([torch.tensor([True, False, False]), torch.tensor([True, True, False])])
    monkeypatch.setattr(Preference, "keeps", lambda self, image, labels, rng: next(answers))
    first, second = _two_draws(sampler, setting, chosen)
    sampler.preference = flat_preference(0.5)
    found = sampler.replace_as_preferred(setting.image, setting.labels, chosen, seeded())
    assert found.slots == [3, 0, 2]
    assert torch.equal(found.pairs.image[0], first.image[0]) and torch.equal(found.pairs.labels[0], first.labels[0])
    assert torch.equal(found.pairs.image[1], second.image[1]) and torch.equal(found.pairs.grid[1], second.grid[1])
    assert torch.equal(found.pairs.image[2], setting.image[2]) and torch.equal(found.pairs.labels[2], setting.labels[2])
    assert torch.equal(found.pairs.grid[2], identity_grid(setting.labels.shape[1:], CPU)[0])
    assert found.pairs.accepted.tolist() == [True, True, False]
    assert {name: float(value) for name, value in found.measured.items()} == {"acceptance_rate": 1.0, "preferred": 0.5}


def _two_draws(sampler, setting, chosen):
    rng = seeded()
    return [sampler.replace(setting.image, setting.labels, chosen, rng).pairs for _ in range(2)]


def test_without_a_preference_nothing_more_is_drawn():
    setting = Setting(mixing=DEFORMATION, **OFF)
    one, other = seeded(), seeded()
    found = setting.sampler.replace_as_preferred(setting.image, setting.labels, {"deformation": [0]}, one)
    expected = setting.sampler.replace(setting.image, setting.labels, {"deformation": [0]}, other)
    assert torch.equal(found.pairs.image, expected.pairs.image)
    assert torch.equal(one.get_state(), other.get_state())
    assert list(found.measured) == ["acceptance_rate"]


@pytest.mark.parametrize("spoilt", [0, 1], ids=["first", "second"])
def test_a_pair_that_is_not_finite_is_told_whichever_draw_it_was(spoilt):
    setting = Setting(mixing=DEFORMATION, intensity={"tone": 0.0}, **OFF)
    setting.sampler.preference = flat_preference(0.5)
    source, calls = setting.sampler.sources["deformation"], []
    whole = source.sample

    def broken(image, labels, rng):
        pairs = whole(image, labels, rng)
        pairs.image[0] += torch.nan if len(calls) == spoilt else 0.0
        calls.append(1)
        return pairs

    source.sample = broken
    found = setting.sampler.replace_as_preferred(setting.image, setting.labels, {"deformation": [0, 1]}, seeded())
    assert found.finite == 0
    assert found.pairs.image.isfinite().all()


def test_a_loop_draws_logs_and_keeps_the_preference():
    settings = {"mixing": DEFORMATION, "deformation": STILL, **OFF}
    first, other = Setting(**settings), Setting(seed=3, **settings)
    first.loop.sampler.preference = flat_preference(0.5, bright=2.0)
    other.loop.load_state_dict(through_a_file(first.loop.state_dict()))
    one, two = (each.sample() for each in (first, other))
    assert torch.equal(one.pairs.image, two.pairs.image)
    assert 0 <= first.loop.means()["preferred"] <= 1
    other.loop.load_state_dict(through_a_file(Setting(**settings).loop.state_dict()))
    assert other.loop.sampler.preference is None


@KINDS
def test_nothing_asks_the_device_for_a_number(codec, dims, channels):
    """Tensors of the device `meta` have no values that could be asked for."""
    preference, _ = learn(*reviewed(codec, dims, channels), 2)
    there = Preference.from_state(preference.state_dict(), torch.device("meta"))
    image, labels = (tensor.to("meta") for tensor in pairs_of(codec, dims, channels, [False] * 4))
    assert there.probability(image, labels).shape == (4,)
    with pytest.raises(RuntimeError):
        there.probability(image, labels).sum().item()
