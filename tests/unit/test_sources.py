import pytest
import torch
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.pairs import PairSource

from nnunetv2_genseg import masks
from nnunetv2_genseg.config import ConditioningConfig, GeneratorConfig, MaskConfig
from nnunetv2_genseg.generators import NetworkPlan, build_generator

CPU = torch.device("cpu")
MODES = ["mask", "tissue", "differential"]
STILL = {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0, "growth": 0.0, "recombination": 0.0}


def setting(mode="differential", dims=2, channels=1, ignore=False, shift=0.3, changes=None, tone=0.0):
    codec = LabelCodec.from_labels([1, 2], 3 if ignore else None)
    conditioning = ConditioningConfig(mode=mode, tissue_classes=3, intensity_shift=shift, tone=tone)
    source = PairSource(codec, channels, conditioning, MaskConfig(**(changes or {})), (True,) * dims, CPU)
    spatial = (16,) * dims if dims == 2 else (8,) * dims
    plan = NetworkPlan(spatial, (8, 8), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)
    config = GeneratorConfig(style_channels=3)
    generator = build_generator(
        config, plan, source.layout, seed=0, device=CPU, separate_architecture=False
    )
    labels = torch.zeros(2, *spatial, dtype=torch.long)
    for i in range(2):
        labels[(i, *(slice(1 + i, 6 + i),) * dims)] = 1
        labels[(i, *(slice(2 + i, 5 + i),) * dims)] = 2
    if ignore:
        labels[(slice(None), *(slice(-2, None),) * dims)] = 3
    image = labels[:, None] + 0.3 * torch.randn(2, channels, *spatial, generator=torch.Generator().manual_seed(0))
    source.observe(image, labels)
    return source, generator, image, labels


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_pairs_are_finite_and_reach_generator_and_policy(mode, dims, channels, ignore):
    source, generator, image, labels = setting(mode, dims, channels, ignore)
    pairs = source.draw(generator, image, labels, seeded(4))
    assert pairs.image.shape == image.shape
    assert pairs.labels.shape == labels.shape
    assert torch.isfinite(pairs.image).all()
    slopes = torch.autograd.grad(
        pairs.image.square().sum(), [*generator.weights(), source.policy.log_style], allow_unused=True
    )
    assert sum(float(slope.abs().sum()) for slope in slopes[:-1] if slope is not None) > 0
    assert slopes[-1] is not None
    assert slopes[-1] != 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_differential_without_any_change_is_the_real_pair(dims, channels):
    source, generator, image, labels = setting("differential", dims, channels, shift=0.0, changes=STILL)
    pairs = source.draw(generator, image, labels, seeded())
    torch.testing.assert_close(pairs.image.detach(), image, rtol=0, atol=1e-4)
    assert torch.equal(pairs.labels, labels)


def test_differential_moves_image_and_mask_together():
    changes = {**STILL, "elastic": 0.05, "smallest": 0.01}
    source, generator, _, labels = setting("differential", shift=0.0, changes=changes)
    source.largest.fill_(torch.inf)
    pairs = source.draw(generator, labels[:, None].float(), labels, seeded())
    assert not torch.equal(pairs.labels, labels)
    # linear against nearest interpolation: within the two labels' range everywhere, alike to half a label almost everywhere
    assert ((pairs.image[:, 0].detach() - pairs.labels).abs() < 0.75).float().mean() > 0.98


def test_deformation_is_one_field_for_image_and_mask_and_leaves_structures_in_place():
    source, _, image, labels = setting("deformation", changes={**STILL, "growth": 0.4})
    pairs = source.draw(None, image, labels, seeded())
    assert torch.equal(pairs.labels, labels)
    torch.testing.assert_close(pairs.image, image, rtol=0, atol=1e-5)
    source, _, image, labels = setting("deformation", changes={"smallest": 0.01, "elastic": 0.02})
    source.largest.fill_(torch.inf)
    pairs = source.draw(None, labels[:, None].float(), labels, seeded(3))
    assert not torch.equal(pairs.labels, labels)
    assert ((pairs.image[:, 0] - pairs.labels).abs() < 0.75).float().mean() > 0.98


def exchanging(mode, dims=2):
    source, generator, image, labels = setting(mode, dims, shift=0.0, changes={**STILL, "recombination": 1.0})
    source.largest.fill_(torch.inf)
    labels[(1, *(slice(7, 9),) * dims)] = 1
    return source, generator, image, labels


@pytest.mark.parametrize("mode", ["deformation", "mask", "tissue", "differential"])
def test_masks_are_recombined(mode):
    source, generator, image, labels = exchanging(mode)
    drawn = [source.draw(generator, image, labels, seeded(seed)).labels for seed in range(8)]
    assert any(not torch.equal(new, labels) for new in drawn)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", ["deformation", "differential"])
def test_a_transplant_brings_its_texture_along(mode, dims):
    """Away from the seam, the new image less what the generator draws is the donor's inside and the receiver's outside."""
    source, generator, image, labels = exchanging(mode, dims)
    image = torch.rand(image.shape, generator=seeded(1))
    if mode == "deformation":
        generator = None
    else:
        for parameter in generator.weights():
            parameter.data.zero_()
    swapped = next(s for s in range(50) if torch.randint(2, (2,), generator=seeded(s)).tolist() == [1, 0])
    pairs = source.draw(generator, image, labels, seeded(swapped))
    change = masks.draw_change(
        labels, 3, source.mask_config, source.largest, seeded(swapped), amount=1.0, movable_axes=(True,) * dims
    )
    assert change.exchanged[0].any()
    positions = masks.identity_grid(image.shape[2:], CPU).expand(2, *(-1,) * (dims + 1))
    donors = masks.warp_image(image[[1, 0]], masks.affine(positions, change.to_donor))
    pool = torch.nn.functional.max_pool2d if dims == 2 else torch.nn.functional.max_pool3d
    outside = ~change.exchanged[:, None]
    core, far = (pool(away.float(), 3, 1, 1) == 0 for away in (outside, ~outside))
    assert core.any()
    torch.testing.assert_close(pairs.image[core].detach(), donors[core], rtol=0, atol=1e-4)
    torch.testing.assert_close(pairs.image[far].detach(), image[far], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mode", ["deformation", *MODES])
def test_channels_that_are_zero_outside_of_the_subject_stay_so(mode, dims):
    source, generator, image, labels = setting(mode, dims, channels=3, changes={"recombination": 0.5}, tone=0.5)
    source.masked_channels = torch.tensor([True, False, True])
    outside = torch.zeros_like(labels, dtype=torch.bool)
    outside[..., -4:] = True
    image = image + 2
    image[:, [0, 2]] = image[:, [0, 2]].masked_fill(outside[:, None], 0)
    for seed in range(4):
        drawn = source.draw(None if mode == "deformation" else generator, image, labels, seeded(seed)).image
        zero = drawn == 0
        assert torch.equal(zero[:, 0], zero[:, 2])
        assert not zero[:, 1].any()
        share = zero[:, 0].float().mean()
        assert 0.5 * outside.float().mean() < share < 1.5 * outside.float().mean()
        assert not zero[:, 0][labels == 2].all()


@pytest.mark.parametrize("mode", ["deformation", *MODES])
def test_a_tone_curve_changes_the_contrast_alone_and_has_a_gradient_to_the_policy(mode):
    source, generator, image, labels = setting(mode, shift=0.0, changes=STILL, tone=0.8)
    plain = setting(mode, shift=0.0, changes=STILL)
    generator, other = (None, None) if mode == "deformation" else (generator, plain[1])
    bent, straight = source.draw(generator, image, labels, seeded()), plain[0].draw(other, image, labels, seeded())
    assert torch.equal(bent.labels, straight.labels)
    assert not torch.allclose(bent.image, straight.image)
    order = straight.image.flatten(2).argsort(dim=2)
    assert (bent.image.flatten(2).gather(2, order).diff(dim=2) > -1e-5).all()
    (slope,) = torch.autograd.grad(bent.image.pow(3).sum(), [source.policy.log_style])
    assert slope != 0


@pytest.mark.parametrize("mode", ["tissue", "differential"])
def test_intensity_shift_changes_appearance_alone(mode):
    still, shifted = (
        source.draw(generator, image, labels, seeded())
        for source, generator, image, labels in (setting(mode, shift=shift, changes=STILL) for shift in (0.0, 1.0))
    )
    assert torch.equal(still.labels, shifted.labels)
    assert (still.image - shifted.image).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["mask", "tissue"])
def test_drawn_from_scratch_the_real_image_s_detail_does_not_show_through(mode):
    """Only class means reach the condition: with a fixed scene, noise that keeps the means changes nothing."""
    source, generator, image, labels = setting(mode, changes=STILL)
    texture = torch.zeros_like(image)
    texture[:, :, 1:5:2, 1:5] = 1e-3
    first, second = (source.draw(generator, each, labels, seeded()).image for each in (image, image + texture))
    assert (first - second).abs().max() < 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_real_condition_has_the_layout_s_channels(mode):
    source, _, image, labels = setting(mode, channels=3)
    condition = source.real_condition(image, labels)
    assert condition.shape == (2, source.layout.channels, 16, 16)
    assert source.layout.tissues == (0 if mode == "mask" else 3)
    assert torch.equal(condition[:, 0], (labels == 1).float())
    assert torch.equal(condition[:, 1], (labels == 2).float())
    if mode != "mask":
        assert torch.equal(condition[:, 2:5].sum(dim=1), (labels == 0).float())


@pytest.mark.parametrize("mode", ["tissue", "differential"])
def test_intensity_below_the_ignore_label_counts_as_tissue(mode):
    source, _, image, labels = setting(mode, ignore=True)
    condition = source.real_condition(image, labels)
    assert torch.equal(condition[:, 2:5].sum(dim=1), ((labels == 0) | (labels == 3)).float())


def test_largest_structures_are_remembered():
    source, _, image, labels = setting()
    assert torch.equal(source.largest, masks.class_sizes(labels, 3).amax(dim=0))
    source.observe(image, torch.ones_like(labels))
    assert source.largest.tolist() == [231.0, 256.0, 9.0]


def test_the_deviation_is_that_within_the_patches_so_far():
    source, _, image, labels = setting(channels=2)
    other = image * 3 + 100 * torch.arange(2).view(2, 1, 1, 1)
    other[:, 1] = 7.0
    source.observe(other, labels)
    variance = (image[:, 0].flatten(1).var(dim=1).mean() + 9 * image[:, 0].flatten(1).var(dim=1).mean()) / 2
    torch.testing.assert_close(source.deviation[0].squeeze(), variance.sqrt())
    still, _, _, _ = setting()
    still.observe(torch.full_like(image[:, :1], float("nan")), labels)
    assert torch.equal(still.deviation, setting()[0].deviation), "what is not finite is not counted"


def test_a_channel_that_does_not_vary_stays_as_it_is():
    codec = LabelCodec.from_labels([1], None)
    source = PairSource(codec, 1, ConditioningConfig(), MaskConfig(), (True, True), CPU)
    image = torch.full((2, 1, 8, 8), 5.0)
    assert torch.equal(source.standardised(image), image), "nothing was observed"
    source.observe(image, torch.zeros(2, 8, 8, dtype=torch.long))
    assert torch.equal(source.standardised(image), image)


def test_style_is_wider_by_the_policy_s_factor():
    source, generator, image, _ = setting()
    plain = source.style(generator, image, seeded())
    assert plain.shape == (2, 3)
    with torch.no_grad():
        source.policy.log_style.fill_(0.5)
    wide = source.style(generator, image, seeded())
    torch.testing.assert_close(wide, plain * source.policy.style)
    assert source.policy.style > 1.3


def test_masked_channels_are_those_that_were_named():
    codec = LabelCodec.from_labels([1], None)
    source = PairSource(codec, 3, ConditioningConfig(), MaskConfig(), (True, True), CPU, masked_channels=(0, 2))
    assert source.masked_channels.tolist() == [True, False, True]
