"""What holds for every label map and every allowed setting; the examples are drawn by hypothesis, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunetv2_genseg.config import (
    DeformationConfig,
    FeedbackConfig,
    GeneratorConfig,
    GenSegConfig,
    IntensityConfig,
    MixingConfig,
    RedrawConfig,
)
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.synthesis.bounds import at_border, class_sizes
from nnunetv2_genseg.synthesis.conditioning import spread, tissue_map
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.masks import SMALLEST, TOLERATED, MaskDeformer
from nnunetv2_genseg.synthesis.sampler import PairSampler, Replacement
from nnunetv2_genseg.synthesis.spatial import warp_image

CPU = torch.device("cpu")
EXTENTS = {2: (2, 3, 4, 5, 8, 11, 16, 24), 3: (2, 3, 4, 5, 8, 11)}
COVERS = ("empty", "one voxel", "whole patch", "boxes", "noise")
INTENSITIES = ("noise", "constant", "zero", "tied to the labels", "far from 0")


@dataclass(frozen=True)
class Scene:
    """A batch of patches with their class maps."""

    image: Tensor
    labels: Tensor
    codec: LabelCodec
    movable: tuple[bool, ...]


def covered(cover: str, spatial: tuple[int, ...], top: int, rng: torch.Generator) -> Tensor:
    """A class map of classes up to `top`."""
    labels = torch.zeros(spatial, dtype=torch.long)

    def number(below: int) -> int:
        return int(torch.randint(below, (), generator=rng))

    if cover == "one voxel":
        labels[tuple(number(n) for n in spatial)] = 1 + number(top)
    elif cover == "whole patch":
        labels.fill_(1 + number(top))
    elif cover == "boxes":
        for value in range(1, top + 1):
            starts = [number(n) for n in spatial]
            labels[tuple(slice(start, start + 1 + number(n)) for start, n in zip(starts, spatial))] = value
    elif cover == "noise":
        labels = torch.randint(top + 1, spatial, generator=rng)
    return labels


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    dims = draw(st.sampled_from((2, 3)))
    spatial = tuple(draw(st.sampled_from(EXTENTS[dims])) for _ in range(dims))
    if dims == 3 and draw(st.booleans()):
        spatial = (1, *spatial[1:])
    foreground, has_ignore = draw(st.integers(1, 4)), draw(st.booleans())
    channels, count = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    labels = torch.stack([covered(draw(st.sampled_from(COVERS)), spatial, foreground, rng) for _ in range(count)])
    if has_ignore and draw(st.booleans()):
        labels[0][torch.rand(spatial, generator=rng) < draw(st.sampled_from((0.2, 1.0)))] = foreground + 1
    image = torch.randn(count, channels, *spatial, generator=rng)
    kind = draw(st.sampled_from(INTENSITIES))
    if kind == "tied to the labels":
        image = 0.1 * image + labels[:, None]
    elif kind != "noise":
        image = torch.zeros_like(image) + {"constant": 0.7, "zero": 0.0, "far from 0": 1000.0}[kind]
    codec = LabelCodec.from_labels(range(1, foreground + 1), foreground + 1 if has_ignore else None)
    return Scene(image, labels, codec, (draw(st.booleans()), *(True,) * (dims - 1)))


DEFORMATIONS = st.builds(
    DeformationConfig, displacement=st.floats(0, 0.2), rotation=st.floats(0, 180), scaling=st.floats(0, 0.89)
)
INTENSITY_CONFIGS = st.builds(IntensityConfig, tone=st.floats(0, 2), shift=st.floats(0, 3))
REDRAWS = st.builds(RedrawConfig, mode=st.sampled_from(("mask", "tissue", "residual")), tissue_classes=st.integers(2, 8))
SEEDS = st.integers(0, 2**31 - 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, derandomize=True, max_examples=250)
@given(scenes(), DEFORMATIONS, SEEDS, st.booleans(), st.floats(0, 3))
def test_new_masks_stay_within_the_documented_bounds(
    scene: Scene, config: DeformationConfig, seed: int, observed: bool, amount: float
):
    classes, labels, ignored = scene.codec.classes, scene.labels, scene.codec.foreground + 1
    deformer = MaskDeformer(config, scene.codec, scene.movable, CPU)
    if observed:
        deformer.observe(labels)
    change = deformer.sample(labels, seeded(seed), amount)
    new = change.deformed()
    assert new.shape == labels.shape
    assert new.dtype == torch.long
    assert torch.isfinite(change.grid).all()

    real, size, structures = class_sizes(labels, classes), class_sizes(new, classes), slice(1, ignored)
    cut = at_border(labels, classes)
    keeps = size >= (SMALLEST * real).clamp(min=1)
    within = (keeps | cut | (real == 0)) & (size <= torch.maximum(deformer.largest, real))
    out, shown = (~within[:, structures]).sum(dim=1), (real[:, structures] > 0).sum(dim=1)
    assert (out <= (TOLERATED * shown).floor()).all(), "few classes are lost, shrunk below `SMALLEST` or larger than any seen"
    together, before = size[:, structures].sum(dim=1), real[:, structures].sum(dim=1)
    assert ((together >= (SMALLEST * before).clamp(min=1)) | (before == 0)).all(), "nor are all classes together"
    for own, drawn, accepted in zip(labels, new, change.accepted):
        assert set(drawn.unique().tolist()) <= set(own.unique().tolist()), "no class comes from nowhere"
        assert accepted or torch.equal(drawn, own)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(scenes(), DEFORMATIONS, SEEDS)
def test_deformed_images_keep_to_their_range(scene: Scene, config: DeformationConfig, seed: int):
    deformer = MaskDeformer(config, scene.codec, scene.movable, CPU)
    deformer.unbound()
    warped = warp_image(scene.image, deformer.sample(scene.labels, seeded(seed)).grid)
    axes = tuple(range(2, warped.ndim))
    assert (warped.amin(dim=axes) >= scene.image.amin(dim=axes)).all()
    assert (warped.amax(dim=axes) <= scene.image.amax(dim=axes)).all()


@settings(deadline=None, derandomize=True, max_examples=100)
@given(scenes(), st.integers(1, 8))
def test_tissue_is_spread_from_what_is_known_alone(scene: Scene, tissues: int):
    known = scene.labels == 0
    tissue = tissue_map(scene.image, known, tissues)
    assert ((tissue >= 0) & (tissue < tissues)).all()
    spread_ = spread(tissue, known, tissues)
    assert torch.equal(spread_[known], tissue[known])
    for own, where, found in zip(tissue, known, spread_):
        assert set(found.unique().tolist()) <= set((own[where] if where.any() else own).unique().tolist())


def sampler_of(
    scene: Scene,
    source: str,
    deformation: DeformationConfig,
    intensity: IntensityConfig,
    redraw: RedrawConfig,
    family: str,
    masked: bool,
) -> PairSampler:
    dims, spatial = scene.labels.ndim - 1, tuple(scene.labels.shape[1:])
    channels = scene.image.shape[1]
    strides = tuple(2 if n % 2 == 0 and n >= 4 else 1 for n in spatial)
    kernel = tuple(3 if free else 1 for free in scene.movable)
    plan = NetworkPlan(spatial, (4, 4), ((1,) * dims, strides), (kernel, (3,) * dims))
    config = GenSegConfig(
        mixing=MixingConfig(sources={source: 1.0}),
        deformation=deformation,
        intensity=intensity,
        redraw=redraw,
        generator=GeneratorConfig(name="gan" if redraw.mode == "mask" else family),  # a mixture needs tissue classes
        feedback=FeedbackConfig(enabled=False),
    )
    return PairSampler(config, plan, scene.codec, channels, CPU, tuple(range(channels)) if masked else ())


SOURCES, FAMILIES = st.sampled_from(("deformation", "redraw")), st.sampled_from(("gan", "gmm"))


@settings(deadline=None, derandomize=True, max_examples=120)
@given(scenes(), SOURCES, DEFORMATIONS, INTENSITY_CONFIGS, REDRAWS, FAMILIES, st.booleans(), SEEDS)
def test_pairs_are_finite_of_the_right_kind_and_seeded(
    scene: Scene,
    source: str,
    deformation: DeformationConfig,
    intensity: IntensityConfig,
    redraw: RedrawConfig,
    family: str,
    masked: bool,
    seed: int,
):
    sampler = sampler_of(scene, source, deformation, intensity, redraw, family, masked)
    sampler.observe(scene.labels)
    slots = list(range(len(scene.labels)))

    def draw() -> Replacement:
        return sampler.replace(scene.image, scene.labels, {source: slots}, seeded(seed))

    drawn, again = draw(), draw()
    pairs = drawn.pairs
    assert drawn.slots == slots
    assert pairs.image.shape == scene.image.shape
    assert pairs.image.dtype == torch.float32
    assert torch.isfinite(pairs.image).all()
    assert pairs.labels.shape == scene.labels.shape
    assert pairs.labels.dtype == torch.long
    assert torch.equal(scene.codec.to_classes(scene.codec.to_target(pairs.labels, torch.int16)), pairs.labels)
    if not (scene.labels > scene.codec.foreground).any():
        assert (pairs.labels <= scene.codec.foreground).all(), "an ignore label from nowhere"
    low, high = scene.image.flatten(2).aminmax(dim=2)
    assert torch.equal(pairs.image.flatten(2)[low == high], scene.image.flatten(2)[low == high]), "constant channels stay"
    assert torch.equal(pairs.image, again.pairs.image)
    assert torch.equal(pairs.labels, again.pairs.labels)

    generator = sampler.sources[source].generator
    parameters: list[Any] = [*sampler.policy.parameters(), *(generator.weights() if generator else [])]
    if pairs.image.requires_grad:
        slopes = torch.autograd.grad(pairs.image.square().mean(), parameters, allow_unused=True)
        assert all(torch.isfinite(slope).all() for slope in slopes if slope is not None)
    else:
        assert source == "deformation"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(scenes(), INTENSITY_CONFIGS, REDRAWS, FAMILIES, SEEDS)
def test_learning_from_any_real_pair_leaves_a_generator_that_draws_finite_images(
    scene: Scene, intensity: IntensityConfig, redraw: RedrawConfig, family: str, seed: int
):
    sampler, rng = sampler_of(scene, "redraw", DeformationConfig(), intensity, redraw, family, False), seeded(seed)
    for _ in range(2):
        losses = sampler.training_step(scene.image, scene.labels, rng)
        assert all(torch.isfinite(value) for value in losses.values())
        assert losses.get("finite", 1) == 1
    generator = sampler.sources["redraw"].generator
    assert generator is not None
    assert all(torch.isfinite(weight).all() for weight in generator.weights())
    slots = list(range(len(scene.labels)))
    drawn = sampler.sources["redraw"].sample(scene.image[slots], scene.labels[slots], rng)
    assert torch.isfinite(drawn.image).all()
