"""Pairs of a trained generator in other pipelines: the folder of a fold, a kept generator, MONAI and TorchIO."""

from __future__ import annotations

import json
import os
import pickle
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.cli import external_trainers
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers import GenSegTrainerShort, resuming
from nnunetv2_genseg.trainers.pretraining import Pretraining, pretrain
from nnunetv2_genseg.trainers.raw_cases import RawCases

from .conftest import TINY, Workspace, make_trainer
from .datasets import Kind, plan

EXAMPLES = Path(__file__).parents[2] / "examples"
PHANTOM_2D = ("Dataset901_Phantom2D", "2d")
PHANTOM_3D = ("Dataset902_Phantom3D", "3d_fullres")
SMALL = {"generator": {"width": 0.25}}


def trained(dataset: str, configuration: str, **options: Any) -> Any:
    """A trainer that has learned from one batch and has saved its state; as a training leaves it."""
    trainer = make_trainer(GenSegTrainerShort, dataset, configuration, "2,1,1,1,0", **options)
    trainer.on_train_start()
    resuming.record(trainer, False)
    parts = trainer._batches.parts(next(trainer.dataloader_train))
    trainer.loop.sampler.observe(parts.labels)
    trainer.loop.training_step(parts.image, parts.labels)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trainer.parts = parts
    return trainer


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


KINDS = {
    "photographs": (Kind(), "2d"),
    "regions": (Kind(regions=True, ignore=True), "2d"),
    "volumes": (Kind(dims=3, channels=("CT", "T2"), margin=0.2), "3d_fullres"),
}


def turned(plans: dict[str, Any]) -> None:
    """The axes of volumes in another order."""
    if "3d_fullres" in plans["configurations"]:
        configuration = plans["configurations"]["3d_fullres"]
        configuration["spacing"] = [configuration["spacing"][axis] for axis in (2, 0, 1)]
        plans["transpose_forward"], plans["transpose_backward"] = [2, 0, 1], [1, 2, 0]


@pytest.mark.parametrize("name", KINDS)
def test_a_fold_folder_makes_the_pairs_of_its_training(name, folder, settings):
    kind, configuration = KINDS[name]
    raw = kind.write(folder / "nnUNet_raw", 910)
    plan(910, configuration, edit=turned)
    settings(SMALL)
    trainer = trained(raw.name, configuration)
    os.environ.pop("nnUNet_genseg_config")
    pairs = PairAugmentation.load(trainer.output_folder)
    image, classes = trainer.parts.image, trainer.parts.labels
    label_of = torch.tensor(pairs.description.labels.label_of)
    assert label_of.tolist() == [0, 1, 2, 3][: len(label_of)] if name != "regions" else label_of.tolist() == [0, 2, 1, 3]
    drawn, labels = pairs(image, label_of[classes].short(), seeded())
    rng = seeded()
    slots = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
    with torch.no_grad():
        own = trainer.loop.sampler.replace(image, classes, trainer.loop.sampler.choose(len(image), 1.0, slots), rng)
    torch.testing.assert_close(drawn[own.slots], own.pairs.image)
    assert labels.dtype == torch.int16
    assert torch.equal(labels[own.slots].long(), label_of[own.pairs.labels])
    assert (drawn - image).abs().mean() > 0.01
    copied = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(copied(image, label_of[classes], seeded())[0], drawn)
    assert torch.equal(copied.normalised(image[0]), pairs.normalised(image[0]))
    assert_normalised_as_by_nnunet(pairs, trainer, raw)
    if name == "volumes":
        assert pairs.description.axes == (0, 2, 1), "plans (x, z, y)"
        assert pairs.extent_xyz == tuple(trainer.configuration_manager.patch_size[i] for i in (0, 2, 1))
    still = {"deformation": {"displacement": 0.0, "rotation": 0.0, "scaling": 0.0}, "intensity": {"tone": 0.0}}
    changed = PairAugmentation.load(trainer.output_folder, settings={**still, "mixing": {"sources": {"redraw": 0}}})
    torch.testing.assert_close(changed(image, label_of[classes], seeded())[0], image, atol=1e-4, rtol=1e-4)


def assert_normalised_as_by_nnunet(pairs: PairAugmentation, trainer: Any, raw: Path) -> None:
    """nnU-Net crops what is 0; it does not resample these images."""
    name = sorted(trainer.do_split()[0])[0]
    cases = RawCases(trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json, raw, [name])
    image, _, _ = cases.load(name)
    order = [0, *(1 + axis for axis in trainer.plans_manager.transpose_forward)]
    found = pairs.normalised(torch.from_numpy(image.transpose(order).copy()))
    preprocessed = trainer.preprocessed_dataset_folder
    expected = infer_dataset_class(preprocessed)(preprocessed).load_case(name)[0][:]
    place = cases.read(name).place
    np.testing.assert_allclose(found[(slice(None), *place)].numpy(), expected, atol=1e-4)


def test_a_kept_generator_makes_pairs(nnunet, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", external_trainers())
    monkeypatch.setenv("nnUNet_genseg_set", "redraw.mode=tissue")
    kept = nnunet / "kept"
    common = {"trainer": "GenSegTrainer", "fold": "all", "plans": TINY, "device": "cpu"}
    pretrain(Pretraining(dataset=PHANTOM_2D[0], configuration="2d", output=kept, iterations=3, **common))
    monkeypatch.delenv("nnUNet_genseg_set")
    pairs = PairAugmentation.load(kept, settings={"mixing": {"sources": {"redraw": 1.0, "deformation": 0}}})
    assert pairs.sampler.config.redraw.mode == "tissue"
    source, labels = pairs.sampler.sources["redraw"], torch.zeros(4, 32, 32, dtype=torch.long)
    described = json.loads((kept / "config.json").read_text())["pairs"]
    assert source.deviation.flatten().tolist() == pytest.approx(described["deviation"])
    assert len(set(described["deviation"])) == 3, "measured, and not 1"
    assert source.variation.seen.any()
    labels[:, 6:26, 6:26], labels[:, 12:18, 12:18] = 1, 2
    assert 0 < pairs.sampler.deformer.largest[1] < 32 * 32
    image = torch.rand(4, 3, 32, 32, generator=seeded())
    drawn, masks = pairs(image, labels, seeded())
    assert (drawn - image).abs().mean() > 0.01 and drawn.isfinite().all()
    assert not torch.equal(masks, labels)
    with pytest.raises(GenSegError, match="as by ZScoreNormalization"):
        pairs.normalised(image[0])
    with pytest.raises(GenSegError, match=r"features is .* there"):
        PairAugmentation.load(kept, settings={"generator": {"width": 0.9}})
    description = json.loads((kept / "config.json").read_text())
    (kept / "config.json").write_text(json.dumps({key: value for key, value in description.items() if key != "pairs"}))
    with pytest.raises(GenSegError, match="write the generator again with `genseg pretrain`"):
        PairAugmentation.load(kept)


def test_a_folder_of_something_else_is_refused(nnunet, workspace: Workspace):
    with pytest.raises(GenSegError, match="neither a fold folder of a GenSeg training"):
        PairAugmentation.load(workspace.folder)
    trainer = trained(*PHANTOM_2D, plans_name=TINY)
    with pytest.raises(GenSegError, match="leave the generator's settings as they were"):
        PairAugmentation.load(trainer.output_folder, settings={"generator": {"width": 1.0}})
    with pytest.raises(GenSegError, match="rotaton: unknown key"):
        PairAugmentation.load(trainer.output_folder, settings={"deformation": {"rotaton": 1}})
    for idle in ({"seed": 1}, {"generator": {"learning_rate": 1e-4}}):
        with pytest.raises(GenSegError, match=r"does not read (seed|generator\.learning_rate);"):
            PairAugmentation.load(trainer.output_folder, settings=idle)


@pytest.mark.parametrize(("library", "phantom"), [("monai", PHANTOM_2D), ("torchio", PHANTOM_2D), ("torchio", PHANTOM_3D)])
def test_the_example_trains_a_unet(library, phantom, nnunet, workspace: Workspace):
    pytest.importorskip(library)
    fold = Path(trained(*phantom, plans_name=TINY).output_folder)
    main = runpy.run_path(str(EXAMPLES / f"{library}_pipeline.py"))["main"]
    losses = main(fold, workspace.folder / "nnUNet_raw" / phantom[0], steps=8)
    assert losses[-1] < losses[0]
