import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from packaging.version import Version
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import (
    CODECS,
    CPU,
    DEFORMATION,
    FAMILIES,
    MODES,
    REDRAW,
    STILL,
    Setting,
    configured,
    planned,
    real_pairs,
    same,
    through_a_file,
)

from nnunetv2_genseg.bilevel.loop import CAUSES, BilevelLoop
from nnunetv2_genseg.bilevel.rollback import LIMIT
from nnunetv2_genseg.checkpoint import first_difference
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.generators.pretrained import ImageKind
from nnunetv2_genseg.synthesis import conditioning
from nnunetv2_genseg.synthesis.bounds import class_sizes

OFF = {"feedback": {"enabled": False}}
IMAGES = ImageKind(("T1",), ("ZScoreNormalization",), (False,), (1.0, 1.0))


def sample(setting, share=1.0):
    return setting.sample(None, share)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("codec, dims, channels", [*((codec, 2, 1) for codec in CODECS), ("labels", 2, 3), ("ignore", 3, 1)])
def test_pairs_are_finite_seeded_and_without_graph(dims, channels, codec, mode):
    first, again, other = (Setting(dims, channels, codec, redraw={"mode": mode}, seed=seed) for seed in (5, 5, 6))
    found = sample(first)
    pairs = found.pairs
    assert sorted(found.slots) == [0, 1, 2]
    assert pairs.image.shape == first.image.shape
    assert pairs.labels.shape == first.labels.shape
    assert pairs.labels.dtype == torch.long
    assert torch.isfinite(pairs.image).all()
    assert not pairs.image.requires_grad
    for slot, labels in zip(found.slots, pairs.labels, strict=True):
        assert set(labels.unique().tolist()) <= set(first.labels[slot].unique().tolist())
    repeated = sample(again)
    assert repeated.slots == found.slots
    assert torch.equal(repeated.pairs.image, pairs.image)
    assert torch.equal(repeated.pairs.labels, pairs.labels)
    assert not torch.equal(sample(other).pairs.image.sum(), pairs.image.sum())
    assert not torch.equal(sample(first).pairs.image.sum(), pairs.image.sum())
    assert first.loop.check() == ""


def test_at_a_share_of_0_no_patch_is_replaced():
    assert sample(Setting(), 0.0) is None


def test_the_acceptance_rate_is_that_of_the_masks():
    setting = Setting(mixing=DEFORMATION, **OFF)
    setting.sampler.deformer.unbound()
    rates = [float(sample(setting).pairs.accepted.float().mean()) for _ in range(3)]
    assert setting.loop.means()["acceptance_rate"] == pytest.approx(sum(rates) / 3)
    assert sum(rates) > 0


def test_sampling_takes_note_of_the_largest_structures_whatever_the_share():
    setting = Setting()
    setting.sampler.deformer.largest.zero_()
    sample(setting, 0.0)
    assert torch.equal(setting.sampler.deformer.largest, class_sizes(setting.labels, 3).amax(dim=0))


@pytest.mark.parametrize("mode", MODES)
def test_training_steps_lower_the_distance_to_the_real_images(mode):
    setting = Setting(redraw={"mode": mode}, generator={"learning_rate": 5e-3})
    setting.learn()
    first = setting.loop.means()["l1"]
    setting.learn(40)
    setting.loop.means()
    setting.learn()
    assert setting.loop.means()["l1"] < 0.7 * first


@pytest.mark.parametrize("family, mode", [*((family, "residual") for family in FAMILIES), ("gan", "tissue")])
def test_the_units_of_the_intensities_do_not_matter(family, mode):
    """nnU-Net's normalisations leave images in [0, 1], or as they are in the file; powers of two keep the bits."""
    drawn = []
    for units in ((1.0, 1.0), (256.0, 0.125)):
        setting = Setting(channels=2, mixing=REDRAW, generator={"name": family}, redraw={"mode": mode}, **OFF)
        scale = torch.tensor(units).view(2, 1, 1)
        setting.image = setting.image * scale
        setting.learn(3)
        drawn.append(sample(setting).pairs.image / scale)
    assert torch.equal(*drawn)


def test_a_preview_has_a_pair_for_every_patch_in_order_and_leaves_the_random_state():
    setting = Setting(mixing={"sources": {"deformation": 0.5, "redraw": 0.5}}, deformation=STILL, intensity={"tone": 0.0})
    state = setting.loop.rng.get_state()
    pairs = setting.loop.preview(setting.image, setting.labels)
    assert torch.equal(setting.loop.rng.get_state(), state)
    assert torch.equal(pairs.labels, setting.labels)
    torch.testing.assert_close(pairs.image[[0, 2]], setting.image[[0, 2]], rtol=0, atol=1e-4)
    assert not torch.allclose(pairs.image[1], setting.image[1], atol=0.01), "the second is drawn anew"
    assert torch.equal(setting.loop.preview(setting.image, setting.labels).image, pairs.image)
    assert len(setting.loop.preview(setting.image[:1], setting.labels[:1]).image) == 1


# ---------------------------------------------------------------------- not finite


def break_generator(setting, value):
    with torch.no_grad():
        setting.generator.network.head.bias.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e37, 1e9])
def test_a_slot_whose_image_is_not_finite_keeps_the_real_patch_and_the_generator_goes_back(value):
    setting = Setting(count=8, redraw={"mode": "tissue"}, mixing={"sources": {"deformation": 1.0, "redraw": 1.0}})
    setting.sampler.deformer.unbound()
    good = setting.tensors()
    break_generator(setting, value)
    replacement = sample(setting)
    drawn = setting.sampler.choose(8, 1.0, torch.Generator().manual_seed(0))["redraw"]
    assert 0 < len(drawn) < 8
    for slot, image, labels, accepted in zip(
        replacement.slots, replacement.pairs.image, replacement.pairs.labels, replacement.pairs.accepted, strict=True
    ):
        kept = torch.equal(image, setting.image[slot]) and torch.equal(labels, setting.labels[slot])
        assert kept == (slot in drawn)
        assert not (accepted and slot in drawn)
        assert torch.isfinite(image).all()
    said = setting.loop.check()
    assert said.startswith(CAUSES[0])
    assert "returns to its last finite state" in said
    assert all(same(good[name], parts) for name, parts in setting.tensors().items())
    assert setting.loop.check() == "", "once"


def test_a_generator_that_breaks_again_and_again_ends_the_training():
    setting = Setting(redraw={"mode": "tissue"}, mixing=REDRAW)
    for _ in range(LIMIT):
        break_generator(setting, float("nan"))
        sample(setting)
        assert setting.loop.check()
    break_generator(setting, float("nan"))
    sample(setting)
    with pytest.raises(FloatingPointError, match=rf"{CAUSES[0]}.*{LIMIT} times.*generator.learning_rate"):
        setting.loop.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_that_is_not_finite_is_reported_once_and_undone(family):
    setting = Setting(generator={"name": family}, **OFF)
    setting.learn()
    setting.loop.rollback.keep()
    good = setting.loop.state_dict()["learned"]["sampler"]["sources"]["redraw"]["generator"]
    good = through_a_file(good)
    assert setting.loop.check() == ""
    image = setting.image.clone()
    image[0, 0, 0, 0] = float("nan")
    setting.loop.training_step(image, setting.labels)
    assert setting.loop.check().startswith(CAUSES[1])
    assert setting.loop.check() == ""
    for found, expected in zip(leaves(setting.generator.state_dict()), leaves(good), strict=True):
        assert torch.equal(found, expected)
    for _ in range(LIMIT - 1):
        setting.loop.training_step(image, setting.labels)
        assert setting.loop.check()
    setting.loop.training_step(image, setting.labels)
    with pytest.raises(FloatingPointError, match=CAUSES[1]):
        setting.loop.check()


def leaves(state):
    """All tensors of a state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in leaves(state[key])]
    return [leaf for value in state for leaf in leaves(value)] if isinstance(state, (list, tuple)) else []


def test_what_another_process_found_is_reported_here_too():
    setting = Setting()

    def averaged_with_a_process_that_failed(tensors):
        for tensor in tensors:
            tensor /= 2

    setting.loop.synchronise = averaged_with_a_process_that_failed
    assert setting.loop.check().startswith(CAUSES[0])


def test_an_epoch_that_ends_with_a_state_that_is_not_finite_goes_back():
    setting = Setting()
    setting.learn()
    assert setting.loop.end_epoch() == ""
    good = setting.tensors()
    setting.learn()
    break_generator(setting, float("nan"))
    assert "state holds NaN or infinity; the generator returns to its last finite state" in setting.loop.end_epoch()
    assert all(same(good[name], parts) for name, parts in setting.tensors().items())
    assert setting.loop.rollback.faults == 1
    for _ in range(2):
        assert setting.loop.end_epoch() == ""
    assert setting.loop.rollback.faults == 0


def test_new_shapes_go_back_with_the_generator():
    setting = Setting(masks={"source": "shape_vae"})
    setting.learn()
    setting.loop.rollback.keep()
    good = through_a_file(setting.redraw.masks.state_dict())
    setting.learn()
    assert not same(leaves(good), leaves(setting.redraw.masks.state_dict()))
    setting.loop.rollback.undo("a test")
    assert same(leaves(good), leaves(setting.redraw.masks.state_dict()))


# ---------------------------------------------------------------------- state and processes


@pytest.mark.parametrize("masks", ["real", "shape_vae"])
@pytest.mark.parametrize("parameters", ["architecture", "weights", "policy"])
def test_a_restored_loop_continues_as_if_nothing_had_happened(parameters, masks):
    sections = {"feedback": {"parameters": parameters}, "masks": {"source": masks}}

    def advance(setting):
        setting.learn()
        found = sample(setting, 0.5)
        assert setting.feedback() == ""
        return found

    original, resumed = Setting(**sections), Setting(**sections, seed=9)
    resumed.sampler.deformer.largest.zero_()
    advance(original)
    resumed.loop.load_state_dict(through_a_file(original.loop.state_dict()))
    for _ in range(2):
        one, two = (advance(setting) for setting in (original, resumed))
        assert (one and one.slots) == (two and two.slots)
    for name, parts in original.tensors().items():
        assert same(parts, resumed.tensors()[name]), name
    assert torch.equal(original.sampler.deformer.largest, resumed.sampler.deformer.largest)
    drawn, again = sample(original), sample(resumed)
    assert drawn.slots == again.slots
    assert torch.equal(drawn.pairs.image, again.pairs.image)
    assert torch.equal(drawn.pairs.labels, again.pairs.labels)


def test_processes_start_alike_and_draw_differently():
    first, other = Setting(), Setting(rank=1)
    assert same(other.generator.weights(), first.generator.weights())
    slots = [[one.loop.sampler.choose(8, 0.5, one.loop.slot_rng) for _ in range(4)] for one in (first, other)]
    assert slots[0] != slots[1]
    assert not torch.equal(sample(first).pairs.image.sum(), sample(other).pairs.image.sum())
    other.loop.load_state_dict(through_a_file(first.loop.state_dict()))
    assert not torch.equal(sample(first).pairs.image.sum(), sample(other).pairs.image.sum())


@pytest.mark.parametrize("name", ["rng", "slot_rng"])
def test_resumed_processes_do_not_repeat_what_they_drew_before(name):
    first, other = Setting(), Setting(rank=1)
    drawn = []
    for _ in range(2):
        drawn.append(getattr(other.loop, name).get_state())
        sample(first)
        other.loop.load_state_dict(through_a_file(first.loop.state_dict()))
    drawn.append(getattr(other.loop, name).get_state())
    numbers = [torch.rand(4, generator=torch.Generator().set_state(state)).tolist() for state in drawn]
    assert numbers[0] != numbers[1] != numbers[2] != numbers[0]


@pytest.mark.parametrize("masks", ["real", "shape_vae"])
def test_nothing_is_drawn_from_the_global_random_state(masks, outside_random_state_untouched):
    setting = Setting(masks={"source": masks})
    setting.learn()
    assert sample(setting).pairs.image.any()
    assert setting.feedback() == ""


# ---------------------------------------------------------------------- work and waiting


def refused(*arguments):
    raise AssertionError("spread was called")


def test_by_default_nothing_is_spread_under_the_structures(monkeypatch):
    monkeypatch.setattr(conditioning, "spread", refused)
    setting = Setting()
    for _ in range(2):
        setting.learn()
        assert sample(setting) is not None
        assert setting.feedback() == ""
    new_shapes = Setting(mixing=REDRAW, masks={"source": "shape_vae"})
    with pytest.raises(AssertionError, match="spread was called"):
        sample(new_shapes)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU, beside the counters of Adam, which are on the CPU there as well."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "index.Tensor", "index_put", "unique")

    def __init__(self):
        super().__init__()
        self.found = []
        self.counting = True

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function).removeprefix("aten.")
        if self.counting and name.startswith(self.NAMES):
            self.found.append(name)
        return function(*arguments, **(options or {}))


class Copies(TorchFunctionMode):
    """Counts copies from the device."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.found += function in (torch.Tensor.cpu, torch.Tensor.numpy)
        return function(*arguments, **(options or {}))


@pytest.mark.skipif(Version(torch.__version__) < Version("2.3"), reason="torch before 2.3 compares tensors in its own code")
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_iteration_waits_for_the_device_once(family, dims, monkeypatch):
    """In `check` alone, for what happened in the iteration before."""
    setting = Setting(
        dims, channels=2, masked_channels=(1,), generator={"name": family}, mixing={"sources": {"deformation": 1, "redraw": 1}},
        feedback={"enabled": False},
    )  # fmt: skip
    setting.learn()  # tables and optimisers are made in the first iteration
    sample(setting)
    waits, copies, step = Waits(), Copies(), torch.optim.Adam.step

    def uncounted(self, *arguments):
        waits.counting = False
        try:
            return step(self, *arguments)
        finally:
            waits.counting = True

    monkeypatch.setattr(torch.optim.Adam, "step", uncounted)
    with waits, copies:
        assert setting.loop.check() == ""
        replacement = sample(setting)
        setting.learn()
    assert replacement is not None
    assert waits.found == []
    assert copies.found == 1
    recorded = [value for values in setting.loop.meter._values.values() for value in values]
    assert len(recorded) > 3
    assert all(isinstance(value, torch.Tensor) and not value.requires_grad for value in recorded)
    assert all(math.isfinite(value) for value in setting.loop.means().values())


# ---------------------------------------------------------------------- trained generators


@pytest.mark.parametrize("dims", [2, 3])
def test_a_loop_starts_from_a_kept_generator_and_goes_back_to_it(dims, tmp_path):
    images = replace(IMAGES, spacing=(1.0, 0.5, 0.5)[-dims:])

    def alone(seed):
        return BilevelLoop(configured(seed=seed), planned(dims), CODECS["labels"], 1, CPU)

    original, other = alone(0), alone(1)
    image, labels = real_pairs(CODECS["labels"], dims, 1)
    original.training_step(image, labels)
    original.keep_generator(tmp_path / "generator", images, {"Dataset901_Phantom2D": ["tr_000"]})
    expected = dict(original.trainable_generator().generator.average.weights())

    def differs():
        own = other.trainable_generator().generator.average.weights()
        return any(not torch.equal(expected[name], weight) for name, weight in own.items())

    assert differs()
    with pytest.raises(GenSegError, match=r"spacing is .* there"):
        other.start_from(tmp_path / "generator", replace(images, spacing=(3.0,) * dims))
    assert differs()
    assert other.start_from(tmp_path / "generator", images) == {"Dataset901_Phantom2D": ["tr_000"]}
    assert not differs()
    other.training_step(image, labels)
    assert differs()
    other.rollback.undo("a fault")
    assert not differs()


def test_nothing_is_kept_where_nothing_draws(tmp_path):
    loop = BilevelLoop(configured(mixing=DEFORMATION, **OFF), planned(2), CODECS["labels"], 1, CPU)
    for use in (partial(loop.keep_generator, cases={}), loop.start_from):
        with pytest.raises(GenSegError, match=r"mixing.sources has no `redraw`, so there is no generator to train or load"):
            use(tmp_path / "generator", IMAGES)
    loop = BilevelLoop(configured(generator={"name": "gmm"}, **OFF), planned(2), CODECS["labels"], 1, CPU)
    with pytest.raises(GenSegError, match="generator 'gmm' has no weights to save or load"):
        loop.keep_generator(tmp_path / "generator", IMAGES, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "family, parameters", [("gan", "architecture"), ("vae", "architecture"), ("diffusion", "weights"), ("gmm", "policy")]
)
def test_the_state_of_a_training_has_the_form_of_a_fresh_one(family, parameters, dims):
    """By which a state of another form is told before it is loaded."""
    sections = {
        "generator": {"name": family},
        "redraw": {"mode": "tissue"},
        "masks": {"source": "shape_vae"},
        "mixing": {"sources": {"deformation": 0.5, "redraw": 0.5}},
        "feedback": {"parameters": parameters},
    }
    fresh, trained = Setting(dims, **sections), Setting(dims, **sections)
    trained.learn(2)
    trained.sample(list("abc"))
    trained.feedback()
    state = through_a_file(trained.loop.state_dict())
    assert first_difference(fresh.loop.state_dict(), state) is None
    state["learned"]["sampler"]["deformer"]["largest"] = torch.zeros(1)
    assert first_difference(fresh.loop.state_dict(), state) == ".learned.sampler.deformer.largest"
