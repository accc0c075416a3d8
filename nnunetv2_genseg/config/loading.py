"""Reads a user's settings: JSON or YAML in, a checked configuration out.

The settings file, which the environment variable `nnUNet_genseg_config` names, overrides the trainer's preset. Single settings
of the command line (`--set`) override both.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nnunetv2_genseg.config.environment import OVERRIDES, SETTINGS
from nnunetv2_genseg.config.errors import GenSegError
from nnunetv2_genseg.config.reading import parse_json, parse_yaml, read_text
from nnunetv2_genseg.config.schema import GenSegConfig, Section, Settings

LARGEST = 2**16
"""Bytes that a settings file may have."""
MOST_FAULTS = 10
"""Faults of a settings file that are listed."""
_ConfigT = TypeVar("_ConfigT", bound=Section)


def resolve(preset: Settings | None = None, environment: dict[str, str] | None = None) -> GenSegConfig:
    """The configuration that a training uses.

    Args:
        preset: settings of the preset trainer, nested as in the JSON file.
        environment: where `nnUNet_genseg_config` is looked up; the process's environment by default.

    Raises:
        GenSegError: the file is missing, not JSON or YAML, or holds a setting that is unknown or not allowed.
    """
    environment = dict(os.environ) if environment is None else environment
    path = environment.get(SETTINGS, "").strip()
    settings = merged(preset or {}, _read(Path(path)) if path else {})
    lines = environment.get(OVERRIDES, "").splitlines()
    origins = [path or "preset", *(["--set"] if lines else [])]
    return checked(GenSegConfig, merged(settings, overrides(lines)), origin=" and ".join(origins))


def overrides(lines: Sequence[str]) -> Settings:
    """Single settings, each `section.setting=value` with a value in YAML, as nested settings.

    Raises:
        GenSegError: a line has another form, or two set the same.
    """
    result: Settings = {}
    for line in lines:
        name, equals, text = line.partition("=")
        *sections, key = name.strip().split(".")
        if not equals or not all([*sections, key]):
            raise GenSegError(f"--set needs SECTION.SETTING=VALUE, as in deformation.rotation=20, found {line!r}")
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise GenSegError(f"--set {line}: the value is not valid YAML: {error}") from None
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise GenSegError(f"--set {line}: {section} is set already; remove one of the two")
        if key in place:
            raise GenSegError(f"--set {line}: {name.strip()} is set already; remove one of the two")
        place[key] = value
    return result


def checked(model: type[_ConfigT], settings: Settings, origin: str) -> _ConfigT:
    """Builds `model`; every fault becomes one line that names the key, what was found and what is allowed.

    Raises:
        GenSegError: for anything that is wrong in `settings`.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = [_explain(model, dict(fault)) for fault in faults[:MOST_FAULTS]]
        lines += [f"and {len(faults) - MOST_FAULTS} more"] * (len(faults) > MOST_FAULTS)
        raise GenSegError(f"GenSeg configuration ({origin}) is not valid:\n  " + "\n  ".join(lines)) from None


def _explain(model: type[BaseModel], fault: dict[str, Any]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path) or "configuration"
    if fault["type"] != "extra_forbidden":
        return f"{key}: {fault['msg']}; found {reprlib.repr(fault['input'])}"
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return f"{key}: {fault['msg']}; found {reprlib.repr(fault['input'])}"
        model = annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known)}"
    return f"{key}: unknown key; {hint}"


def _read(path: Path) -> Settings:
    if not path.is_file():
        raise GenSegError(f"{SETTINGS} names {path}, which is not a file; correct or unset it")
    text = read_text(path, LARGEST)
    try:
        settings = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except ValueError as error:
        raise GenSegError(f"{path} is neither valid JSON nor YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise GenSegError(f"{path} must hold a mapping of sections to settings, found {type(settings).__name__}")
    return settings


def merged(first: Settings, second: Settings) -> Settings:
    """Nested settings, of which those in `second` override those in `first`."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
