"""Whole images: slices change together, shapes are kept in mm, tiles are blended without a seam."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import CODECS, CPU, planned

from nnunetv2_genseg.config import DeformationConfig, GeneratorConfig, GenSegConfig
from nnunetv2_genseg.generators import NetworkPlan, build_generator, gmm
from nnunetv2_genseg.generators.gan import STYLE_CHANNELS
from nnunetv2_genseg.generators.layout import ConditionLayout
from nnunetv2_genseg.generators.networks import NoiseInput
from nnunetv2_genseg.synthesis.masks import MaskDeformer
from nnunetv2_genseg.synthesis.policy import Policy
from nnunetv2_genseg.synthesis.sources import SourceContext
from nnunetv2_genseg.synthesis.spatial import identity_grid
from nnunetv2_genseg.synthesis.whole_images import WholeImageContext, WholeImageDeformer, as_batch, as_volume
from nnunetv2_genseg.trainers.tiling import TiledGenerator, for_whole_images
from nnunetv2_genseg.trainers.whole_pairs import resized_grid, spread_slices

CODEC = CODECS["labels"]
FAR = torch.full((CODEC.classes,), 1e9)


def ball(spatial: tuple[int, ...], radius: float) -> torch.Tensor:
    grid = identity_grid(spatial, CPU)[0]
    return (grid.square().sum(dim=-1) < radius**2).long()


def deformer(config: DeformationConfig, dims: int) -> WholeImageDeformer:
    return WholeImageDeformer(config, CODEC, (True,) * dims, CPU)


@pytest.mark.parametrize("flat", [True, False])
def test_a_batch_becomes_the_volume_again(flat):
    volume = torch.rand(2, 3, 4, 5)
    batch = as_batch(volume, flat)
    assert batch.shape == ((3, 2, 4, 5) if flat else (1, 2, 3, 4, 5))
    assert torch.equal(as_volume(batch, flat), volume)


def test_slices_of_a_volume_stay_in_their_planes_and_move_smoothly():
    labels = ball((9, 24, 24), 0.7)
    own = deformer(DeformationConfig(), 2)
    own.begin((5.0, 1.0, 1.0), FAR)
    change = own.sample(labels, torch.Generator().manual_seed(1))
    assert change.grid.shape == (9, 24, 24, 2)
    assert change.accepted.all()
    moved = change.grid - identity_grid((24, 24), CPU)
    assert moved.abs().amax() > 0.05
    between = (change.grid[1:] - change.grid[:-1]).abs().amax()
    assert 0 < between < 0.3 * moved.abs().amax(), "neighbouring slices move nearly alike"


def test_a_rotation_keeps_shapes_in_mm():
    """A bar in an image of 64 x 64 mm with voxels of 4 x 1 mm is as long in mm, whichever way it is turned."""
    labels = (identity_grid((1, 16, 64), CPU)[..., :2].abs() < torch.tensor([0.15, 0.6])).all(dim=-1)[0].long()
    own = deformer(DeformationConfig(rotation=180, scaling=0, displacement=0), 2)
    own.begin((1.0, 4.0, 1.0), FAR)

    def length(mask: torch.Tensor) -> float:
        place = mask[0].nonzero().float() * torch.tensor([4.0, 1.0])
        return float(torch.linalg.eigvalsh(torch.cov(place.T))[-1].sqrt())

    masks = [own.sample(labels, torch.Generator().manual_seed(seed)).deformed() for seed in range(8)]
    assert min(length(mask) for mask in masks) > 0.9 * length(labels)
    assert max(length(mask) for mask in masks) < 1.1 * length(labels)
    assert len({int(mask[0].any(dim=1).sum()) for mask in masks}) > 2, "they are turned"


@pytest.mark.parametrize("dims", [2, 3])
def test_bounds_are_volumes_and_a_mask_out_of_them_stays_real(dims):
    labels = ball((8, 16, 16), 0.6)
    batch = labels if dims == 2 else labels[None]
    size = torch.bincount(labels.flatten(), minlength=CODEC.classes)
    small = deformer(DeformationConfig(rotation=0, displacement=0, scaling=0.6), dims)
    small.begin((2.0, 1.0, 1.0), size * 2.0)  # no larger than the case itself
    large = deformer(DeformationConfig(rotation=0, displacement=0, scaling=0.6), dims)
    large.begin((2.0, 1.0, 1.0), size * 200.0)
    grown = []
    for seed in range(12):
        change = small.sample(batch, torch.Generator().manual_seed(seed))
        assert int((change.deformed() == 1).sum()) <= int(size[1] * 1.001) + 1
        grown.append(int((large.sample(batch, torch.Generator().manual_seed(seed)).deformed() == 1).sum()) > int(size[1]))
    assert any(grown)
    never = deformer(DeformationConfig(rotation=0, displacement=0, scaling=0), dims)
    never.begin((2.0, 1.0, 1.0), FAR)
    never.admits = lambda *arguments: torch.zeros(1, dtype=torch.bool)  # type: ignore[method-assign, assignment]
    change = never.sample(batch, torch.Generator().manual_seed(0))
    assert not change.accepted.any()
    assert torch.equal(change.deformed(), batch)


def test_slices_share_noise_and_tone_and_patches_do_not():
    plan = planned(2)
    shared = (GenSegConfig(), plan, CODEC, 1, None, MaskDeformer(DeformationConfig(), CODEC, (True, True), CPU), Policy(), CPU)
    patches, slices = SourceContext(*shared), WholeImageContext(*shared)
    rng = torch.Generator().manual_seed(0)
    own, common = patches.normal((3, 4), rng), slices.normal((3, 4), rng)
    assert not torch.equal(own[0], own[1])
    assert torch.equal(common[0], common[1])
    assert torch.equal(common[0], common[2])
    image = torch.linspace(-2, 2, 64).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    toned = slices.toned(image, 0.8, rng)
    assert torch.equal(toned[0], toned[1])
    assert not torch.allclose(toned, image, atol=0.05)
    own = patches.toned(image, 0.8, rng)
    assert not torch.equal(own[0], own[1])
    assert replace(slices, image_channels=2).image_channels == 2


class Pointwise:
    """Draws each voxel from its condition and its style alone, so that the drawing is known at every size."""

    def __init__(self, maps: bool) -> None:
        self.maps = maps
        self.shapes: set[tuple[int, ...]] = set()

    def style_shape(self, spatial):
        return (1, *spatial) if self.maps else (1,)

    def sample(self, condition, style):
        self.shapes.add(tuple(condition.shape[2:]))
        return 2 * condition[:, :1] + (style if self.maps else style.view(-1, *(1,) * (condition.ndim - 1)))


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize(
    ("patch", "spatial"), [((8, 12), (21, 30)), ((8, 12), (5, 12)), ((4, 8, 8), (7, 8, 19)), ((4, 8, 8), (2, 3, 9))]
)
def test_tiles_add_up_to_the_whole_image(patch, spatial, maps):
    own = Pointwise(maps)
    tiled = TiledGenerator(own, patch)
    condition = torch.rand(5, 2, *spatial)
    style = torch.randn(5, *tiled.style_shape(spatial))
    drawn = tiled.sample(condition, style)
    assert own.shapes == {patch}, "the generator sees patches alone"
    added = style.view(5, *(1,) * (len(patch) + 1)) if not maps else style
    if maps:
        missing = [max(0, size - n) // 2 for n, size in zip(spatial, patch, strict=True)]
        added = style[(..., *(slice(start, start + n) for start, n in zip(missing, spatial, strict=True)))]
    torch.testing.assert_close(drawn, 2 * condition[:, :1] + added)


THICK = NetworkPlan((4, 16, 16), (8, 8, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 3)))
FLAT = NetworkPlan((16, 32), (8, 8, 8), ((1, 1), (2, 2), (2, 4)), ((3, 3),) * 3)


def noise_of(family: str, plan: NetworkPlan, spatial: tuple[int, ...], monkeypatch) -> torch.Tensor:
    """What noise alone adds to images, (64, *spatial), 0 on average at every voxel."""
    generator = build_generator(
        GeneratorConfig(name=family, width=1.0), plan, ConditionLayout(2, 3, 1), seed=0, device=CPU, separate_architecture=False
    )
    rng = torch.Generator().manual_seed(0)
    monkeypatch.setattr(gmm, "BIAS", 0.0)
    if family == "gmm":
        generator.spread.fill_(1.0)
        generator.observed.fill_(1.0)
    else:
        for module in generator.network.modules():
            if isinstance(module, NoiseInput):
                module.factor.data.normal_(generator=rng)
        generator.average.reset()
    condition = torch.zeros(64, 6, *spatial)
    condition[:, 2] = 1
    whole = for_whole_images(generator, plan.patch_size)
    style = torch.randn(64, *whole.style_shape(spatial), generator=rng)
    if family == "gan":
        style[:, :STYLE_CHANNELS] = 0  # acts on whole images
    drawn = whole.sample(condition, style)[:, 0]
    return drawn - drawn.mean(dim=0)


@pytest.mark.parametrize(("plan", "spatial"), [(FLAT, (45, 96)), (THICK, (9, 40, 51))], ids=["2d", "3d"])
@pytest.mark.parametrize("family", ["gmm", "gan"])
def test_noise_is_as_strong_where_tiles_overlap_and_does_not_repeat_with_them(family, plan, spatial, monkeypatch):
    noise = noise_of(family, plan, spatial, monkeypatch)
    for axis, (extent, size) in enumerate(zip(spatial, plan.patch_size, strict=True), start=1):
        line = noise.square().mean(dim=[n for n in range(noise.ndim) if n != axis]).sqrt()
        rim = 0 if family == "gmm" else size // 4  # convolutions see less noise at the image's border
        inside = line[rim : extent - rim]
        assert inside.min() > 0.9 * inside.mean()
        assert inside.max() < 1.1 * inside.mean()
        for period in {size // 2, size}:
            one, two = (noise.narrow(axis, start, extent - period) for start in (0, period))
            assert (one * two).mean() < 0.1 * noise.square().mean()


def test_the_positions_of_a_deformation_at_another_resolution():
    coarse = identity_grid((8, 8), CPU)
    shifted = torch.cat([coarse[..., :1] + 0.25, coarse[..., 1:]], dim=-1)
    fine = resized_grid(shifted, (16, 12))
    expected = identity_grid((16, 12), CPU)
    torch.testing.assert_close(fine[..., 0], expected[..., 0] + 0.25)
    torch.testing.assert_close(fine[..., 1], expected[..., 1])
    assert resized_grid(shifted, (8, 8)) is shifted


def test_slices_are_taken_evenly_from_those_with_foreground():
    foreground = torch.zeros(100, 4, 4, dtype=torch.bool)
    assert spread_slices(foreground, 4).tolist() == [12, 37, 62, 87], "without any foreground, of all"
    foreground[20:60, 1, 1] = True
    assert spread_slices(foreground, 4).tolist() == [25, 35, 45, 55]
    assert spread_slices(foreground, 1).tolist() == [40]
    assert spread_slices(foreground, 64).tolist() == list(range(20, 60))
