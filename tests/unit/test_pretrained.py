"""Trained generators as folders: what is written, what is refused and why (kind: a folder is ours only if we made it)."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from nnunetv2_genseg.config import GeneratorConfig, GenSegError, GenSegFileError
from nnunetv2_genseg.generators import NetworkPlan, build_generator
from nnunetv2_genseg.generators.diffusion import TimedUNet
from nnunetv2_genseg.generators.pretrained import ImageKind, identity, load_pretrained, save_pretrained, strangers_in
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

LAYOUT = ConditionLayout(2, 3, 1)
CASES = {"Dataset901_Phantom2D": ["tr_001", "tr_000"]}
KIND = {dims: ImageKind(("T1",), ("ZScoreNormalization",), (False,), (1.0,) * dims) for dims in (2, 3)}
FAMILY = pytest.mark.parametrize("family", ["diffusion", "gan", "vae"])
DIMS = pytest.mark.parametrize("dims", [2, 3], ids=["2d", "3d"])


def planned(dims):
    return NetworkPlan((8,) * dims, (8, 8), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)


def build(family, dims=2, seed=0, layout=LAYOUT, **settings):
    config = GeneratorConfig(name=family, learning_rate=0.01, **settings)
    generator = build_generator(config, planned(dims), layout, seed=seed, device=torch.device("cpu"), separate_architecture=False)
    return generator, identity(config, planned(dims), layout, KIND[dims])


def inputs(generator, dims=2):
    noise = torch.Generator().manual_seed(0)
    shapes = (LAYOUT.channels, *(8,) * dims), (1, *(8,) * dims), generator.style_shape((8,) * dims)
    return [torch.randn(2, *shape, generator=noise) for shape in shapes]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "made" / "on the way"


@DIMS
@FAMILY
def test_a_loaded_generator_draws_the_same_with_the_same_parameters(family, dims, folder):
    original, own = build(family, dims)
    condition, image, style = inputs(original, dims)
    for _ in range(5):
        original.training_step(condition, image, style)
    save_pretrained(original, folder, own, CASES)
    other, _ = build(family, dims, seed=1)
    other.training_step(condition, image, style)
    parameters = other.weights()
    assert load_pretrained(other, folder, own) == {"Dataset901_Phantom2D": ["tr_000", "tr_001"]}
    torch.testing.assert_close(other.sample(condition, style), original.sample(condition, style))
    assert all(one is same for one, same in zip(other.weights(), parameters, strict=True))
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    other.training_step(condition, image, style)


@DIMS
def test_diffusers_own_classes_draw_the_same_from_the_folder(dims, folder):
    generator, own = build("diffusion", dims)
    condition, image, style = inputs(generator, dims)
    for _ in range(5):
        generator.training_step(condition, image, style)
    save_pretrained(generator, folder, own, CASES)

    network = (UNet2DModel if dims == 2 else TimedUNet).from_pretrained(folder / "weights_0", subfolder="unet")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "weights_0", subfolder="scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 2, 2))
    sample = style
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            velocity = network(torch.cat([sample, condition], dim=1), timestep).sample
            sample = scheduler.step(velocity, timestep, sample).prev_sample
    torch.testing.assert_close(sample, generator.sample(condition, style))


@pytest.mark.parametrize(
    "key, other",
    [
        ("family", "vae"),
        ("channels", ["T2"]),
        ("channels", ["T1", "T2"]),
        ("normalization", ["CTNormalization"]),
        ("masked", [True]),
        ("spacing", [1.0, 2.0]),
        ("spacing", [1.0]),
        ("tissues", 0),
        ("features", [8]),
    ],
)
def test_a_generator_that_does_not_fit_is_refused_with_what_differs(key, other, folder):
    generator, own = build("gan")
    save_pretrained(generator, folder, own, CASES)
    with pytest.raises(GenSegError, match=f"does not fit: {key} is .* there, .* here"):
        load_pretrained(generator, folder, {**own, key: other})


@pytest.mark.parametrize("spacing", [[None, 1.0], ["1.0", "1.0"], None, 1.0])
def test_a_spacing_that_is_none_is_refused(spacing, folder):
    generator, own = build("gan")
    save_pretrained(generator, folder, {**own, "spacing": spacing}, CASES)
    with pytest.raises(GenSegError, match=r"does not fit: spacing is .* there"):
        load_pretrained(generator, folder, own)


def test_weights_that_are_not_finite_are_refused_with_their_folder(folder):
    generator, own = build("gan")
    with torch.no_grad():
        generator.weights()[0].view(-1)[0] = float("nan")
    save_pretrained(generator, folder, own, CASES)
    with pytest.raises(GenSegError, match=f"the weights in {folder} hold NaN or infinity"):
        load_pretrained(generator, folder, own)


def test_spacings_that_hardly_differ_are_taken_for_the_same(folder):
    generator, own = build("gan")
    save_pretrained(generator, folder, own, CASES)
    load_pretrained(generator, folder, {**own, "spacing": [1.04, 0.97]})


@FAMILY
def test_other_shapes_of_weights_and_damage_are_named(family, folder):
    generator, own = build(family)
    save_pretrained(generator, folder, own, CASES)
    if family != "diffusion":
        other, _ = build(family, width=1.0)
        with pytest.raises(GenSegError, match="missing, damaged or of other shapes"):
            load_pretrained(other, folder, own)
    (weights,) = folder.rglob("*.safetensors")
    for spoil in (lambda: weights.write_bytes(weights.read_bytes()[:100]), weights.unlink):
        spoil()
        with pytest.raises(GenSegError, match="missing, damaged or of other shapes"):
            load_pretrained(generator, folder, own)


@pytest.mark.parametrize("content", [None, "{", "3"])
def test_another_folder_is_refused(content, tmp_path):
    generator, own = build("gan")
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(GenSegError, match=r"not the folder of a trained generator: config\.json cannot be read"):
        load_pretrained(generator, tmp_path, own)


class Full:
    """A generator whose weights cannot all be written: the disk is full."""

    def __init__(self, generator, spoil):
        self.generator, self.spoil = generator, spoil

    def save_weights(self, folder):
        self.generator.save_weights(folder)
        self.spoil()

    def load_weights(self, folder):
        self.generator.load_weights(folder)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), SafetensorError("No space left"), KeyboardInterrupt()])
def test_a_generator_that_cannot_be_written_leaves_the_one_before_it(fault, folder):
    def spoil():
        raise fault

    generator, own = build("gan")
    save_pretrained(generator, folder, own, CASES)
    newer, _ = build("gan", seed=1)
    raised = KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else GenSegFileError
    for _ in range(2):
        with pytest.raises(raised, match=None if raised is KeyboardInterrupt else r"could not write .*No space left.*intact"):
            save_pretrained(Full(newer, spoil), folder, own, CASES)
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights_0"]
        receiver, _ = build("gan", seed=2)
        load_pretrained(receiver, folder, own)
        assert all(map(torch.equal, receiver.weights(), generator.average.weights().values()))
    save_pretrained(newer, folder, own, CASES)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights_1"]


@pytest.mark.parametrize("moment", ["weights", "rename config", "remove weights"])
def test_a_process_killed_while_it_writes_leaves_a_whole_generator(moment, folder):
    """And the next one tidies up."""
    generator, own = build("gan")
    save_pretrained(generator, folder, own, CASES)
    program = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_pretrained import CASES, Full, build
        from nnunetv2_genseg.generators.pretrained import save_pretrained
        generator, own = build("gan", seed=1)
        def audit(event, arguments):
            name = os.path.basename(str(arguments[0])) if arguments else ""
            if {moment!r} == "rename config" and event == "os.rename" and name.startswith("config.json"):
                os._exit(7)
            if {moment!r} == "remove weights" and event == "shutil.rmtree" and name == "weights_0":
                os._exit(7)
        sys.addaudithook(audit)
        spoil = (lambda: os._exit(7)) if {moment!r} == "weights" else (lambda: None)
        save_pretrained(Full(generator, spoil), Path({str(folder)!r}), own, CASES)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    receiver, _ = build("gan", seed=2)
    load_pretrained(receiver, folder, own)
    written = build("gan", seed=1)[0] if moment == "remove weights" else generator
    assert all(map(torch.equal, receiver.weights(), written.average.weights().values()))
    assert strangers_in(folder) == ([] if moment != "rename config" else [next(folder.glob("*.partial")).name])
    save_pretrained(generator, folder, own, CASES)
    load_pretrained(receiver, folder, own)
    assert all(map(torch.equal, receiver.weights(), generator.average.weights().values()))


@FAMILY
def test_modes_of_the_files_follow_the_umask(family, folder):
    generator, own = build(family)
    before = os.umask(0o027)
    try:
        save_pretrained(generator, folder, own, CASES)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}


def test_files_of_others_are_told_from_ours(folder):
    assert strangers_in(folder) == []
    generator, own = build("gan")
    save_pretrained(generator, folder, own, CASES)
    assert strangers_in(folder) == []
    (folder / "notes.txt").touch()
    assert strangers_in(folder) == ["notes.txt"]
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert strangers_in(folder) == ["config.json", "notes.txt"]


def test_a_family_without_weights_has_nothing_to_save(folder):
    generator, own = build("gmm")
    with pytest.raises(GenSegError, match="generator 'gmm' has no weights"):
        save_pretrained(generator, folder, own, CASES)
    assert not folder.exists()


@pytest.mark.parametrize("number", [None, 1, "2"])
def test_a_folder_of_another_format_is_refused_with_the_remedy(number, folder):
    generator, own = build("gan")
    save_pretrained(generator, folder, own, CASES)
    described = json.loads((folder / "config.json").read_text())
    del described["format"]
    (folder / "config.json").write_text(json.dumps(described if number is None else described | {"format": number}))
    with pytest.raises(GenSegError, match=rf"has format {number!r}, this version reads 4; train it again with `genseg pretrain`"):
        load_pretrained(generator, folder, own)


@DIMS
def test_the_weights_that_are_kept_are_the_averaged_ones(dims, folder):
    generator, own = build("gan", dims)
    for _ in range(5):
        generator.training_step(*inputs(generator, dims))
    save_pretrained(generator, folder, own, CASES)
    kept, average = load_file(folder / "weights_0" / "model.safetensors"), generator.average.weights()
    assert kept.keys() == average.keys()
    assert all(torch.equal(kept[name], average[name]) for name in kept)
    assert not all(torch.equal(kept[name], weight) for name, weight in generator.network.named_parameters())
