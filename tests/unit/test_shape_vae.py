import io
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from nnunetv2_genseg.phantoms import PhantomDataset
from nnunetv2_genseg.synthesis.mask_sources import MASK_SOURCES, shape_vae
from nnunetv2_genseg.synthesis.mask_sources.shape_vae import ShapeVAE, frames, signed_distance
from nnunetv2_genseg.synthesis.spatial import affine

CPU = torch.device("cpu")
IGNORE = 3


@pytest.fixture(autouse=True, scope="module")
def coarse_grid_in_3d():
    """A model of 24^3 points takes as long as all other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shape_vae.GRID, 3, 14)
        yield


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
    model = ShapeVAE(foreground, labels.shape[1:], seed=seed, device=CPU)
    rng = seeded(seed)
    for i in range(steps):
        batch = torch.arange(8 * i, 8 * i + 8) % len(labels)
        model.training_step(labels[batch], rng)
    return model


@cache
def trained_on_phantoms(dims, classes):
    """A model that learned from real masks, and these."""
    labels = phantoms(dims, 24 if dims == 2 else 12, classes)
    model = trained(labels, classes, 120 if dims == 2 else 80)
    model.bounds.observe(labels)
    return model, labels


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
    corner = affine(torch.full((2, 1, len(spatial)), shape_vae.FILL), frames(labels))[:, 0].flip(-1)
    torch.testing.assert_close((corner[0] + 1) / 2 * torch.tensor(spatial), torch.full((len(spatial),), 5.0))
    torch.testing.assert_close(corner[1], torch.full((len(spatial),), shape_vae.FILL))


@pytest.mark.parametrize("spatial, radii", [((32, 40), (0.6,)), ((48, 32), (0.7, 0.35)), ((12, 16, 14), (0.7,))])
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
    models = [ShapeVAE(2, (32, 32), seed=seed, device=CPU) for seed in (0, 0, 1)]
    errors = [[model.training_step(labels, rng)["shape_vae"] for _ in range(30)] for model in models for rng in [seeded(4)]]
    assert errors[0][-1] < 0.5 * errors[0][0]
    assert errors[0] == errors[1] != errors[2]
    first, again, other = (models[0].draw(labels, 1.0, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_samples_keep_the_datasets_topology_and_are_none_of_its_masks(dims, classes):
    model, real = trained_on_phantoms(dims, classes)
    counts = np.stack([independent_topology(patch, classes) for patch in real])
    fewest, most = counts.min(axis=0), counts.max(axis=0)
    for seed in range(2):
        drawn = model.sample(real, seeded(seed))
        new = (drawn != real).flatten(1).any(dim=1)
        assert new.float().mean() > 0.5, "most of what was learned is fit for use"
        for patch in drawn[new]:
            counts = independent_topology(patch, classes)
            assert (fewest <= counts).all()
            assert (counts <= most).all()
            assert not (patch == real).flatten(1).all(dim=1).any()
        assert len({patch.numpy().tobytes() for patch in drawn[new]}) == new.sum()


def test_a_larger_amount_gives_shapes_farther_from_the_real_ones_up_to_the_prior():
    model, real = trained_on_phantoms(2, 2)
    changed = [float((model.draw(real, amount, seeded()) != real).float().mean()) for amount in (0.2, 1.0, 2.0)]
    assert changed == sorted(changed)
    assert changed[2] > 1.5 * changed[0]
    prior = model.draw(real, 2.0, seeded())
    assert torch.equal(model.draw(real, torch.tensor(7.0), seeded()), prior)
    assert not torch.equal(model.draw(real, torch.tensor(1.0), seeded()), prior)


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_beyond_the_bounds_are_the_real_ones(dims, monkeypatch):
    model, real = trained_on_phantoms(dims, 1)
    torn = in_pieces(real)
    monkeypatch.setattr(model, "draw", lambda labels, amount, rng: torn)
    assert torch.equal(model.sample(real, seeded()), real)
    monkeypatch.setattr(model.bounds, "most", model.bounds.most + 2**dims)
    admitted = (model.sample(real, seeded()) == torn).flatten(1).all(dim=1)
    assert admitted.float().mean() > 0.5, "it was for the components"


@pytest.mark.parametrize("dims", [2, 3])
def test_a_patch_that_would_lose_a_class_keeps_its_mask(dims, monkeypatch):
    model, real = trained_on_phantoms(dims, 2)
    merged = real.clamp(max=1)
    monkeypatch.setattr(model, "draw", lambda labels, amount, rng: merged)
    shows_both = (real == 2).flatten(1).any(dim=1)
    assert shows_both.any()
    assert torch.equal(model.sample(real, seeded())[shows_both], real[shows_both])
    assert model.bounds.admit(merged).all(dim=1)[shows_both].any(), "the bounds alone would admit it"


@pytest.mark.parametrize("dims", [2, 3])
def test_a_structure_beyond_the_bounds_stays_real_among_new_ones(dims, monkeypatch):
    model, real = trained_on_phantoms(dims, 2)
    moved = real.roll(1, dims=-1)
    new = moved.clamp(max=1)  # class 2 is lost
    monkeypatch.setattr(model, "draw", lambda labels, amount, rng: new)
    sampled = model.sample(real, seeded())
    assert torch.equal(sampled == 2, real == 2)
    changed = ((sampled == 1) != (real == 1)).flatten(1).any(dim=1)
    assert changed[(real == 2).flatten(1).any(dim=1)].float().mean() > 0.5


def test_real_masks_are_observed_in_every_tenth_step():
    model, labels = ShapeVAE(2, (32, 32), seed=0, device=CPU), phantoms(2, 8)
    model.training_step(labels[:4], seeded())
    most = model.bounds.most.clone()
    assert (most[:, 0] >= 1).all()
    for _ in range(9):
        model.training_step(in_pieces(labels), seeded())
        assert torch.equal(model.bounds.most, most)
    model.training_step(in_pieces(labels), seeded())
    assert model.bounds.most[0, 0] > most[0, 0]


@pytest.mark.parametrize("dims", [2, 3])
def test_classes_stay_those_of_the_patch_and_what_is_ignored_stays(dims):
    model, real = trained_on_phantoms(dims, 2)
    real = real[:4].clone()
    real[1][real[1] == 2] = 1
    real[2] = 0
    real[(slice(None), *(slice(0, 9),) * dims)] = IGNORE
    assert ((real == IGNORE).sum() > 0) & (real[3] == 2).any()
    for amount in (0.6, 2.0):
        drawn = model.draw(real, amount, seeded())
        sampled = model.sample(real, seeded(), amount)
        assert torch.equal(sampled == IGNORE, real == IGNORE)
        assert torch.equal(drawn == IGNORE, real == IGNORE)
        for new, own in zip(drawn, real):
            assert set(new.unique().tolist()) <= set(own.unique().tolist())
        assert torch.equal(drawn[2], real[2])
        assert not torch.equal(drawn[0], real[0])


@pytest.mark.parametrize("dims", [2, 3])
def test_patches_with_the_ignore_label_are_left_out(dims):
    labels = torch.zeros(2, *(16,) * dims, dtype=torch.long)
    labels[(slice(None), *(slice(4, 12),) * dims)] = 1
    labels[1] = labels[1].roll(2, 0)
    unsure = labels[:1].clone()
    unsure[(0, *(slice(6, 8),) * dims)] = unsure[0, 10] = 2  # a hole, and two pieces
    plain, joined, alone = (ShapeVAE(1, labels.shape[1:], seed=0, device=CPU) for _ in range(3))
    values = plain.training_step(labels, seeded())
    assert plain.bounds.most.tolist() == [[1, 0]]
    found = joined.training_step(torch.cat([labels, unsure]), seeded())
    assert torch.equal(joined.bounds.most, plain.bounds.most)
    torch.testing.assert_close(found, values)
    before = [weight.clone() for weight in alone.network.parameters()]
    values = alone.training_step(unsure, seeded())
    assert values["shape_vae"] == values["shape_vae_kl"] == 0 and values["finite"]
    assert all(torch.equal(old, new) for old, new in zip(before, alone.network.parameters(), strict=True))
    assert alone.bounds.most.tolist() == [[-1, -1]], "as before the first patch"


@pytest.mark.parametrize("spatial", [(1, 1), (2, 5), (3, 33), (1, 8, 8), (2, 3, 40)])
def test_any_extent_can_be_learnt_and_drawn(spatial):
    labels = (torch.rand(3, *spatial, generator=seeded()) < 0.4).long()
    labels[0] = 1
    labels[1] = 0
    model = ShapeVAE(1, spatial, seed=0, device=CPU)
    values = model.training_step(labels, seeded())
    assert all(value.ndim == 0 and torch.isfinite(value) for value in values.values())
    drawn = model.sample(labels, seeded())
    assert drawn.shape == labels.shape
    assert drawn.dtype == torch.long
    assert not drawn[1].any()


def test_a_restored_model_goes_on_at_the_same_bits():
    labels = phantoms(2, 8)
    original = trained(labels, 2, 3)
    assert isinstance(original, MASK_SOURCES["shape_vae"])
    assert original.new_shapes
    resumed = ShapeVAE(2, (32, 32), seed=9, device=CPU)
    file = io.BytesIO()
    torch.save(original.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for model in (original, resumed):
        model.training_step(labels, seeded(2))
    for own, other in zip(original.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(own, other)
    drawn, again = (model.sample(labels, seeded(3)) for model in (original, resumed))
    assert torch.equal(drawn, again)
    assert resumed.steps == original.steps
    assert torch.equal(resumed.bounds.most, original.bounds.most)


def test_gradients_are_averaged_over_processes_and_a_gradient_that_is_not_finite_is_told():
    labels = phantoms(2, 4)
    still = ShapeVAE(2, (32, 32), seed=0, device=CPU, synchronise=lambda tensors: [t.zero_() for t in tensors])
    before = [weight.clone() for weight in still.network.parameters()]
    still.training_step(labels, seeded())
    assert all(torch.equal(old, new) for old, new in zip(before, still.network.parameters()))
    moving = ShapeVAE(2, (32, 32), seed=0, device=CPU)
    assert moving.training_step(labels, seeded())["finite"]
    assert any(not torch.equal(old, new) for old, new in zip(before, moving.network.parameters()))
    with torch.no_grad():
        moving.network.out.bias.fill_(float("nan"))
    assert not moving.training_step(labels, seeded())["finite"]


def test_the_average_of_the_weights_follows_them_faster_at_first():
    model, labels = ShapeVAE(1, (16, 16), seed=0, device=CPU), discs((16, 16))
    expected = model.network.out.bias.detach().clone()
    for step in range(1, 4):
        model.training_step(labels, seeded(step))
        expected = expected.lerp(model.network.out.bias.detach(), 1 - step / (step + 10))
    torch.testing.assert_close(model.average.out.bias, expected)
