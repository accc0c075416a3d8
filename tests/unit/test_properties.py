"""What holds for every label map and every allowed setting; the examples are drawn by hypothesis, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunetv2_genseg import masks
from nnunetv2_genseg.config import ConditioningConfig, GeneratorConfig, MaskConfig
from nnunetv2_genseg.generators import Generator, NetworkPlan, build_generator
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.pairs import Pairs, PairSource

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


MASK_CONFIGS = st.builds(
    MaskConfig,
    elastic=st.floats(0, 0.3),
    control_points=st.integers(4, 32),
    rotation=st.floats(0, 180),
    scaling=st.floats(0, 0.89),
    growth=st.floats(0, 0.49),
    recombination=st.floats(0, 1),
    margin=st.floats(0, 0.5),
    smallest=st.floats(0.01, 1),
)
CONDITIONINGS = st.builds(
    ConditioningConfig,
    mode=st.sampled_from(("deformation", "mask", "tissue", "differential")),
    tissue_classes=st.integers(2, 8),
    intensity_shift=st.floats(0, 3),
    tone=st.floats(0, 2),
)
SEEDS = st.integers(0, 2**31 - 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, derandomize=True, max_examples=250)
@given(scenes(), MASK_CONFIGS, SEEDS, st.booleans())
def test_new_masks_stay_within_the_documented_bounds(scene: Scene, config: MaskConfig, seed: int, observed: bool):
    classes, labels, ignore = scene.codec.classes, scene.labels, scene.codec.foreground + 1
    real = masks.class_sizes(labels, classes)
    largest = real.amax(dim=0) if observed else torch.zeros(classes)
    frozen = ignore if scene.codec.has_ignore else None
    change = masks.draw_change(labels, classes, config, largest, seeded(seed), 1.0, scene.movable, frozen)
    new = masks.warp(change.labels, change.grid)
    assert new.shape == labels.shape
    assert new.dtype == torch.long
    assert torch.isfinite(change.grid).all()

    size, structures = masks.class_sizes(new, classes), slice(1, ignore)  # the ignore label may be of any size
    cut = masks.at_border(labels, classes)
    keeps = size >= (config.smallest * real).clamp(min=1)
    assert (keeps | cut | (real == 0))[:, structures].all(), "no class within the patch is lost or shrunk below `smallest`"
    together, before = size[:, structures].sum(dim=1), real[:, structures].sum(dim=1)
    assert ((together >= (config.smallest * before).clamp(min=1)) | (before == 0)).all(), "nor are all classes together"
    assert (size <= torch.maximum(largest, real))[:, structures].all(), "none is larger than any seen"
    for i in range(len(labels)):
        own, donor = set(labels[i].unique().tolist()), set(labels[change.donors[i]].unique().tolist())
        allowed = own | (donor - {frozen}) if change.exchanged[i].any() else own
        assert set(new[i].unique().tolist()) <= allowed, "no class comes from nowhere, and no ignore label from elsewhere"
    if frozen is not None:
        assert torch.equal(change.labels == frozen, labels == frozen), "what is ignored is covered and grown by nothing"


@settings(deadline=None, derandomize=True, max_examples=100)
@given(scenes(), st.floats(0, 0.49), SEEDS)
def test_growth_keeps_to_the_classes_around_and_leaves_the_ignore_label(scene: Scene, amount: float, seed: int):
    frozen = scene.codec.foreground + 1 if scene.codec.has_ignore else None
    grown = masks.grow(scene.labels, scene.codec.classes, amount, seeded(seed), frozen)
    around = masks.neighbourhood_mean(masks.one_hot(scene.labels, scene.codec.classes))
    assert (around.gather(1, grown[:, None]) > 0).all()
    if frozen is not None:
        assert torch.equal(grown == frozen, scene.labels == frozen)


def source_and_generator(
    scene: Scene, conditioning: ConditioningConfig, mask_config: MaskConfig, family: str, masked: bool
) -> tuple[PairSource, Generator | None]:
    dims, spatial = scene.labels.ndim - 1, tuple(scene.labels.shape[1:])
    channels = scene.image.shape[1]
    masked_channels = tuple(range(channels)) if masked else ()
    source = PairSource(scene.codec, channels, conditioning, mask_config, scene.movable, CPU, masked_channels)
    strides = tuple(2 if n % 2 == 0 and n >= 4 else 1 for n in spatial)
    plan = NetworkPlan(spatial, (4, 4), ((1,) * dims, strides), ((3,) * dims,) * 2)
    if not source.needs_generator:
        return source, None
    name = "gan" if conditioning.mode == "mask" else family  # a mixture needs tissue classes
    config = GeneratorConfig(name=name, style_channels=2)
    return source, build_generator(config, plan, source.layout, seed=0, device=CPU, separate_architecture=False)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(scenes(), CONDITIONINGS, MASK_CONFIGS, st.sampled_from(("gan", "gmm")), st.booleans(), SEEDS)
def test_pairs_are_finite_of_the_right_kind_and_seeded(
    scene: Scene, conditioning: ConditioningConfig, mask_config: MaskConfig, family: str, masked: bool, seed: int
):
    source, generator = source_and_generator(scene, conditioning, mask_config, family, masked)
    source.observe(scene.image, scene.labels)

    def draw() -> Pairs:
        return source.draw(generator, scene.image, scene.labels, seeded(seed))

    pairs, again = draw(), draw()
    assert pairs.image.shape == scene.image.shape
    assert pairs.image.dtype == torch.float32
    assert torch.isfinite(pairs.image).all()
    assert pairs.labels.shape == scene.labels.shape
    assert pairs.labels.dtype == torch.long
    assert torch.equal(scene.codec.to_classes(scene.codec.to_target(pairs.labels, torch.int16)), pairs.labels)
    if not (scene.labels > scene.codec.foreground).any():
        assert (pairs.labels <= scene.codec.foreground).all(), "an ignore label from nowhere"
    assert torch.equal(pairs.image, again.image)
    assert torch.equal(pairs.labels, again.labels)

    parameters: list[Any] = [*source.policy.parameters(), *(generator.weights() if generator else [])]
    if pairs.image.requires_grad:
        slopes = torch.autograd.grad(pairs.image.square().mean(), parameters, allow_unused=True)
        assert all(torch.isfinite(slope).all() for slope in slopes if slope is not None)
    else:
        assert generator is None or not parameters


@settings(deadline=None, derandomize=True, max_examples=60)
@given(scenes(), CONDITIONINGS, st.sampled_from(("gan", "gmm")), SEEDS)
def test_learning_from_any_real_pair_leaves_a_generator_that_draws_finite_images(
    scene: Scene, conditioning: ConditioningConfig, family: str, seed: int
):
    source, generator = source_and_generator(scene, conditioning, MaskConfig(), family, False)
    if generator is None:
        return
    rng = seeded(seed)
    for _ in range(2):
        style = source.style(generator, scene.image, rng).detach()
        losses = generator.learn(source.real_condition(scene.image, scene.labels), scene.image, style)
        assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert all(torch.isfinite(weight).all() for weight in generator.weights())
    assert torch.isfinite(source.draw(generator, scene.image, scene.labels, rng).image).all()
