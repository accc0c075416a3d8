"""The layout of the package: arrows point downward, files stay small, few modules lie beside the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nnunetv2_genseg

PACKAGE = Path(nnunetv2_genseg.__file__).parent
LAYERS = [
    {"config"},
    {"files", "random_state"},
    {"registry", "checkpoint", "hypergradient", "phantoms"},
    {"generators"},
    {"synthesis"},
    {"bilevel"},
    {"plots", "quality"},
    {"trainers"},
    {"demo", "discovery", "pipelines", "review", "sweep"},
    {"cli"},
]
"""From the bottom to the top; a part imports from its own or from lower layers."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(dotted: str) -> str:
    """The package or module below `nnunetv2_genseg` that a dotted name lies in; empty for the package itself."""
    return [*dotted.split("."), ""][1]


def imported(path: Path) -> set[str]:
    """Dotted names of what a module imports from this package, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "nnunetv2_genseg"}


def layer(part: str) -> int:
    return next(height for height, parts in enumerate(LAYERS) if part in parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_downward(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert imported(path) == {"nnunetv2_genseg.pipelines.augmentation.PairAugmentation"}
        return
    for name in imported(path):
        part = part_of(name)
        if part and part != "__version__":
            assert part == own or layer(part) < layer(own), f"{own} imports {name}"


def test_the_package_imports_nothing_before_it_is_used():
    said = "import sys, nnunetv2_genseg; print('torch' in sys.modules, 'PairAugmentation' in dir(nnunetv2_genseg))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_every_part_has_a_layer():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}
    assert parts - {"__init__"} == set().union(*LAYERS)


def test_at_most_six_modules_lie_beside_the_packages():
    assert len([path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]) <= 6


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path):
    most = 299 if path.name == "mixin.py" else 350
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most
