"""The reference pages, made from the code: settings, trainers, commands, files, logged values and messages."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nnunetv2_genseg import trainers
from nnunetv2_genseg.checkpoint import sibling
from nnunetv2_genseg.cli.main import WITH_OPTIONS, WITHOUT_OPTIONS
from nnunetv2_genseg.config import GenSegConfig
from nnunetv2_genseg.config.schema import ADJUSTABLE
from nnunetv2_genseg.files.atomic import PARTIAL
from nnunetv2_genseg.plots.values import MEANINGS
from nnunetv2_genseg.trainers.presets import __all__ as presets
from nnunetv2_genseg.trainers.short import __all__ as short

ROOT = Path(__file__).parents[2]
PATTERNS: list[tuple[str, ...]] = [
    (
        f"`{sibling(Path('checkpoint_latest.pth'), 50)}`",
        "the state of generator and feedback that belongs to the `checkpoint_latest.pth` of epoch 50; `best` and `final` alike",
    ),
    (f"`*{PARTIAL}`", "a file that is being written; a training removes those of a killed one"),
]
BOUNDS: dict[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "≥"),
    annotated_types.Gt: ("gt", ">"),
    annotated_types.Le: ("le", "≤"),
    annotated_types.Lt: ("lt", "<"),
}
MODULES_OF_FILES = (
    "trainers.resuming",
    "trainers.recording",
    "trainers.holdout",
    "trainers.unlabelled_cases",
    "trainers.preferring",
)


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *(tuple(map(cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def constants(module: str) -> dict[str, tuple[Any, str]]:
    """Value and docstring of every documented constant of a module of the package, by name."""
    imported = import_module(f"nnunetv2_genseg.{module}")
    body = ast.parse(Path(str(imported.__file__)).read_text(encoding="utf-8")).body
    found = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            name = node.targets[0]
            if isinstance(name, ast.Name):
                found[name.id] = (getattr(imported, name.id), str(after.value.value))
    return found


# ---------------------------------------------------------------------- settings


def allowed(field: FieldInfo) -> str:
    """What a setting may be."""
    signs = [(part, *BOUNDS[type(part)]) for part in field.metadata if type(part) in BOUNDS]
    bounds = [f"{sign} {getattr(part, name):.10g}" for part, name, sign in signs]
    kind = str(field.annotation).replace("typing.", "")
    names = {
        "<class 'float'>": "number",
        "<class 'int'>": "whole number",
        "<class 'bool'>": "true or false",
        "<class 'str'>": "name",
    }
    kind = names.get(kind, kind)
    if kind.startswith("Literal"):
        kind = ", ".join(f"`{name}`" for name in field.annotation.__args__)  # type: ignore[union-attr]
    kind = kind.replace("dict[str, float]", "a weight for each name").replace("list[str]", "list of names")
    kind = kind.replace(" | None", " or `null`").replace("int ", "whole number ")
    kind = kind.replace("float", "number").replace("str", "text").replace(" | ", " or ")
    return ", ".join([kind, *bounds])


def section(model: type[BaseModel], name: str) -> str:
    """The settings of a section as a table, those of the sections in it after it."""
    rows, inner = [], ""
    for key, field in model.model_fields.items():
        full = f"{name}.{key}".lstrip(".")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner += section(field.annotation, full)
        else:
            default = json.dumps(field.default, ensure_ascii=False)
            rows.append((f"`{full}`", f"`{default}`", allowed(field), str(field.description).replace("None:", "`null`:")))
    head = f"\n## {name or 'Further'}\n\n{model.__doc__ if name else ''}\n\n"
    own = head + table(("setting", "default", "allowed", "meaning"), rows) if rows else ""
    return inner + own if not name else own + inner


def settings() -> str:
    """reference/settings.md."""
    return f"""# Settings

Nothing has to be set. A setting comes from one of four places; each overrides those before it:

1. the default,
2. the preset of the trainer ([trainers](trainers.md)),
3. the JSON or YAML file that the environment variable `nnUNet_genseg_config` names,
4. `--set SECTION.SETTING=VALUE` of `genseg train`, `genseg preview`, `genseg pretrain` and `genseg generate`.

A name that does not exist is refused, and so is a value that is not allowed. The settings of a training are in
`genseg_config.json` in its fold folder. When a training is resumed, {", ".join(f"`{name}`" for name in ADJUSTABLE)} may change,
the others may not. What each default rests on is in the [benchmarks](../benchmarks.md#defaults).
{section(GenSegConfig, "")}"""


# ---------------------------------------------------------------------- trainers, commands, files, values


def flat(preset: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings of a preset by their full names, as `--set` takes them."""
    found: dict[str, str] = {}
    for key, value in preset.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": json.dumps(value)}
    return found


def trainer_rows(names: list[str]) -> str:
    """A table of trainers."""
    rows = []
    for name in names:
        trainer = getattr(trainers, name)
        preset = "<br>".join(f"`{key}={value}`" for key, value in flat(getattr(trainer, "preset", {})).items()) or "the defaults"
        epochs = "of the variable" if name in short else getattr(trainer, "preset_epochs", None) or "nnU-Net's"
        rows.append((f"`{name}`", str(trainer.__doc__), preset, str(epochs)))
    return table(("trainer", "what it does", "settings", "epochs"), rows)


def trainers_page() -> str:
    """reference/trainers.md."""
    return f"""# Trainers

Choose one by `-tr NAME` in `genseg train` or `nnUNetv2_train`. Each is a subclass of nnU-Net's `nnUNetTrainer`. Before
`nnUNetv2_train`, run `eval "$(genseg env)"`, so that nnU-Net finds them; `genseg train` and `nnUNetv2_predict` need nothing.

{trainer_rows(["GenSegTrainer", "GenSegTrainerDA5", *presets])}
## Trainings of any length

For tests and demonstrations: the environment variable `nnUNet_genseg_short` gives the length.

{trainer_rows(list(short))}"""


def commands() -> str:
    """reference/commands.md."""
    parts = ["# Commands\n\nA mistake gives one message and exit status 2. Every other error keeps its traceback.\n"]
    with mock.patch.dict(os.environ, COLUMNS="88"):
        parts += [f"\n## genseg {name}\n\n```text\n{module.parser().format_help()}```\n" for name, module in WITH_OPTIONS.items()]
    parts += [f"\n## genseg {name}\n\n{function.__doc__}\n" for name, function in WITHOUT_OPTIONS.items()]
    return "".join(parts)


def files() -> str:
    """reference/files.md."""
    documented = [item for module in MODULES_OF_FILES for item in constants(module).items()]
    rows = [(f"`{value}`", text) for name, (value, text) in documented if name.endswith(("_FILE", "FILE_NAME"))]
    variables = [(f"`{value}`", text) for value, text in constants("config.environment").values()]
    return f"""# Files and environment variables

## In the fold folder

They lie beside nnU-Net's own files.

{table(("file", "content"), rows)}
{table(("pattern", "content"), PATTERNS)}
## Environment variables

{table(("variable", "meaning"), variables)}
"""


def values() -> str:
    """reference/values.md."""
    rows = [(f"`{name}`", meaning) for name, meaning in MEANINGS.items()]
    return f"""# Logged values

Means over an epoch. They are in nnU-Net's log (lines that begin with `GenSeg`), in `genseg_progress.png`, and at wandb under
`genseg/` if nnU-Net logs there (`nnUNet_wandb_enabled=1`). nnU-Net's own `progress.png` holds a fixed list of curves, to which
none can be added.

{table(("value", "meaning"), rows)}"""


def messages() -> str:
    """reference/messages.md."""
    sys.path.insert(0, str(ROOT))
    try:
        bad_inputs = import_module("tests.bad_inputs")
    finally:
        sys.path.remove(str(ROOT))
    rows = [
        (bad.name, f"`{bad.message}`", f"`genseg {bad.arguments[0]}`" if bad.arguments else "`genseg`")
        for bad in bad_inputs.TABLE
    ]
    return f"""# Messages

What `genseg` says if something is wrong: a part of each message. Each row is a test: the command ends with exit status 2, gives
this message without a traceback, and leaves nothing half-written.

{table(("situation", "part of the message", "command"), rows)}"""


PAGES: dict[str, Callable[[], str]] = {
    "reference/settings.md": settings,
    "reference/trainers.md": trainers_page,
    "reference/commands.md": commands,
    "reference/files.md": files,
    "reference/values.md": values,
    "reference/messages.md": messages,
}
"""Every page, by its path under docs/."""
