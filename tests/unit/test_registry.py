"""Parts are found by their names, in this package's modules and by other packages' entry points."""

import subprocess
import sys

import pytest
import torch

from nnunetv2_genseg.config import GeneratorConfig, GenSegError
from nnunetv2_genseg.generators import GENERATORS, NetworkPlan, build_generator
from nnunetv2_genseg.registry import Registry
from nnunetv2_genseg.synthesis.conditioning import ConditionLayout

FAMILIES = ["diffusion", "gan", "gmm", "vae"]
PLAN = NetworkPlan((16, 16), (8, 8), ((1, 1), (2, 2)), ((3, 3),) * 2)


def built(name):
    return build_generator(
        GeneratorConfig(name=name),
        PLAN,
        ConditionLayout(1, 2, 3),
        seed=0,
        device=torch.device("cpu"),
        separate_architecture=False,
    )


@pytest.fixture(autouse=True, scope="module")
def built_in_families():
    """Imported before a test replaces the registry's parts, for a module registers its family once a process."""
    for name in FAMILIES:
        GENERATORS[name]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package with an entry point: its metadata and its module, as pip would lay them out."""

    def install(name, module, text, group="nnunetv2_genseg.generators"):
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    monkeypatch.setattr(GENERATORS, "_parts", dict(GENERATORS._parts))
    return install


def test_the_names_are_those_of_the_families_and_of_no_other_module():
    assert GENERATORS.names() == FAMILIES


def test_a_part_is_imported_when_it_is_asked_for_and_not_before():
    code = (
        "import sys\nfrom nnunetv2_genseg.generators import GENERATORS\n"
        f"assert GENERATORS.names() == {FAMILIES}\nassert 'diffusers' not in sys.modules\n"
        "GENERATORS['gan']\nassert 'diffusers' not in sys.modules\nGENERATORS['diffusion']\nassert 'diffusers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_error_that_names_the_setting_and_lists_the_known_ones():
    with pytest.raises(GenSegError, match=r"generator\.name: no 'gann'; registered are diffusion, gan, gmm, vae"):
        built("gann")


@pytest.mark.parametrize("name", ["base", "networks", "averaging"])
def test_a_module_that_holds_no_part_is_not_one(name):
    with pytest.raises(GenSegError, match=f"no '{name}'"):
        GENERATORS[name]


def test_a_name_is_registered_once():
    with pytest.raises(RuntimeError, match=r"generator\.name 'gan' is registered twice"):
        GENERATORS.register("gan")(lambda *args, **settings: None)


def test_registering_returns_the_part_itself():
    registry = Registry("setting", "nnunetv2_genseg.generators", exclude=())

    @registry.register("mine")
    class Mine:
        pass

    assert registry["mine"] is Mine
    assert isinstance(Mine(), Mine)


FLAT = """
import torch
from nnunetv2_genseg.generators import GENERATORS

@GENERATORS.register("flat")
class Flat:
    def __init__(self, config, plan, layout, *, separate_architecture, synchronise):
        self.channels = layout.image_channels

    def style_shape(self, spatial):
        return (1,)

    def sample(self, condition, style):
        return torch.zeros(len(condition), self.channels, *condition.shape[2:])
"""


def test_another_package_s_part_is_found_by_its_entry_point(installed):
    installed("flat", "somebodys_flat_generator", FLAT)
    assert GENERATORS.names() == ["diffusion", "flat", "gan", "gmm", "vae"]
    assert built("flat").sample(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1)).shape == (2, 3, 4, 4)


def test_an_entry_point_of_another_kind_is_not_found(installed):
    installed("flat", "somebodys_mask_source", FLAT, group="nnunetv2_genseg.synthesis.mask_sources")
    assert GENERATORS.names() == FAMILIES


def test_another_package_cannot_take_the_place_of_a_family_of_this_one(installed):
    installed("gan", "somebodys_gan", "raise SystemExit")
    assert GENERATORS.names() == FAMILIES
    assert type(built("gan")).__module__ == "nnunetv2_genseg.generators.gan"


@pytest.mark.parametrize(
    "text, said", [("import not_there_at_all", "does not import: No module"), ("ready = True", "does not register it")]
)
def test_a_package_whose_part_is_broken_is_named(installed, text, said):
    module = f"somebodys_broken_generator_{len(text)}"
    installed("broken", module, text)
    assert GENERATORS.names() == ["broken", "diffusion", "gan", "gmm", "vae"]
    built("gan")  # does not mind
    with pytest.raises(ImportError, match=f"'broken': {module} {said}"):
        built("broken")
