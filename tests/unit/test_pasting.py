import pytest
import torch
from scipy import ndimage
from toy import CODECS, CPU, DEFORMATION, STILL, Setting, configured, planned, real_pairs, seeded, through_a_file

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.config import DeformationConfig, GenSegError
from nnunetv2_genseg.synthesis.distance import distance_to
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.paster import CAPACITY, pasted
from nnunetv2_genseg.synthesis.pasting import PASTES, PasteContext
from nnunetv2_genseg.synthesis.pasting.box import FRACTION
from nnunetv2_genseg.synthesis.pasting.lesion import one_component

OFF = {"feedback": {"enabled": False}}
PLAIN = {"deformation": STILL, "intensity": {"tone": 0.0, "shift": 0.0}, "mixing": DEFORMATION, **OFF}
DIMS = pytest.mark.parametrize("dims", [2, 3])
CODEC = LabelCodec.from_labels([1, 2], 3)


def context(dims=2, free=(1, 2), movable=None, deformation=STILL):
    made = PasteContext(CODEC, DeformationConfig(**deformation), movable or (True,) * dims)
    made.free_classes = free
    return made


def one_structure(dims, count=40, extent=32, size=8, at=4, label=1):
    """Images that are 1 at the structure, and class maps."""
    labels = torch.zeros(count, *(extent,) * dims, dtype=torch.long)
    labels[(slice(None), *(slice(at, at + size),) * dims)] = label
    return labels[:, None].float(), labels


# ---------------------------------------------------------------------- distances


@DIMS
def test_distances_are_euclidean_within_reach(dims):
    target = torch.rand(3, *(20,) * dims, generator=seeded(1)) < 0.02
    for reach in (3, 40):
        found = distance_to(target, reach)
        for i in range(3):
            expected = torch.from_numpy(ndimage.distance_transform_edt(~target[i].numpy())).float()
            torch.testing.assert_close(found[i], expected.clamp(max=reach))


def test_where_there_is_nothing_all_is_as_far_as_the_reach():
    assert (distance_to(torch.zeros(1, 5, 5, dtype=torch.bool), 4) == 4).all()


def test_distances_within_slices_are_those_of_each_slice():
    target = torch.rand(2, 5, 20, 20, generator=seeded(1)) < 0.02
    target[:, 2] = False
    found = distance_to(target, 6, (False, True, True))
    assert torch.equal(found.flatten(0, 1), distance_to(target.flatten(0, 1), 6))
    assert (found[:, 2] == 6).all()


# ---------------------------------------------------------------------- ways to paste


@DIMS
def test_a_box_has_the_volume_and_lies_anywhere_within_the_patch(dims):
    image, labels = one_structure(dims, count=500)
    drawn, own, part = PASTES["box"](context(dims))(image, labels, seeded())
    assert drawn is image
    assert own is labels
    share = part.flatten(1).float().mean(dim=1)
    rim = 2 * dims / 32  # a voxel more or less along every axis
    assert FRACTION[0] - rim < share.min() < 0.2
    assert 0.4 < share.max() < FRACTION[1] + rim
    for axis in range(1, dims + 1):
        line = part.movedim(axis, 1).flatten(2).any(dim=2).float()
        assert (line.diff(dim=1).abs().sum(dim=1) <= 2).all(), "one interval along every axis"
        assert (line.mean(dim=0) > 0).all(), "everywhere along it"


@DIMS
def test_carving_takes_the_structure_with_a_margin_between_half_and_twice_its_depth(dims):
    image, labels = one_structure(dims, count=300, at=12)
    _, _, part = PASTES["carve"](context(dims))(image, labels, seeded())
    volume = part.flatten(1).sum(dim=1)
    assert 0 < volume.min() < 0.7 * 8**dims
    assert volume.max() > 1.7 * 8**dims
    depth = 4
    assert not part[distance_to(labels > 0, 16) > depth].any(), "the margin is no wider than the structure is deep"
    inner = distance_to(labels == 0, 16) > depth / 2
    assert part[inner].all(), "of the structure at most half of its depth is left out"


@pytest.mark.parametrize("thickness", [1, 2])
@pytest.mark.parametrize("name", ["carve", "lesion"])
def test_on_thick_slices_structures_have_a_margin_as_often_as_in_2d(name, thickness):
    """A structure of 24 x 24 voxels in a patch of 64 x 64; the part is now and then the bare structure."""
    _, flat = one_structure(2, count=300, extent=64, size=24, at=20)
    thick = torch.zeros(300, 6, 64, 64, dtype=torch.long)
    thick[:, 2 : 2 + thickness] = flat[:, None]
    bare = []
    for labels, made in ((flat, context()), (thick, context(3, movable=(False, True, True)))):
        _, own, part = PASTES[name](made)(labels[:, None].float(), labels, seeded())
        assert part.any()
        bare.append(float((part == (own > 0)).flatten(1).all(dim=1).float().mean()))
    assert bare[0] == pytest.approx(0.15, abs=0.06)
    assert bare[1] == pytest.approx(0.15, abs=0.06)
    assert not part[:, :2].any(), "the margin lies within the slices"
    assert not part[:, 2 + thickness :].any()


@pytest.mark.parametrize("name", ["carve", "lesion"])
def test_without_a_structure_nothing_is_pasted_and_the_ignore_label_is_none(name):
    image, labels = one_structure(2, count=3, label=0)
    labels[1, 3:9, 3:9] = 3
    assert not PASTES[name](context())(image, labels, seeded())[2].any()


@DIMS
def test_a_lesion_moves_with_its_image_and_its_label_to_places_all_over_the_patch(dims):
    image, labels = one_structure(dims, count=200)
    moved, own, part = PASTES["lesion"](context(dims))(image, labels, seeded())
    assert set(own.unique().tolist()) == {0, 1}
    assert ((moved[:, 0] - own).abs() < 0.6).float().mean() > 0.99
    shown = own * part
    volume = shown.flatten(1).sum(dim=1)
    assert (volume > 0.2 * 8**dims).all()
    assert (volume <= 1.2 * 8**dims).all()
    index = torch.arange(32.0)
    for axis in range(1, dims + 1):
        line = shown.sum(dim=tuple(i for i in range(1, dims + 1) if i != axis))
        centre = (line * index).sum(dim=1) / line.sum(dim=1)
        assert 4 < centre.min() < 10
        assert 22 < centre.max() < 28


def test_a_lesion_is_scaled_and_turned_as_far_as_masks_are():
    image, labels = one_structure(2, count=100)
    labels[:, 4:8, 4:12] = 0
    plain, scaled, turned = (
        (own * part).float()
        for _, own, part in (
            PASTES["lesion"](context(deformation={**STILL, **setting}))(image, labels, seeded())
            for setting in ({}, {"scaling": 0.4}, {"rotation": 90.0})
        )
    )
    ratio = scaled.flatten(1).sum(dim=1) / plain.flatten(1).sum(dim=1)
    assert 0.3 < ratio.min() < 0.6
    assert 1.6 < ratio.max() < 3.2
    widest, turned_widest = (each.any(dim=1).sum(dim=1).float() for each in (plain, turned))
    assert (turned_widest < 0.75 * widest).any(), "what lay along an axis stands on it"


def test_along_an_axis_that_does_not_move_a_lesion_stays():
    image, labels = one_structure(3, count=20)
    _, own, _ = PASTES["lesion"](context(3, movable=(False, True, True)))(image, labels, seeded())
    rows = own.flatten(2).any(dim=2)
    assert rows[:, 4:12].all()
    assert rows.sum() == 8 * 20


@pytest.mark.parametrize("free", [(), (2,)])
def test_a_class_that_belongs_to_its_place_is_not_moved(free):
    image, labels = one_structure(2)
    assert not PASTES["lesion"](context(free=free))(image, labels, seeded())[2].any()


@DIMS
def test_of_several_structures_one_that_the_border_does_not_cut_is_pasted(dims):
    _, labels = one_structure(dims, count=60, size=4, at=0)
    assert not one_component(labels > 0, seeded()).any(), "the border cuts it"
    for at in (8, 16):
        labels[(slice(None), *(slice(at, at + 4),) * dims)] = 1
    found = one_component(labels > 0, seeded())
    assert (found.flatten(1).sum(dim=1) == 4**dims).all()
    first = found[(slice(None), *(9,) * dims)]
    assert 15 < first.sum() < 45, "each of the two about equally often"
    assert not found[(slice(None), *(1,) * dims)].any()


def test_a_lesion_is_not_there_twice_where_its_image_is_mirrored_at_the_border():
    image, labels = one_structure(2, count=300, at=12)
    _, own, part = PASTES["lesion"](context())(image, labels, seeded())
    shown = (own * part).flatten(1).sum(dim=1)
    assert shown.max() <= 1.15 * 64


# ---------------------------------------------------------------------- pasting


@DIMS
def test_inside_the_part_all_is_the_donor_s_and_outside_the_receiver_s(dims):
    image, labels = real_pairs(CODEC, dims, 2)
    other, own = real_pairs(CODEC, dims, 2, seed=5)
    own = own.flip(1)
    part = torch.rand(labels.shape, generator=seeded()) < 0.3
    drawn, classes = pasted(image, labels, other, own, part)
    assert torch.equal(drawn, torch.where(part[:, None], other, image))
    assert torch.equal(classes, torch.where(part, own, labels))


def test_nothing_is_pasted_between_cases_that_lack_different_channels():
    image, labels = real_pairs(CODEC, 2, 2)
    other, own = real_pairs(CODEC, 2, 2, seed=5)
    image[0, 1] = 0.0
    other[1, 1] = 0.0
    image[2, 1], other[2, 1] = 0.0, 0.4
    everywhere = torch.ones_like(labels, dtype=torch.bool)
    drawn, classes = pasted(image, labels, other, own.flip(1), everywhere)
    for i in (0, 1):
        assert torch.equal(drawn[i], image[i])
        assert torch.equal(classes[i], labels[i])
    assert torch.equal(drawn[2, 0], other[2, 0])
    assert (drawn[2, 1] == 0).all(), "both lack the channel: it stays as it is"
    assert torch.equal(classes[2], own.flip(1)[2])


def paster(probability=1.0, count=4, **paste):
    setting = Setting(count=count, paste={"probability": probability, **paste}, **PLAIN)
    return setting, setting.sampler.paster


def test_donors_are_of_other_cases_alone():
    setting, made = paster()
    made.remember(setting.image, setting.labels, ["a", "a", "b", "a"])
    for seed in range(20):
        chosen = made._choose(["a", "b", "b", "c"], range(4), seeded(seed))
        slots = dict(chosen["box"])
        assert made.donors[slots[0]][0] == "b"
        assert made.donors[slots[1]][0] == "a"
        assert made.donors[slots[2]][0] == "a"
        assert 3 in slots
    assert made._choose(["a"], [0], seeded()) != {}
    made.donors.clear()
    made.remember(setting.image, setting.labels, ["a"] * 4)
    assert made._choose(["a"], [0], seeded()) == {}, "no other case"


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_patches_are_chosen_with_the_probability_and_kinds_by_their_weights(probability):
    setting, made = paster(probability, kinds={"box": 1.0, "carve": 3.0})
    made.remember(setting.image, setting.labels, list("abcd"))
    chosen = made._choose(["e"] * 4000, range(4000), seeded())
    counts = {name: len(slots) for name, slots in chosen.items()}
    assert sum(counts.values()) == pytest.approx(4000 * probability, abs=150)
    if probability:
        assert counts["carve"] / counts["box"] == pytest.approx(3, rel=0.15)


def test_only_the_latest_patches_are_kept_and_later_changes_do_not_reach_them():
    setting, made = paster()
    for name in "pqr":
        made.remember(setting.image, setting.labels, [name] * 4)
    assert len(made.donors) == CAPACITY
    assert {case for case, _, _ in made.donors} == {"q", "r"}
    kept = setting.image[3].clone()
    setting.image.zero_()
    assert torch.equal(made.donors[-1][1], kept)


def test_only_the_named_slots_change():
    setting, made = paster()
    other = real_pairs(setting.codec, 2, 1, 4, seed=9)
    made.remember(*other, ["z"] * 4)
    image, labels = made.paste(setting.image, setting.labels, list("abcd"), [1, 3], seeded(), seeded())
    for i in range(4):
        assert torch.equal(image[i], setting.image[i]) == (i not in (1, 3))
    assert labels.shape == setting.labels.shape


def test_a_pair_is_made_from_what_was_pasted_into():
    setting, made = paster()
    other = real_pairs(setting.codec, 2, 1, 4, seed=9)
    made.remember(*other, ["z"] * 4)
    replacement = setting.sample(list("abcd"))
    pairs = replacement.pairs
    donors = torch.cat([other[0], setting.image])[None, :, 0]
    close = (pairs.image - donors).abs() < 1e-4
    from_receiver = torch.stack([close[i, 4 + i] for i in range(4)])
    from_donor = (close.sum(dim=1) - from_receiver.long()) > 0
    share = from_donor.flatten(1).float().mean(dim=1)
    assert ((share > 0.05) & (share < 0.7)).all()
    assert (from_donor | from_receiver).float().mean() > 0.999
    plain = setting.sample().pairs
    assert torch.allclose(plain.image, setting.image, atol=1e-3), "without cases nothing is pasted"


def test_a_resumed_loop_pastes_as_the_first_one():
    loops = []
    for _ in range(2):
        setting = Setting(count=4, paste={"probability": 1.0, "kinds": {"box": 1.0, "lesion": 1.0}}, **PLAIN)
        loops.append(setting)
    first, second = loops
    first.loop.free([1, 2])
    first.sample(list("abcd"))
    second.loop.load_state_dict(through_a_file(first.loop.state_dict()))
    assert second.sampler.paster.context.free_classes == (1, 2)
    for _ in range(3):
        one, two = (each.sample(list("wxyz")) for each in loops)
        assert torch.equal(one.pairs.image, two.pairs.image)
        assert torch.equal(one.pairs.labels, two.pairs.labels)


@DIMS
def test_masks_with_a_pasted_structure_are_deformed_as_often_as_others(dims):
    """Every patch shows one structure, and any two of them are larger than the largest."""
    labels = torch.zeros(4, *[24] * dims, dtype=torch.long)
    for i, patch in enumerate(labels):
        row, column, side = 3 + 10 * (i // 2), 3 + 10 * (i % 2), 6 + i
        patch[..., row : row + side, column : column + side] = 1
        if dims == 3:
            patch[:4] = patch[20:] = 0
    image = labels[:, None] + 0.1 * torch.randn(4, 1, *labels.shape[1:], generator=seeded())
    accepted = []
    for probability in (0.0, 1.0):
        settings = configured(paste={"probability": probability, "kinds": {"carve": 1.0}}, mixing=DEFORMATION, **OFF)
        loop, shown = BilevelLoop(settings, planned(dims), CODECS["labels"], 1, CPU), []
        for _ in range(20):
            pairs = loop.sample(image, labels, list("abcd"), loop.choose(4, 1.0)).pairs
            shown.append(pairs.accepted.float().mean())
        accepted.append(float(torch.stack(shown).mean()))
    assert accepted[0] > 0.6
    assert accepted[1] > accepted[0] - 0.15


def test_nothing_is_pasted_of_patches_that_were_forgotten():
    setting, made = paster()
    made.remember(setting.image, setting.labels, list("abcd"))
    setting.loop.forget_donors()
    assert made._choose(["e"], [0], seeded()) == {}


def test_an_unknown_way_is_refused():
    with pytest.raises(GenSegError, match=r"paste\.kinds: no 'boxes'; registered are box, carve, lesion"):
        paster(kinds={"boxes": 1.0})
