import io
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from nnunetv2_genseg import masks, shapes
from nnunetv2_genseg.config import ConditioningConfig, GenSegConfig, MaskConfig, checked
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.pairs import PairSource
from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.shapes import LearnedShapes, frames, signed_distance

CPU = torch.device("cpu")
STILL = {"elastic": 0.0, "rotation": 0.0, "scaling": 0.0, "growth": 0.0, "recombination": 0.0}
IGNORE = 3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(spatial, radii=(0.5,), centre=0.0):
    """(1, *spatial) concentric ellipsoids, the first one largest, in classes 1, 2, ..."""
    axes = torch.meshgrid(*((torch.arange(n) * 2 + 1) / n - 1 - centre for n in spatial), indexing="ij")
    distance = sum(axis.square() for axis in axes).sqrt()
    return sum((distance < radius).long() for radius in radii)[None]


def phantoms(dims, count, classes=2):
    rng = np.random.default_rng(0)
    dataset = PhantomDataset(900, dims, 1, 1, extent=32 if dims == 2 else 24)
    maps = np.stack([dataset._case(rng)[1] for _ in range(count)]).astype(np.int64)
    labels = torch.from_numpy(maps).clamp(max=classes)
    if dims == 3 and classes == 2:  # at this size `inner` is ten voxels: two halves of `outer` instead
        for patch in labels:
            rows = (patch > 0).any(dim=0).any(dim=0).nonzero()
            behind = torch.arange(patch.shape[-1]) > rows.float().mean()
            patch[patch > 0] = (1 + behind.long()).expand_as(patch)[patch > 0]
    return labels


def trained(labels, foreground, steps, seed=0):
    model = LearnedShapes(foreground, labels.shape[1:], seed=seed, device=CPU)
    rng = seeded(seed)
    for i in range(steps):
        batch = torch.arange(8 * i, 8 * i + 8) % len(labels)
        model.learn(labels[batch], rng)
    return model


@cache
def trained_on_phantoms(dims, classes):
    """A source of pairs whose shapes were learnt from real masks, and these."""
    labels = phantoms(dims, 24 if dims == 2 else 12, classes)
    model = trained(labels, classes, 120 if dims == 2 else 80)
    codec = LabelCodec.from_labels(range(1, classes + 1), None)
    source = PairSource(
        codec, 1, ConditioningConfig(), MaskConfig(source="learned", **STILL), (True,) * dims, CPU, shapes=model
    )
    source.observe(labels[:, None].float(), labels)
    return source, labels


class Painter:
    """A generator whose image is its condition's first channels: what it is asked for can be read off."""

    def style_shape(self, spatial):
        return (1,)

    def draw(self, condition, style):
        return condition[:, :1]


def in_pieces(labels):
    """The same with a piece of class 1 in every corner."""
    torn = labels.clone()
    for corner in product(*((slice(0, 2), slice(-2, None)) for _ in labels.shape[1:])):
        torn[(slice(None), *corner)] = 1
    return torn


def components(structure, connectivity):
    return int(label(structure.numpy(), connectivity=connectivity).max())


def independent_topology(labels, classes):
    """Components and holes of every class by scikit-image, for (*spatial)."""
    counts = []
    for value in range(1, classes + 1):
        own = labels == value
        around = torch.nn.functional.pad(~own, (1, 1) * labels.ndim, value=True)
        counts.append((components(own, labels.ndim), components(around, 1) - 1))
    return np.array(counts)


@pytest.mark.parametrize("reach", [2.0, 100.0])
@pytest.mark.parametrize("spatial", [(13, 9), (1, 7), (7, 9, 11), (1, 6, 8)])
def test_signed_distances_are_scipys(spatial, reach):
    density = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).view(-1, *(1,) * len(spatial))
    regions = torch.rand(5, *spatial, generator=seeded()) < density
    regions[..., 0], regions[..., -1] = True, False
    found = signed_distance(regions, reach)
    for region, distance in zip(regions.numpy(), found.numpy()):
        inside, outside = distance_transform_edt(region), distance_transform_edt(~region)
        expected = np.where(region, inside - 0.5, 0.5 - outside).clip(-reach, reach)
        np.testing.assert_allclose(distance, expected, rtol=1e-5)
        assert ((distance > 0) == region).all()


def test_without_a_boundary_everything_is_out_of_reach():
    assert (signed_distance(torch.ones(1, 4, 5, dtype=torch.bool), 3.0) == 3).all()
    assert (signed_distance(torch.zeros(1, 4, 5, dtype=torch.bool), 3.0) == -3).all()


@pytest.mark.parametrize("spatial", [(20, 12), (6, 20, 12)])
def test_the_frame_is_the_box_of_the_structures_and_its_surroundings(spatial):
    labels = torch.zeros(2, *spatial, dtype=torch.bool)
    labels[(0, *(slice(2, 5),) * len(spatial))] = True
    corner = masks.affine(torch.full((2, 1, len(spatial)), shapes.FILL), frames(labels))[:, 0].flip(-1)
    torch.testing.assert_close((corner[0] + 1) / 2 * torch.tensor(spatial), torch.full((len(spatial),), 5.0))
    torch.testing.assert_close(corner[1], torch.full((len(spatial),), shapes.FILL))


@pytest.mark.parametrize("spatial, radii", [((32, 40), (0.6,)), ((48, 32), (0.7, 0.35)), ((16, 24, 20), (0.7,))])
def test_one_shape_is_learnt_and_reproduced_wherever_it_lies(spatial, radii):
    labels = discs(spatial, radii)
    model = trained(labels.expand(8, *spatial), len(radii), 60)
    for shift in (0, -2):
        real = labels.roll((shift,) * len(spatial), tuple(range(1, len(spatial) + 1)))
        drawn = model.draw(real, 0.0, seeded())
        for value in range(1, len(radii) + 1):
            overlap = ((drawn == value) & (real == value)).sum() * 2 / ((drawn == value).sum() + (real == value).sum())
            assert overlap > 0.75


def test_learning_lowers_error_and_is_seeded(outside_random_state_untouched):
    labels = phantoms(2, 8)
    models = [LearnedShapes(2, (32, 32), seed=seed, device=CPU) for seed in (0, 0, 1)]
    errors = [[model.learn(labels, rng)["shape"] for _ in range(30)] for model in models for rng in [seeded(4)]]
    assert errors[0][-1] < 0.5 * errors[0][0]
    assert errors[0] == errors[1] != errors[2]
    first, again, other = (models[0].draw(labels, 1.0, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_samples_keep_the_datasets_topology_and_are_none_of_its_masks(dims, classes):
    source, real = trained_on_phantoms(dims, classes)
    counts = np.stack([independent_topology(patch, classes) for patch in real])
    fewest, most = counts.min(axis=0), counts.max(axis=0)
    largest = masks.class_sizes(real, classes + 1).amax(dim=0)
    accepted = []
    for seed in range(2):
        pairs = source.draw(Painter(), torch.zeros(len(real), 1, *real.shape[1:]), real, seeded(seed))
        new = (pairs.labels != real).flatten(1).any(dim=1)
        assert pairs.learned == pytest.approx(float(new.float().mean()))
        accepted.append(pairs.learned)
        for patch in pairs.labels[new]:
            counts = independent_topology(patch, classes)
            assert (fewest <= counts).all()
            assert (counts <= most).all()
            assert not (patch == real).flatten(1).all(dim=1).any()
            assert (masks.class_sizes(patch[None], classes + 1)[0] <= largest)[1:].all()
        assert len({patch.numpy().tobytes() for patch in pairs.labels[new]}) == new.sum()
    assert min(accepted) > 0.5, "most of what was learnt is fit for use"


def test_more_spread_gives_shapes_farther_from_the_real_ones():
    source, real = trained_on_phantoms(2, 2)
    changed = [float((source.shapes.draw(real, spread, seeded()) != real).float().mean()) for spread in (0.1, 0.5, 1.0)]
    assert changed == sorted(changed)
    assert changed[2] > 1.5 * changed[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_beyond_the_bounds_are_discarded_for_the_deformed_real_ones(dims, monkeypatch):
    source, real = trained_on_phantoms(dims, 1)
    image = torch.zeros(len(real), 1, *real.shape[1:])
    torn = in_pieces(real)
    assert (masks.class_sizes(torn, 2) <= source.largest)[:, 1].any(), "some are within the sizes"
    monkeypatch.setattr(source.shapes, "draw", lambda labels, spread, rng: torn)
    pairs = source.draw(Painter(), image, real, seeded())
    assert torch.equal(pairs.labels, real)
    assert pairs.learned == 0
    monkeypatch.setattr(source, "mask_config", MaskConfig(source="learned", **{**STILL, "rotation": 30.0}))
    rotated = source.draw(Painter(), image, real, seeded())
    assert not torch.equal(rotated.labels, real)
    assert rotated.learned == 0


def test_the_bounds_are_what_a_mask_is_discarded_for(monkeypatch):
    source, real = trained_on_phantoms(2, 1)
    torn = in_pieces(real)
    monkeypatch.setattr(source.shapes, "draw", lambda labels, spread, rng: torn)
    monkeypatch.setattr(source.topology, "most", source.topology.most + 4)
    pairs = source.draw(Painter(), torch.zeros(len(real), 1, *real.shape[1:]), real, seeded())
    assert pairs.learned > 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_classes_stay_those_of_the_patch_and_what_is_ignored_stays(dims):
    source, real = trained_on_phantoms(dims, 2)
    real = real[:4].clone()
    real[1][real[1] == 2] = 1
    real[2] = 0
    real[(slice(None), *(slice(0, 9),) * dims)] = IGNORE
    assert ((real == IGNORE).sum() > 0) & (real[3] == 2).any()
    for spread in (0.3, 1.0):
        drawn = source.shapes.draw(real, spread, seeded())
        assert torch.equal(drawn == IGNORE, real == IGNORE)
        for new, own in zip(drawn, real):
            assert set(new.unique().tolist()) <= set(own.unique().tolist())
        assert torch.equal(drawn[2], real[2])
        assert not torch.equal(drawn[0], real[0])


def test_what_is_ignored_is_not_learnt():
    plain, hidden = phantoms(2, 8), phantoms(2, 8)
    hidden[:, :, -3:][hidden[:, :, -3:] == 0] = IGNORE
    assert not torch.equal(plain, hidden)
    models = [LearnedShapes(2, (32, 32), seed=0, device=CPU) for _ in range(2)]
    errors = [model.learn(labels, seeded()) for model, labels in zip(models, (plain, hidden))]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("spatial", [(1, 1), (2, 5), (3, 33), (1, 8, 8), (2, 3, 40)])
def test_any_extent_can_be_learnt_and_drawn(spatial):
    labels = (torch.rand(3, *spatial, generator=seeded()) < 0.4).long()
    labels[0] = 1
    labels[1] = 0
    model = LearnedShapes(1, spatial, seed=0, device=CPU)
    values = model.learn(labels, seeded())
    assert all(np.isfinite(value) for value in values.values())
    drawn = model.draw(labels, 0.5, seeded())
    assert drawn.shape == labels.shape
    assert drawn.dtype == torch.long
    assert not drawn[1].any()


def test_a_restored_model_goes_on_at_the_same_bits():
    labels = phantoms(2, 8)
    original = trained(labels, 2, 3)
    resumed = LearnedShapes(2, (32, 32), seed=9, device=CPU)
    file = io.BytesIO()
    torch.save(original.state(), file)
    file.seek(0)
    resumed.restore(torch.load(file, weights_only=True))
    for model in (original, resumed):
        model.learn(labels, seeded(2))
    for own, other in zip(original.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(own, other)
    assert torch.equal(original.draw(labels, 0.7, seeded(3)), resumed.draw(labels, 0.7, seeded(3)))


def test_gradients_are_averaged_over_processes_and_must_be_finite():
    labels = phantoms(2, 4)
    still = LearnedShapes(2, (32, 32), seed=0, device=CPU, synchronise=lambda tensors: [t.zero_() for t in tensors])
    before = [weight.clone() for weight in still.network.parameters()]
    still.learn(labels, seeded())
    assert all(torch.equal(old, new) for old, new in zip(before, still.network.parameters()))
    moving = LearnedShapes(2, (32, 32), seed=0, device=CPU)
    moving.learn(labels, seeded())
    assert any(not torch.equal(old, new) for old, new in zip(before, moving.network.parameters()))
    with torch.no_grad():
        moving.network.out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        moving.learn(labels, seeded())


def test_a_mode_that_cannot_show_new_shapes_is_refused():
    settings = {"masks": {"source": "learned"}, "conditioning": {"mode": "deformation"}}
    with pytest.raises(ValueError, match=r"masks.source is 'learned', but conditioning.mode 'deformation' has no generator"):
        checked(GenSegConfig, settings, "test")


@pytest.mark.parametrize("source, given", [("learned", None), ("deformation", object())])
def test_pairs_take_shapes_if_and_only_if_they_are_to_be_learned(source, given):
    codec = LabelCodec.from_labels([1], None)
    with pytest.raises(ValueError, match=r"masks\.source"):
        PairSource(codec, 1, ConditioningConfig(), MaskConfig(source=source), (True, True), CPU, shapes=given)
