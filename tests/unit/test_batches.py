import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch.nn.functional import grid_sample
from toy import CODECS, CPU, DEFORMATION, Setting, real_pairs, seeded

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.spatial import warp_labels
from nnunetv2_genseg.trainers import batches
from nnunetv2_genseg.trainers.batches import SPATIAL_ENTRIES, BatchCodec, linear, nearest, unchanged

LINEAR = {"mode": "bilinear", "padding_mode": "reflection", "align_corners": False}
DIMS = pytest.mark.parametrize("dims", [2, 3])
CODEC = pytest.mark.parametrize("name", CODECS)
SLOTS = [3, 1]
"""Out of order, as they are when two sources take turns."""


def scales(dims):
    return [[1.0] * dims, [0.5] * dims, [0.25, *[0.5] * (dims - 1)]]


def dtype_of(codec):
    return torch.bool if codec.regions is not None else torch.int16


def nnunet_target(codec, labels, dims, deep):
    """As nnU-Net's loader makes it, patch by patch."""
    targets = codec.to_target(labels, dtype_of(codec))
    if not deep:
        return targets
    levels = zip(*(DownsampleSegForDSTransform(scales(dims))(segmentation=one)["segmentation"] for one in targets), strict=True)
    return [torch.stack(level) for level in levels]


def previous_stage(labels):
    """Two channels of zeros and ones."""
    return torch.stack([labels == 1, labels == 2], dim=1).float()


def case(dims=2, name="labels", deep=True, cascade=False, channels=2, pseudo=None):
    """What takes batches apart, a batch of five as nnU-Net's loader makes it, and pairs for two of its slots."""
    codec = CODECS[name]
    of_input = previous_stage if cascade else None
    made = BatchCodec(codec, pseudo or codec, channels, CPU, scales(dims) if deep else None, dtype_of(codec), of_input)
    image, labels = real_pairs(codec, dims, channels, count=5)
    data = torch.cat([image, previous_stage(labels).roll(1, dims=-1)], dim=1) if cascade else image
    batch = {
        "data": data,
        "target": nnunet_target(codec, labels, dims, deep),
        "keys": [f"case_{i}" for i in range(5)],
        "properties": [{}] * 5,
    }
    setting = Setting(dims, channels, name, count=5, mixing=DEFORMATION, feedback={"enabled": False})
    setting.sampler.deformer.unbound()
    replacement = setting.sampler.replace(image, labels, {"deformation": SLOTS}, seeded(2))
    assert replacement.pairs.accepted.all()
    return made, batch, replacement


def copied(values):
    return [one.clone() for one in values] if isinstance(values, list) else values.clone()


def levels_of(target):
    return target if isinstance(target, list) else [target]


@DIMS
@CODEC
@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
def test_parts_of_a_batch(deep, name, dims):
    made, batch, _ = case(dims, name, deep)
    parts = made.parts(batch)
    assert parts.network_input is batch["data"] or torch.equal(parts.network_input, batch["data"])
    assert torch.equal(parts.labels, real_pairs(CODECS[name], dims, 2, count=5)[1])
    assert torch.equal(parts.image, batch["data"][:, :2])
    assert isinstance(parts.target, list) == deep


@DIMS
@CODEC
@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
def test_replaced_slots_hold_the_pairs_and_the_others_what_they_held(deep, name, dims):
    made, batch, replacement = case(dims, name, deep)
    before = {key: copied(batch[key]) for key in ("data", "target")}
    found = made.replaced(batch, made.parts(batch), replacement)
    others, pairs = [0, 2, 4], replacement.pairs
    assert torch.equal(found["data"][SLOTS], pairs.image)
    assert torch.equal(found["data"][others], before["data"][others])
    expected = levels_of(nnunet_target(made.codec, pairs.labels, dims, deep))
    for level, old, new in zip(levels_of(found["target"]), levels_of(before["target"]), expected, strict=True):
        assert level.dtype == old.dtype
        assert torch.equal(level[SLOTS], new), "as nnU-Net's own transform makes it"
        assert torch.equal(level[others], old[others])
        assert not torch.equal(level, old)
    assert found["keys"] is batch["keys"]
    assert found["properties"] is batch["properties"]
    assert torch.equal(batch["data"], before["data"]), "the generator learns from the real patches afterwards"
    assert all(map(torch.equal, levels_of(batch["target"]), levels_of(before["target"])))


@DIMS
@CODEC
@pytest.mark.parametrize("deep", [False, True], ids=["one output", "deep supervision"])
def test_with_pairs_of_pseudo_labels_targets_have_an_ignore_label(deep, name, dims):
    made, batch, replacement = case(dims, name, deep, pseudo=CODECS[name].with_ignore())
    labels = replacement.pairs.labels
    labels[0, 0] = 3
    found = made.replaced(batch, made.parts(batch), replacement)
    regions = made.codec.regions is not None
    given = nnunet_target(made.pseudo, labels, dims, deep)
    for level, old, new in zip(levels_of(found["target"]), levels_of(batch["target"]), levels_of(given), strict=True):
        assert level.dtype == old.dtype
        assert torch.equal(level[SLOTS], new)
        assert torch.equal(level[[0, 2, 4], : old.shape[1]], old[[0, 2, 4]])
        if regions and not made.codec.has_ignore:
            assert level.shape[1] == old.shape[1] + 1
            assert not level[[0, 2, 4], -1].any()


def test_a_map_of_the_labelled_image_is_refused_where_other_images_take_its_place(rules):
    made, batch, _ = case()
    rules.update(skeleton=nearest, times=unchanged)
    made.require_known(batch | {"times": batch["data"]}, other_images=True)
    made.require_known(batch | {"skeleton": batch["target"][0]})
    with pytest.raises(GenSegError, match="'skeleton', which unlabelled images do not have"):
        made.require_known(batch | {"skeleton": batch["target"][0]}, other_images=True)


def test_a_batch_without_pairs_stays_as_it_is():
    made, batch, _ = case()
    found = made.replaced(batch | {"more": 3}, made.parts(batch), None)
    assert torch.equal(found["data"], batch["data"])
    assert all(map(torch.equal, found["target"], batch["target"]))
    assert found["more"] == 3


@DIMS
def test_in_a_cascade_the_errors_of_the_previous_stage_follow_the_deformation(dims):
    made, batch, replacement = case(dims, cascade=True)
    parts = made.parts(batch)
    assert parts.image.shape[1] == 2
    assert parts.network_input.shape[1] == 4
    found = made.replaced(batch, parts, replacement)
    assert torch.equal(found["data"][SLOTS, :2], replacement.pairs.image)
    assert torch.equal(found["data"][SLOTS, 2:], nearest(batch["data"][SLOTS, 2:], replacement.pairs.grid))
    assert not torch.equal(found["data"][SLOTS, 2:], previous_stage(replacement.pairs.labels)), "no pair shows its own mask"
    assert torch.equal(found["data"][[0, 2, 4]], batch["data"][[0, 2, 4]])


@DIMS
def test_in_a_cascade_the_previous_stage_of_what_was_pasted_is_made_up(dims):
    made, batch, replacement = case(dims, cascade=True)
    labels, followed = replacement.pairs.labels, nearest(batch["data"][SLOTS, 2:], replacement.pairs.grid)
    labels[:, :4, :4] = torch.where(labels[:, :4, :4] == 1, 2, 1)
    found = made.replaced(batch, made.parts(batch), replacement)["data"][SLOTS, 2:]
    assert torch.equal(found[:, :, :4, :4], previous_stage(labels)[:, :, :4, :4])
    assert torch.equal(found[:, :, 4:], followed[:, :, 4:])


@pytest.fixture
def rules(monkeypatch):
    """The table of rules, put back after the test."""
    table = dict(SPATIAL_ENTRIES)
    monkeypatch.setattr(batches, "SPATIAL_ENTRIES", table)
    return table


@DIMS
@pytest.mark.parametrize("shape", ["channels", "no channels", "list", "array", "coarser", "by name", "points", "points a patch"])
def test_a_further_map_without_a_rule_is_refused_by_name(shape, dims):
    made, batch, _ = case(dims)
    skeleton = torch.zeros_like(batch["target"][0])
    value = {
        "channels": skeleton,
        "no channels": skeleton[:, 0],
        "list": [skeleton, skeleton],
        "array": skeleton.numpy(),
        "coarser": batch["target"][1],
        "by name": {"of all classes": skeleton[:, 0]},
        "points": torch.zeros(5, 7, dims),
        "points a patch": [torch.zeros(i, dims) for i in range(5)],
    }[shape]
    made.require_known(batch)
    with pytest.raises(GenSegError, match=r"the map 'skeleton'.*SPATIAL_ENTRIES\['skeleton'\] to `nearest` or `linear`"):
        made.require_known(batch | {"skeleton": value})


def test_maps_that_the_rule_does_not_fit_are_refused(rules):
    made, batch, _ = case()
    rules["skeleton"] = nearest
    made.require_known(batch | {"skeleton": batch["target"][0]})
    for value in (batch["target"], batch["target"][1], batch["target"][0].numpy(), batch["target"][0][:, 0]):
        with pytest.raises(GenSegError, match=r"one tensor of shape \(B, channels, \*spatial\)"):
            made.require_known(batch | {"skeleton": value})


def test_what_does_not_lie_in_the_space_of_the_patch_may_be_handed_on(rules):
    made, batch, replacement = case()
    rules["embedding"] = unchanged
    batch["embedding"] = [torch.rand(5, 4, 4)]
    made.require_known(batch)
    assert made.replaced(batch, made.parts(batch), replacement)["embedding"] is batch["embedding"]


@DIMS
def test_further_maps_with_a_rule_follow_the_deformation_of_their_patch(dims, rules):
    made, batch, replacement = case(dims)
    batch["skeleton"] = (torch.rand(5, 2, *batch["data"].shape[2:], generator=seeded()) < 0.3).to(torch.int16)
    batch["weight"] = torch.rand(5, 1, *batch["data"].shape[2:], generator=seeded(1))
    before = {key: batch[key].clone() for key in ("skeleton", "weight")}
    rules |= {"skeleton": nearest, "weight": linear}
    made.require_known(batch)
    found = made.replaced(batch, made.parts(batch), replacement)
    for key, old in before.items():
        assert found[key].dtype == old.dtype
        assert torch.equal(found[key][[0, 2, 4]], old[[0, 2, 4]])
        assert torch.equal(batch[key], old)
    grid = replacement.pairs.grid
    for place, slot in enumerate(SLOTS):
        for channel in range(2):
            expected = warp_labels(before["skeleton"][slot : slot + 1, channel], grid[place : place + 1])[0]
            assert torch.equal(found["skeleton"][slot, channel], expected)
        torch.testing.assert_close(
            found["weight"][slot], grid_sample(before["weight"][slot : slot + 1], grid[place : place + 1], **LINEAR)[0]
        )
        assert not torch.equal(found["skeleton"][slot], before["skeleton"][slot])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_maps_of_any_type_are_deformed(dtype, rules):
    made, batch, replacement = case()
    batch["weight"] = (255 * torch.rand(5, 1, *batch["data"].shape[2:], generator=seeded(1))).to(dtype)
    rules["weight"] = linear
    found = made.replaced(batch, made.parts(batch), replacement)["weight"]
    slots = list(SLOTS)
    expected = grid_sample(batch["weight"][slots].float(), replacement.pairs.grid, **LINEAR)
    assert (found[slots].double() - expected).abs().max() <= (0.5 if dtype == torch.uint8 else 0.1), "rounded, not cut off"
    batch["weight"] = torch.ones_like(batch["weight"])
    found = made.replaced(batch, made.parts(batch), replacement)["weight"]
    assert (found.double() - 1).abs().max() < 1e-3, "a constant map stays constant"


@DIMS
def test_entries_that_are_no_maps_are_handed_on(dims):
    made, batch, replacement = case(dims)
    further = {"weights": torch.rand(5), "names": ["a"] * 5, "nothing": None, "empty": [], "small": torch.rand(5, 3), "number": 7}
    made.require_known(batch | further)
    found = made.replaced(batch | further, made.parts(batch), replacement)
    assert all(found[key] is value for key, value in further.items())


def test_a_network_input_for_pairs_alone():
    made, batch, _ = case(cascade=False)
    assert made.to_input(batch["data"], torch.zeros(1)) is batch["data"]
