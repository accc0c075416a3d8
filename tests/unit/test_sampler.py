import pytest
import torch
from toy import CODECS, DEFORMATION, FAMILIES, MODES, REDRAW, STILL, Setting, seeded, through_a_file

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.sampler import BRIGHTEST
from nnunetv2_genseg.synthesis.spatial import identity_grid

OFF = {"feedback": {"enabled": False}}
PLAIN = {"deformation": STILL, "intensity": {"tone": 0.0, "shift": 0.0}}
BOTH = {"sources": {"deformation": 1.0, "redraw": 1.0}}


def slots_of(chosen):
    return sorted(slot for slots in chosen.values() for slot in slots)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
def test_every_slot_is_synthetic_with_the_probability_of_the_share(share):
    sampler = Setting(mixing=DEFORMATION, **OFF).sampler
    rng, draws, batch = seeded(), 3000, 7
    taken = torch.zeros(batch)
    both = 0
    for _ in range(draws):
        slots = slots_of(sampler.choose(batch, share, rng))
        taken[slots] += 1
        both += {0, 1} <= set(slots)
    deviation = (share * (1 - share) / draws) ** 0.5
    assert ((taken / draws - share).abs() <= 5 * deviation).all(), "in every place of the batch alike"
    assert both / draws == pytest.approx(share**2, abs=5 * deviation + 1e-9), "each by itself"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_share_of_1_takes_every_slot_and_of_0_none(batch):
    sampler = Setting(mixing=BOTH, **OFF).sampler
    for seed in range(20):
        assert slots_of(sampler.choose(batch, 1.0, seeded(seed))) == list(range(batch))
        assert sampler.choose(batch, 0.0, seeded(seed)) == {}


def test_sources_are_drawn_in_proportion_to_their_weights():
    sampler = Setting(mixing={"sources": {"redraw": 1.0, "deformation": 4.0}}, **OFF).sampler
    chosen = sampler.choose(5000, 1.0, seeded())
    assert len(chosen["deformation"]) == pytest.approx(4000, abs=150)
    assert len(chosen["redraw"]) + len(chosen["deformation"]) == 5000
    assert not set(chosen["redraw"]) & set(chosen["deformation"])


def test_a_source_of_weight_0_is_not_built():
    assert list(Setting(mixing={"sources": {"redraw": 0.0, "deformation": 1.0}}, **OFF).sampler.sources) == ["deformation"]


def test_slots_are_chosen_on_the_cpu_from_the_given_generator_alone(outside_random_state_untouched):
    """So that nothing waits for a GPU; and as much is drawn whatever the outcome, so that a resumed training goes on alike."""
    sampler = Setting(mixing=BOTH, **OFF).sampler
    rng, other = seeded(3), seeded(3)
    assert sampler.choose(4, 0.5, rng) == sampler.choose(4, 0.5, other)
    sampler.choose(4, 0.0, rng)
    sampler.choose(4, 1.0, other)
    assert torch.equal(rng.get_state(), other.get_state())
    chosen = [sampler.choose(4, 0.5, rng) for _ in range(10)]
    assert any(one != chosen[0] for one in chosen)
    assert all(isinstance(slot, int) for one in chosen for slots in one.values() for slot in slots)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("chosen", [{"deformation": [2, 0]}, {"redraw": [1]}, {"deformation": [3], "redraw": [0, 4]}], ids=str)
def test_a_pair_is_made_from_its_slots_own_patch(chosen, dims):
    """Without deformation, tone curve and shift the pair is the patch."""
    setting = Setting(dims, 2, count=5, mixing=BOTH, **PLAIN, **OFF)
    replacement = setting.sampler.replace(setting.image, setting.labels, chosen, seeded())
    assert replacement.slots == [slot for slots in chosen.values() for slot in slots]
    torch.testing.assert_close(replacement.pairs.image, setting.image[replacement.slots], rtol=0, atol=1e-4)
    assert torch.equal(replacement.pairs.labels, setting.labels[replacement.slots])
    assert replacement.finite == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_with_every_family_the_pairs_of_mode_residual_are_the_patches_where_nothing_changes(family):
    setting = Setting(mixing=REDRAW, generator={"name": family}, **PLAIN, **OFF)
    setting.learn(2)
    pairs = setting.sampler.replace(setting.image, setting.labels, {"redraw": [0, 1, 2]}, seeded()).pairs
    torch.testing.assert_close(pairs.image, setting.image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_one(mode, codec):
    setting = Setting(codec=codec, count=1, mixing=BOTH, redraw={"mode": mode}, **OFF)
    for name in ("deformation", "redraw"):
        replacement = setting.sampler.replace(setting.image, setting.labels, {name: [0]}, seeded())
        assert replacement.slots == [0]
        assert replacement.pairs.image.shape == setting.image.shape
        assert torch.isfinite(replacement.pairs.image).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_only_the_pairs_that_are_not_finite_are_the_real_patches(value, dims):
    setting = Setting(dims, mixing=DEFORMATION, intensity={"tone": 0.0}, **OFF)
    setting.sampler.deformer.unbound()
    source = setting.sampler.sources["deformation"]
    whole = source.sample

    def broken(image, labels, rng):
        pairs = whole(image, labels, rng)
        pairs.image[1].view(-1)[3] = value
        return pairs

    source.sample = broken
    replacement = setting.sampler.replace(setting.image, setting.labels, {"deformation": [2, 0, 1]}, seeded())
    pairs = replacement.pairs
    assert replacement.finite == 0
    assert torch.equal(pairs.image[1], setting.image[0])
    assert torch.equal(pairs.labels[1], setting.labels[0])
    assert torch.equal(pairs.grid[1], identity_grid(setting.labels.shape[1:], pairs.grid.device)[0])
    assert pairs.accepted.tolist() == [True, False, True]
    for place, slot in ((0, 2), (2, 1)):
        assert not torch.equal(pairs.image[place], setting.image[slot])


def test_what_is_bright_in_the_real_patches_may_be_bright_in_the_pairs():
    setting = Setting(mixing=DEFORMATION, intensity={"tone": 0.0}, **OFF)
    bright = setting.image * 1e6
    assert setting.sampler.replace(bright, setting.labels, {"deformation": [0]}, seeded()).finite == 1
    assert BRIGHTEST >= 10


def test_observed_sizes_bound_the_masks():
    setting = Setting(mixing=DEFORMATION, deformation={"displacement": 0.0, "rotation": 0.0, "scaling": 0.6}, **OFF)
    sizes = []
    for unbound in (False, True):
        if unbound:
            setting.sampler.deformer.unbound()
        drawn = [
            setting.sampler.replace(setting.image, setting.labels, {"deformation": [0, 1, 2]}, seeded(seed)).pairs.labels
            for seed in range(10)
        ]
        sizes.append(max(int((one == 1).flatten(1).sum(dim=1).max()) for one in drawn))
    assert sizes[0] <= int((setting.labels == 1).flatten(1).sum(dim=1).max()) < sizes[1]


def test_everything_is_in_the_state():
    first, other = Setting(mixing=BOTH, **OFF), Setting(mixing=BOTH, seed=4, **OFF)
    first.learn(2)
    with torch.no_grad():
        first.sampler.policy.log_style.fill_(0.3)
        first.sampler.policy.log_deformation.fill_(-0.3)
    first.sampler.observe(torch.ones_like(first.labels))
    other.sampler.load_state_dict(through_a_file(first.sampler.state_dict()))
    chosen = {"deformation": [0], "redraw": [2, 1]}
    with torch.no_grad():
        one, two = (each.sampler.replace(first.image, first.labels, chosen, seeded(8)).pairs for each in (first, other))
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(first.sampler.deformer.largest, other.sampler.deformer.largest)


@pytest.mark.parametrize(
    "sections, said",
    [
        ({"mixing": {"sources": {"magic": 1.0}}}, "mixing.sources: no 'magic'; registered are deformation, redraw"),
        ({"redraw": {"mode": "differential"}}, "redraw.mode: no 'differential'; registered are mask, residual, tissue"),
        ({"masks": {"source": "learned"}}, "masks.source: no 'learned'; registered are real, shape_vae"),
        ({"generator": {"name": "gans"}}, "generator.name: no 'gans'; registered are diffusion, gan, gmm, vae"),
    ],
)
def test_names_that_are_not_registered_are_refused(sections, said):
    with pytest.raises(GenSegError, match=said):
        Setting(**sections, **OFF)


@pytest.mark.parametrize("first", ["deformation", "redraw"])
def test_a_gradient_of_any_source_that_is_not_finite_is_told(first, monkeypatch):
    sampler = Setting(mixing=BOTH, **OFF).sampler
    for name, source in sampler.sources.items():
        flag = torch.tensor(name != first)
        monkeypatch.setattr(source, "training_step", lambda *_, name=name, flag=flag: {name: torch.ones(()), "finite": flag})
    losses = sampler.training_step(torch.zeros(1), torch.zeros(1), seeded())
    assert losses.keys() == {"deformation", "redraw", "finite"}
    assert losses["finite"] == 0
