"""A kept generator makes the pairs that it made before it was kept."""

import json

import pytest
import torch
from toy import planned, seeded

from nnunetv2_genseg import PairAugmentation
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.generators.pretrained import identity, save_pretrained
from nnunetv2_genseg.synthesis.pair_description import KeptPairs

STILL = {
    "deformation": {"displacement": 0.0, "rotation": 0.0, "scaling": 0.0},
    "intensity": {"tone": 0.0},
    "mixing": {"sources": {"redraw": 1.0, "deformation": 0}},
}


def batch(dims):
    """Images of different brightness: a box in them."""
    labels = torch.zeros(4, *(16,) * dims, dtype=torch.long)
    labels[(slice(None), *(slice(4, 12),) * dims)] = 1
    brightness = torch.tensor([-1.5, -0.5, 0.5, 1.5]).view(-1, 1, *(1,) * dims)
    return labels[:, None] + brightness + 0.3 * torch.randn(4, 1, *(16,) * dims, generator=seeded()), labels


def kept(folder, dims):
    """What learned from a batch, and was written into a folder."""
    pairs = PairAugmentation.untrained(planned(dims), 1, 1, settings=STILL | {"redraw": {"mode": "residual"}})
    pairs.training_step(*batch(dims), seeded())
    source, description = pairs.sampler.sources["redraw"], pairs.description
    own = identity(pairs.sampler.config.generator, description.plan, source.layout, description.images)
    save_pretrained(source.generator, folder, own, {}, KeptPairs.of(description, pairs.sampler).to_json())
    return pairs


@pytest.mark.parametrize("dims", [2, 3])
def test_a_kept_generator_changes_intensities_as_before(dims, tmp_path):
    pairs, (image, labels) = kept(tmp_path, dims), batch(dims)
    drawn, masks = pairs(image, labels, seeded(1))
    assert torch.equal(masks, labels)
    assert (drawn - image).abs().mean() > 0.01
    torch.testing.assert_close(PairAugmentation.load(tmp_path)(image, labels, seeded(1))[0], drawn)


def test_a_folder_that_does_not_say_how_intensities_vary_is_refused(tmp_path):
    kept(tmp_path, 2)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["pairs"]["variation"]["means"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(GenSegError, match=r"`pairs\.variation` in .* does not fit"):
        PairAugmentation.load(tmp_path)
    del content["pairs"]["variation"]
    path.write_text(json.dumps(content))
    with pytest.raises(GenSegError, match=r"`pairs` in .*variation"):
        PairAugmentation.load(tmp_path)
