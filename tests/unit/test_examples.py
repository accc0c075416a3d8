"""The examples that need no dataset; tests/unit/test_generators.py and tests/e2e/test_examples.py run the others."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from toy import CODECS, CPU, STILL, configured, planned, real_pairs, seeded

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_it_does(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) < 60


def test_pairs_from_tensors_replaces_patches_and_keeps_them_finite():
    image, labels = runpy.run_path(str(EXAMPLES / "pairs_from_tensors.py"))["main"](steps=2)
    assert image.shape == (4, 1, 32, 32)
    assert image.isfinite().all()
    real = torch.zeros(32, 32, dtype=torch.long)
    real[10:22, 8:20] = 1
    assert set(labels.unique().tolist()) == {0, 1}
    assert any(not torch.equal(own, real) for own in labels) or image.std() > 0.1


@pytest.mark.parametrize("dims", [2, 3])
def test_the_pair_source_mirrors_image_and_mask_alike(dims: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(PAIR_SOURCES, "_parts", dict(PAIR_SOURCES._parts))
    runpy.run_path(str(EXAMPLES / "custom_pair_source.py"))
    config = configured(
        mixing={"sources": {"mirror": 1.0}}, deformation=STILL, intensity={"tone": 0.0}, feedback={"enabled": False}
    )
    codec = CODECS["labels"]
    loop = BilevelLoop(config, planned(dims), codec, 1, CPU)
    image, labels = real_pairs(codec, dims, 1)
    pairs = loop.sampler.replace(image, labels, {"mirror": [0, 1, 2]}, seeded()).pairs
    assert torch.equal(pairs.labels, labels.flip(-1))
    torch.testing.assert_close(pairs.image, image.flip(-1), atol=1e-4, rtol=1e-4)
    assert pairs.accepted.all()
