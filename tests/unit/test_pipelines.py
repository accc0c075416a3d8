"""Pairs on tensors, as a MONAI and as a TorchIO transform; tests/integration/test_pipelines.py has those of a trained fold."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from toy import FAMILIES, planned, seeded

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.synthesis.label_table import LabelTable

DEFORMED = {"mixing": {"sources": {"deformation": 1.0, "redraw": 0}}, "intensity": {"tone": 0.0}}
UNEVEN = NetworkPlan((8, 16, 24), (8, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2)


def batch(
    spatial: tuple[int, ...], channels: int = 1, count: int = 3, shares: tuple[int, int] = (4, 3)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that show their masks: a box with a smaller one inside."""
    labels = torch.zeros(count, *spatial, dtype=torch.int16)
    for label, share in enumerate(shares, start=1):
        labels[(slice(None), *(slice(n // share, n - n // share) for n in spatial))] = label
    return labels[:, None].float().repeat(1, channels, *(1,) * len(spatial)), labels


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_generator_that_learns_in_the_loop_draws_patches_of_other_extents(family, dims):
    plan = planned(dims)
    settings = {"generator": {"name": family}, "mixing": {"sources": {"redraw": 1.0, "deformation": 0}}}
    pairs = PairAugmentation.untrained(plan, classes=2, channels=2, settings=settings)
    for extent in (plan.patch_size[0], plan.patch_size[0] + 4):
        image, labels = batch((extent,) * dims, channels=2)
        image = image + 0.3 * torch.randn(image.shape, generator=seeded())
        losses = pairs.training_step(image, labels, seeded())
        assert family == "gmm" or losses
        drawn, masks = pairs(image, labels, seeded(1))
        assert drawn.isfinite().all() and drawn.shape == image.shape and (drawn - image).abs().mean() > 0.01
        assert masks.dtype == torch.int16 and set(masks.unique().tolist()) <= {0, 1, 2}
        copied = pickle.loads(pickle.dumps(pairs))  # as for a loader's process
        again, other = copied(image, labels, seeded(1)), pairs(image, labels, seeded(2))
        assert torch.equal(drawn, again[0]) and torch.equal(masks, again[1])
        assert not torch.equal(drawn, other[0])


@pytest.mark.parametrize("family", ["gan", "diffusion"])
def test_autocast_and_threads_change_nothing(family):
    """The gan draws with averaged weights that its network holds meanwhile; the scheduler of diffusion counts its steps."""
    settings = {"generator": {"name": family}, "mixing": {"sources": {"redraw": 1.0, "deformation": 0}}}
    pairs = PairAugmentation.untrained(planned(2), 2, 2, settings=settings)
    image, labels = batch(planned(2).patch_size, channels=2)
    image = image + 0.3 * torch.randn(image.shape, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = pairs.training_step(image, labels, seeded())
        under_autocast = pairs(image, labels, seeded(0))[0]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    expected = [pairs(image, labels, seeded(seed))[0] for seed in range(12)]
    assert torch.equal(under_autocast, expected[0])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: pairs(image, labels, seeded(seed))[0], range(12)))
    assert all(map(torch.equal, found, expected))


def deformed(plan: NetworkPlan) -> PairAugmentation:
    """Deforms alone, and has seen larger structures."""
    pairs = PairAugmentation.untrained(plan, 2, 1, settings=DEFORMED)
    pairs.training_step(*batch(plan.patch_size, shares=(16, 4)), seeded())
    return pairs


@pytest.mark.parametrize("dims", [2, 3])
def test_image_and_mask_stay_together(dims):
    pairs = deformed(planned(dims))
    image, labels = batch(planned(dims).patch_size, count=24)
    drawn, masks = pairs(image, labels, seeded())
    changed = (masks != labels).flatten(1).any(dim=1)
    assert changed.sum() > 4
    assert ((drawn[:, 0] - masks).abs() < 0.51).float().mean() > 0.9


def test_wrong_input_is_told():
    pairs = PairAugmentation.untrained(planned(2), 2, 1, settings=DEFORMED)
    image, labels = batch((16, 16))
    for wrong, message in (
        ((image[:, 0], labels, seeded()), "give (B, 1, y, x) and (B, y, x)"),
        ((image, labels[:, None], seeded()), "give (B, 1, y, x) and (B, y, x)"),
        ((image.repeat(1, 2, 1, 1), labels, seeded()), "found images of shape (3, 2, 16, 16)"),
        ((image[..., 1:], labels[..., 1:], seeded()), "crop or pad them to multiples of (2, 2)"),
        ((image, labels.float(), seeded()), "convert them to whole numbers"),
        ((image, labels + 1, seeded()), "the label map holds [3], allowed are [0, 1, 2]"),
    ):
        with pytest.raises(GenSegError, match=re.escape(message)):
            pairs(*wrong)
    with pytest.raises(GenSegError, match=r"give \(C, ...\) and \(1, ...\) with 2 axes more"):
        pairs.of_xyz(image, labels, 0)
    with pytest.raises(GenSegError, match="the label map holds fractions"):
        pairs.of_xyz(image[0], 0.9 * labels[:1], 0)
    with pytest.raises(GenSegError, match="only a fold folder tells the normalisation"):
        pairs.normalised(image[0])
    with pytest.raises(GenSegError, match="rotaton: unknown key"):
        PairAugmentation.untrained(planned(2), 2, 1, settings={"deformation": {"rotaton": 1}})
    idle = {"mixing": {"share": 0.2, "sources": {"redraw": 1.0}}, "paste": {"probability": 0.0}, "generator": {"interval": 1}}
    with pytest.raises(GenSegError, match=r"does not read mixing.share, paste.probability, generator.interval;"):
        PairAugmentation.untrained(planned(2), 2, 1, settings=idle)


def test_labels_of_the_same_regions_are_one_class():
    table = LabelTable({0: 0, 1: 2, 4: 2, 2: 1, 9: 3}, (0, 2, 1, 9), True)
    assert (table.codec.foreground, table.codec.has_ignore, table.codec.classes) == (2, True, 4)
    labels = torch.tensor([[0, 1, 4], [2, 9, 0]])
    classes = table.to_classes(labels)
    assert classes.tolist() == [[0, 2, 2], [1, 3, 0]]
    assert table.to_labels(classes).tolist() == [[0, 1, 1], [2, 9, 0]]
    for unknown in (-1, 3, 10):
        with pytest.raises(GenSegError, match=f"holds \\[{unknown}\\]"):
            table.to_classes(torch.tensor([unknown]))


def turned() -> PairAugmentation:
    """Pairs of volumes whose patches are (8, 16, 24), the axes being z, x, y."""
    pairs = deformed(UNEVEN)
    object.__setattr__(pairs.description, "axes", (2, 0, 1))
    return pairs


def test_monai_transform_makes_the_pair_and_keeps_metadata():
    pytest.importorskip("monai")
    from monai.data import MetaTensor

    from nnunetv2_genseg.pipelines.monai import RandSyntheticPaird

    pairs = turned()
    assert pairs.extent_xyz == (16, 24, 8)
    image, labels = batch((16, 24, 8))
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    data = {
        "image": MetaTensor(image[0], affine=affine, meta={"filename_or_obj": "a.nii.gz"}),
        "label": MetaTensor(labels[:1].float(), affine=affine),
        "name": "a",
    }
    transform = RandSyntheticPaird(pairs, "image", "label", prob=1.0).set_random_state(seed=3)
    found = transform(data)
    assert found["name"] == "a" and found["image"].meta["filename_or_obj"] == "a.nii.gz"
    for key, dtype in (("image", torch.float32), ("label", torch.float32)):
        assert isinstance(found[key], MetaTensor) and torch.equal(found[key].affine, affine.to(found[key].affine))
        assert found[key].shape == (1, 16, 24, 8) and found[key].dtype == dtype
    drawn, masks = pairs.of_xyz(image[0], labels[:1], transform._seed)
    assert torch.equal(found["image"].as_tensor(), drawn) and torch.equal(found["label"].as_tensor(), masks.float())
    assert not torch.equal(masks, labels[:1]) and ((drawn - masks).abs() < 0.51).float().mean() > 0.9
    planned_order, rng = (image[:1].permute(0, 1, 4, 2, 3), labels[:1].permute(0, 3, 1, 2)), seeded(transform._seed)
    assert torch.equal(pairs(*planned_order, rng)[1][0].permute(1, 2, 0), masks[0]), "the axes are those of the plans"
    again = RandSyntheticPaird(pairs, "image", "label", prob=1.0).set_random_state(seed=3)(data)
    assert torch.equal(again["image"], found["image"])
    assert not torch.equal(transform(data)["image"], found["image"])
    assert torch.equal(RandSyntheticPaird(pairs, prob=0.0)(data)["image"], data["image"])
    arrays = {key: data[key].numpy()[:, ::-1] for key in ("image", "label")}
    mirrored = RandSyntheticPaird(pairs, prob=1.0).set_random_state(seed=3)(arrays)
    assert isinstance(mirrored["label"], np.ndarray) and not np.array_equal(mirrored["label"], arrays["label"])


def test_metadata_of_monai_does_not_pass_through_the_drawing(monkeypatch):
    pytest.importorskip("monai")
    from monai.data import MetaTensor

    from nnunetv2_genseg.pipelines.monai import RandSyntheticPaird

    pairs, (image, labels) = turned(), batch((16, 24, 8))
    seen, of_xyz = [], pairs.of_xyz

    def watched(image: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend([type(image), type(labels)])
        return of_xyz(image, labels, seed)

    monkeypatch.setattr(pairs, "of_xyz", watched)
    RandSyntheticPaird(pairs, prob=1.0)({"image": MetaTensor(image[0]), "label": MetaTensor(labels[:1])})
    assert seen == [torch.Tensor, torch.Tensor]


def test_torchio_transform_makes_the_pair_and_keeps_affine_and_history():
    pytest.importorskip("torchio")
    import torchio as tio

    from nnunetv2_genseg.pipelines.torchio import RandomSyntheticPair

    pairs, (image, labels) = turned(), batch((16, 24, 8))
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])).numpy()
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=image[0], affine=affine), label=tio.LabelMap(tensor=labels[:1], affine=affine)
    )
    torch.manual_seed(0)
    found = tio.Compose([tio.Gamma(1.0), RandomSyntheticPair(pairs, "image", "label")])(subject)
    assert (found["image"].affine == affine).all() and found["label"].data.dtype == torch.int16
    assert not torch.equal(found["label"].data, labels[:1]) and torch.equal(subject["label"].data, labels[:1])
    assert ((found["image"].data - found["label"].data).abs() < 0.51).float().mean() > 0.9
    assert [type(transform).__name__ for transform in found.history] == ["Gamma"]
    assert torch.equal(RandomSyntheticPair(pairs, p=0)(subject)["image"].data, image[0])
    photograph, of_photographs = batch((16, 16)), deformed(planned(2))
    flat = tio.Subject(
        image=tio.ScalarImage(tensor=photograph[0][0, ..., None]), label=tio.LabelMap(tensor=photograph[1][:1, ..., None])
    )
    drawn = RandomSyntheticPair(of_photographs)(flat)
    assert drawn["image"].shape == (1, 16, 16, 1) and not torch.equal(drawn["image"].data, flat["image"].data)
    with pytest.raises(GenSegError, match="the generator draws slices"):
        RandomSyntheticPair(of_photographs)(subject)


@pytest.mark.parametrize("library", ["monai", "torchio"])
def test_a_missing_library_is_named_with_its_extra(library: str, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if f"{name}.".startswith((f"{library}.", f"nnunetv2_genseg.pipelines.{library}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"run: pip install nnunetv2-genseg\[{library}\]"):
        importlib.import_module(f"nnunetv2_genseg.pipelines.{library}")
