"""The one reader of files that a user or an earlier training left: JSON or YAML in, a value of the expected form out.

YAML is read as version 1.2 says (core schema): `010` is ten, `1:30`, `no` and `<<` are strings, `1e-4` is a number.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from nnunetv2_genseg.config.errors import GenSegError

LARGEST = 64 * 2**20
"""Bytes that a file may have."""
MOST_NODES = 1000
"""Keys and values that a YAML file may have, its aliases written out: reading is slow, and aliases of aliases multiply."""
DEEPEST = 20
"""Levels of a YAML file."""


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        GenSegError: it is too large, or not text in UTF-8.
    """
    size = path.stat().st_size
    if size > largest:
        raise GenSegError(f"{path} has {size} bytes, more than the {largest} that such a file can have; correct or shorten it")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GenSegError(f"{path} is not a text file in UTF-8: {error}") from None


def parse_json(text: str) -> Any:
    """The value that JSON describes.

    Raises:
        ValueError: it is not JSON, has a key twice, or too many levels.
    """

    def mapping(items: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twice([key for key, _ in items])
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except RecursionError:
        raise ValueError("it has too many levels") from None


def parse_yaml(text: str) -> Any:
    """The value that YAML describes.

    Raises:
        ValueError: it is not YAML, has a key twice, or is too large with its aliases written out.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("it has too many levels") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def read_json(path: Path, form: Any = Any, described: str = "JSON") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        form: a type; see `in_form`.
        described: the form in words.

    Raises:
        OSError: it cannot be read.
        GenSegError: it is not JSON, or of another form.
    """
    text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise GenSegError(f"{path} is not valid JSON ({error}); restore or correct it") from None
    return in_form(content, form, described, str(path))


def in_form(content: Any, form: Any, described: str, origin: str) -> Any:
    """The content as an instance of a type, nested types included.

    Args:
        content: of numbers, strings, lists and mappings.
        form: a type, such as `dict[str, list[str]]` or a pydantic model.
        described: the form in words, for the message: "a list of ...".
        origin: where the content is from, for the message.

    Raises:
        GenSegError: it does not have that form.
    """
    try:
        return TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        found = f"{place + ': ' if place else ''}{fault['msg']}; found {reprlib.repr(fault['input'])}"
        raise GenSegError(f"{origin} must be {described} ({found}); correct or restore it") from None


def _refuse_twice(keys: list[Any]) -> None:
    """Python's readers of JSON and YAML would keep the last value and say nothing."""
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{key} is there twice; join the two")
        seen.add(key)


class _Loader(yaml.SafeLoader):
    """PyYAML keeps to version 1.1; here are the types of version 1.2, limits, and a look for keys that are there twice."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = 0
        self._levels = 0
        self._sizes: dict[int, int] = {}
        """Nodes in every node, its aliases written out."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        before, is_alias = self._nodes, self.check_event(yaml.AliasEvent)
        self._levels += 1
        if self._levels > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} levels")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._levels -= 1
        if is_alias and id(node) not in self._sizes:
            raise ValueError("an alias names what it is a part of")
        self._nodes += self._sizes[id(node)] if is_alias else 1
        if self._nodes > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES} keys and values, aliases written out")
        self._sizes.setdefault(id(node), self._nodes - before)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_twice([key for key in keys if isinstance(key, Hashable)])
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        """As version 1.2: only `0o` and `0x` change the base."""
        text = str(node.value)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""Types of plain scalars (YAML 1.2.2, section 10.3.2): a pattern, and the characters that they begin with."""
_Loader.yaml_implicit_resolvers = {}  # of version 1.1
for _type, (_pattern, _first) in _CORE_SCHEMA.items():
    _begin = [*_first, *([""] if _type == "null" else [])]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(rf"(?:{_pattern})$"), _begin)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
