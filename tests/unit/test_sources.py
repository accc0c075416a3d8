"""Pairs of every source (kind: what is blank or constant in a real patch stays so)."""

import pytest
import torch
from toy import CPU, DEFORMATION, FAMILIES, MODES, REDRAW, STILL, Setting, seeded

from nnunetv2_genseg.synthesis.intensity import tone_curve
from nnunetv2_genseg.synthesis.intensity_variation import IntensityVariation
from nnunetv2_genseg.synthesis.masks import MaskChange
from nnunetv2_genseg.synthesis.spatial import identity_grid, warp_image, warp_labels

OFF = {"feedback": {"enabled": False}}
PLAIN = {"deformation": STILL, "intensity": {"tone": 0.0, "shift": 0.0}}
DIMS = pytest.mark.parametrize("dims", [2, 3])
OF_GAN = [("deformation", "residual", "gan"), *(("redraw", mode, "gan") for mode in MODES)]
OTHERS = [("redraw", mode, family) for mode in MODES for family in FAMILIES if family != "gan"]
OTHERS.remove(("redraw", "mask", "gmm"))  # a mixture needs tissue classes
EVERY_MODE = pytest.mark.parametrize("name, mode, family", OF_GAN)


def setting_of(name, mode="residual", family="gan", dims=2, channels=1, **sections):
    sources = DEFORMATION if name == "deformation" else REDRAW
    made = Setting(dims, channels, mixing=sources, redraw={"mode": mode}, generator={"name": family}, **sections, **OFF)
    return made, made.sampler.sources[name]


def sample(setting, source, seed=0):
    return source.sample(setting.image, setting.labels, seeded(seed))


@pytest.mark.parametrize("codec", ["labels", "ignore"])
@pytest.mark.parametrize("channels", [1, 3])
@DIMS
@pytest.mark.parametrize("mode", MODES)
def test_redrawn_pairs_are_finite_and_reach_generator_and_policy(mode, dims, channels, codec):
    setting = Setting(dims, channels, codec, mixing=REDRAW, redraw={"mode": mode}, **OFF)
    setting.sampler.policy.requires_grad_()
    pairs = sample(setting, setting.redraw, 4)
    assert pairs.image.shape == setting.image.shape
    assert pairs.labels.shape == setting.labels.shape
    assert torch.isfinite(pairs.image).all()
    parameters = [*setting.generator.weights(), setting.sampler.policy.log_style]
    slopes = torch.autograd.grad(pairs.image.pow(3).sum(), parameters, allow_unused=True)
    assert sum(float(slope.abs().sum()) for slope in slopes[:-1] if slope is not None) > 0
    assert slopes[-1] is not None
    assert slopes[-1] != 0


@pytest.mark.parametrize(
    "name, mode, family, dims", [*((*one, dims) for one in OF_GAN for dims in (2, 3)), *((*one, 2) for one in OTHERS)]
)
def test_a_blank_or_constant_channel_of_a_patch_stays_exactly_as_it_is(name, mode, family, dims):
    """Cases that lack a modality have a blank channel: it must not show the mask."""
    setting, source = setting_of(name, mode, family, dims, channels=3, intensity={"tone": 0.5, "shift": 1.0})
    setting.image[0, 1] = 0.0
    setting.image[1, 2] = 0.7
    setting.image[1, 1] = -1e-3
    setting.sampler.deformer.unbound()
    setting.learn(3)
    for seed in range(2):
        pairs = sample(setting, source, seed)
        assert torch.equal(pairs.image[0, 1], setting.image[0, 1])
        assert torch.equal(pairs.image[1, 1:], setting.image[1, 1:])
        for patch, channel in ((0, 0), (0, 2), (1, 0), (2, 1), (2, 2)):
            assert not torch.equal(pairs.image[patch, channel], setting.image[patch, channel])


@DIMS
@EVERY_MODE
def test_channels_that_are_zero_outside_of_the_subject_stay_so(name, mode, family, dims):
    setting, source = setting_of(name, mode, family, dims, channels=3, masked_channels=(0, 2), intensity={"tone": 0.5})
    outside = torch.zeros_like(setting.labels, dtype=torch.bool)
    outside[..., -3:] = True
    setting.image = setting.image + 2
    setting.image[:, [0, 2]] = setting.image[:, [0, 2]].masked_fill(outside[:, None], 0)
    setting.sampler.deformer.unbound()
    setting.learn(2)
    for seed in range(3):
        pairs = sample(setting, source, seed)
        zero, expected = pairs.image == 0, warp_labels(outside.long(), pairs.grid).bool()
        assert torch.equal(zero[:, 0], expected)
        assert torch.equal(zero[:, 2], expected)
        assert not zero[:, 1].any()
        assert 0 < expected.float().mean() < 0.6


@DIMS
def test_a_masked_channel_s_zeros_inside_of_the_subject_are_not_taken_for_its_outside(dims):
    """Only where all masked channels are 0 is outside."""
    setting, source = setting_of("deformation", dims=dims, channels=2, masked_channels=(0, 1), **PLAIN)
    setting.image += 5
    setting.image[:, 0, 2:4] = 0
    pairs = sample(setting, source)
    torch.testing.assert_close(pairs.image, setting.image, rtol=0, atol=1e-4)


@DIMS
@pytest.mark.parametrize("name", ["deformation", "redraw"])
def test_without_any_change_a_pair_is_the_patch(name, dims):
    setting, source = setting_of(name, dims=dims, channels=3, **PLAIN)
    pairs = sample(setting, source)
    torch.testing.assert_close(pairs.image.detach(), setting.image, rtol=0, atol=1e-4)
    assert torch.equal(pairs.labels, setting.labels)


@DIMS
@pytest.mark.parametrize("name", ["deformation", "redraw"])
def test_without_shift_and_tone_a_pair_is_exactly_the_deformed_patch(name, dims):
    setting, source = setting_of(name, dims=dims, intensity={"tone": 0.0, "shift": 0.0})
    setting.sampler.deformer.unbound()
    setting.learn(3)
    pairs = sample(setting, source)
    assert not torch.equal(pairs.labels, setting.labels)
    assert torch.equal(pairs.labels, warp_labels(setting.labels, pairs.grid))
    deformed = warp_image(setting.image, pairs.grid)
    if name == "deformation":
        assert torch.equal(pairs.image, deformed)
    torch.testing.assert_close(pairs.image.detach(), deformed, rtol=0, atol=1e-5)


@DIMS
@pytest.mark.parametrize("name", ["deformation", "redraw"])
def test_image_and_mask_are_moved_by_one_field(name, dims):
    setting, source = setting_of(name, dims=dims, intensity={"tone": 0.0, "shift": 0.0})
    setting.sampler.deformer.unbound()
    setting.image = setting.labels[:, None].float()
    pairs = sample(setting, source, 3)
    assert not torch.equal(pairs.labels, setting.labels)
    # linear or cubic against nearest interpolation: alike to half a label almost everywhere
    assert ((pairs.image[:, 0].detach() - pairs.labels).abs() < 0.75).float().mean() > 0.97


def test_a_rejected_mask_leaves_the_patch_in_place():
    setting, source = setting_of("deformation", intensity={"tone": 0.0})
    setting.sampler.deformer.largest.zero_()
    setting.labels[:] = 0
    setting.labels[:, 5:9, 5:9] = 1
    accepted = 0
    for seed in range(10):
        pairs = sample(setting, source, seed)
        for i in range(3):
            if not pairs.accepted[i]:
                assert torch.equal(pairs.labels[i], setting.labels[i])
                torch.testing.assert_close(pairs.image[i], setting.image[i], rtol=0, atol=1e-5)
            else:
                assert not torch.equal(pairs.image[i], setting.image[i])
        accepted += int(pairs.accepted.sum())
    assert 0 < accepted < 30


@EVERY_MODE
def test_a_tone_curve_changes_the_contrast_alone_and_has_a_gradient_to_the_policy(name, mode, family):
    bent, straight = (
        setting_of(name, mode, family, deformation=STILL, intensity={"tone": tone, "shift": 0.0}) for tone in (0.8, 0.0)
    )
    bent[0].sampler.policy.requires_grad_()
    for setting, _ in (bent, straight):
        setting.learn(2)
    curved, plain = (sample(*each) for each in (bent, straight))
    assert torch.equal(curved.labels, plain.labels)
    assert not torch.allclose(curved.image, plain.image)
    order = plain.image.flatten(2).argsort(dim=2)
    assert (curved.image.flatten(2).gather(2, order).diff(dim=2) > -1e-4).all()
    (slope,) = torch.autograd.grad(curved.image.pow(3).sum(), [bent[0].sampler.policy.log_style])
    assert slope != 0


def test_the_tone_curve_is_that_of_the_configured_width_times_the_style_factor():
    setting, source = setting_of("deformation", deformation=STILL, intensity={"tone": 0.4})
    with torch.no_grad():
        setting.sampler.policy.log_style.fill_(0.5)
    rng = seeded(2)
    setting.sampler.deformer.sample(setting.labels, rng)
    expected = tone_curve(setting.image, 0.4 * setting.sampler.policy.style.detach(), rng)
    torch.testing.assert_close(sample(setting, source, 2).image.detach(), expected, rtol=1e-4, atol=1e-4)


@DIMS
@pytest.mark.parametrize("mode", ["tissue", "residual"])
def test_an_intensity_shift_changes_the_image_alone(mode, dims):
    pairs = []
    for shift in (0.0, 1.0):
        setting, source = setting_of("redraw", mode, dims=dims, deformation=STILL, intensity={"shift": shift, "tone": 0.0})
        pairs.append(sample(setting, source))
    assert torch.equal(pairs[0].labels, pairs[1].labels)
    assert (pairs[0].image - pairs[1].image).abs().max() > 0.01


def test_shifts_are_as_large_as_the_classes_differ_between_the_patches_that_the_generator_learns_from():
    setting, source = setting_of("redraw", "tissue", intensity={"tone": 0.0})
    source.variation = IntensityVariation(source.layout.scene_classes, 1, CPU)
    setting.image *= torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1)
    setting.learn()
    own = torch.stack([image[0][labels == 1].mean() for image, labels in zip(setting.image, setting.labels, strict=True)])
    expected = own.std(unbiased=False) / source.deviation.squeeze()
    torch.testing.assert_close(source.variation.shift(50_000, seeded())[:, 1, 0].std(), expected, rtol=0.02, atol=0)


def test_in_mode_residual_the_style_factor_scales_the_shift():
    found = []
    for logarithm in (-2.0, 0.0, 1.0):
        setting, source = setting_of("redraw", deformation=STILL, intensity={"shift": 0.05, "tone": 0.0})
        with torch.no_grad():
            setting.sampler.policy.log_style.fill_(logarithm)
        found.append(float((sample(setting, source).image - setting.image).abs().mean().detach()))
    assert found[0] < 0.7 * found[1] < found[1] < 0.7 * found[2]


@pytest.mark.parametrize("mode", ["mask", "tissue"])
def test_drawn_from_scratch_the_real_image_s_detail_does_not_show_through(mode):
    """Only class means reach the condition: with a fixed scene, noise that keeps the means changes nothing."""
    setting, source = setting_of("redraw", mode, **PLAIN)
    first = sample(setting, source).image
    setting.image[:, :, 1:5:2, 1:5] += 1e-3
    assert (first - sample(setting, source).image).abs().max() < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_the_real_condition_has_the_layouts_channels(mode):
    setting, source = setting_of("redraw", mode, channels=3)
    condition = setting.real_condition(setting.image, setting.labels)
    assert condition.shape == (3, source.layout.channels, 16, 16)
    assert source.layout.tissues == (0 if mode == "mask" else 3)
    assert torch.equal(condition[:, 0], (setting.labels == 1).float())
    assert torch.equal(condition[:, 1], (setting.labels == 2).float())
    if mode != "mask":
        assert torch.equal(condition[:, 2:5].sum(dim=1), (setting.labels == 0).float())


@pytest.mark.parametrize("mode", ["tissue", "residual"])
def test_intensity_below_the_ignore_label_counts_as_tissue(mode):
    setting = Setting(codec="ignore", mixing=REDRAW, redraw={"mode": mode}, **OFF)
    condition = setting.real_condition(setting.image, setting.labels)
    assert torch.equal(condition[:, 2:5].sum(dim=1), ((setting.labels == 0) | (setting.labels == 3)).float())


def test_the_deviation_is_that_within_the_patches_so_far():
    setting, source = setting_of("redraw", channels=2)
    assert torch.equal(source.deviation, torch.ones(2, 1, 1)), "nothing was observed"
    setting.learn()
    other = setting.image * 3 + 100 * torch.arange(2).view(2, 1, 1)
    other[:, 1] = 7.0
    own = setting.image.flatten(2).var(dim=2).mean(dim=0)
    source.training_step(other, setting.labels, seeded())
    torch.testing.assert_close(source.deviation.view(2), torch.stack([10 * own[0] / 2, own[1] / 2]).sqrt())
    before = source.deviation
    source.training_step(torch.full_like(other, float("nan")), setting.labels, seeded())
    assert torch.equal(source.deviation, before), "what is not finite is not counted"


def test_the_deviation_of_a_channel_that_does_not_vary_is_1():
    setting, source = setting_of("redraw", channels=2)
    setting.image[:, 1] = 5.0
    setting.learn()
    assert source.deviation[1].item() == 1.0
    assert source.deviation[0].item() != 1.0


def test_the_variance_is_that_of_all_processes():
    setting, source = setting_of("redraw")
    object.__setattr__(source.context, "synchronise", lambda tensors: [tensor.mul_(4) for tensor in tensors])
    setting.learn()
    own = setting.image.flatten(2).var(dim=2).mean(dim=0)
    torch.testing.assert_close(source.deviation.view(1), (4 * own).sqrt())


def test_generators_learn_from_images_of_unit_variance():
    """Whatever the units of the images, the L1 distance before any step is about that of unit variance."""
    distances = []
    for scale in (1.0, 1024.0):
        setting, _ = setting_of("redraw", "tissue")
        setting.image = setting.image * scale
        setting.learn()
        distances.append(setting.loop.means()["l1"])
    assert distances[0] == distances[1]


# ---------------------------------------------------------------------- new shapes


@pytest.mark.parametrize("codec", ["labels", "regions", "ignore"])
@DIMS
def test_new_shapes_of_every_kind_of_target(dims, codec):
    first, again = (Setting(dims, codec=codec, mixing=REDRAW, masks={"source": "shape_vae"}, **OFF) for _ in range(2))
    for setting in (first, again):
        setting.learn(10)
        setting.sampler.deformer.largest *= 1.3  # all real structures are of one size, which no other shape has
    assert first.redraw.masks.new_shapes
    pairs, repeated = (sample(setting, setting.redraw) for setting in (first, again))
    assert torch.equal(pairs.labels, repeated.labels)
    assert torch.equal(pairs.image, repeated.image)
    for i in range(3):
        assert set(pairs.labels[i].unique().tolist()) <= set(first.labels[i].unique().tolist())
    if first.codec.has_ignore:
        assert (pairs.labels == 3).any()


@pytest.mark.parametrize("mode", MODES)
def test_the_condition_of_a_new_shape_holds_its_mask(mode):
    """What the generator is told is the mask of the pair, also where it bares what the real mask covered."""
    setting, source = setting_of("redraw", mode, masks={"source": "shape_vae"}, deformation=STILL)
    larger = torch.zeros_like(setting.labels)
    larger[:, 3:13, 3:13] = 1
    grid = identity_grid(larger.shape[1:], larger.device).expand(3, -1, -1, -1)
    change = MaskChange(larger, grid, torch.ones(3, dtype=torch.bool))
    what = source._redrawing(setting.image, setting.labels, change, seeded())
    assert torch.equal(what.wanted[:, 0], (larger == 1).float())
    assert not what.wanted[:, 1].any()
    if mode != "mask":
        assert torch.equal(what.wanted[:, 2:5].sum(dim=1), (larger == 0).float())
    if mode == "residual":
        assert torch.equal(what.present[:, 1], (setting.labels == 2).float())


def test_only_new_shapes_show_the_generator_where_it_cancels():
    assert not setting_of("redraw", intensity={"shift": 0.0})[1].shows_generator
    assert setting_of("redraw", intensity={"shift": 0.1})[1].shows_generator
    assert setting_of("redraw", "tissue", intensity={"shift": 0.0})[1].shows_generator
    assert setting_of("redraw", masks={"source": "shape_vae"}, intensity={"shift": 0.0})[1].shows_generator
    assert not setting_of("deformation")[1].shows_generator
    assert setting_of("deformation")[1].generator is None
