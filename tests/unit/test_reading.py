"""The one reader of files (kind: parsed is not validated)."""

import json
import math
import time

import pytest

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import DEEPEST, MOST_NODES, in_form, parse_json, parse_yaml, read_json


@pytest.mark.parametrize(
    "text, value",
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("~", None),
        ("null", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("'010'", "010"),
    ],
)
def test_yaml_has_the_types_of_version_1_2(text, value):
    found = parse_yaml(f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_a_merge_key_is_a_key():
    assert parse_yaml("a: &base {x: 1}\nb:\n  <<: *base\n  y: 2\n") == {"a": {"x": 1}, "b": {"<<": {"x": 1}, "y": 2}}


def bombs():
    doubling = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    keys = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 60)]
    return {
        "aliases of aliases": ("\n".join(doubling), f"more than {MOST_NODES}"),
        "mappings of aliases": ("\n".join(keys), f"more than {MOST_NODES}"),
        "an alias in itself": ("a: &a [*a]", "what it is a part of"),
        "many keys": ("".join(f"a{i}: {i}\n" for i in range(20_000)), f"more than {MOST_NODES}"),
        "many levels": ("[" * 5000, f"more than {DEEPEST} levels"),
        "many levels of mappings": ("{a: " * 5000, f"more than {DEEPEST} levels"),
        "an unknown alias": ("a: *b", "undefined alias"),
        "a key twice": ("a: 1\na: 2", "a is there twice"),
        "a mapping as a key": ("{a: 1}: 2", "unhashable"),
        "a tag of Python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        "a wrong number": ('a: !!int "1:30"', "1:30"),
    }


@pytest.mark.parametrize("name", bombs())
def test_yaml_that_is_too_large_or_no_yaml_is_refused_fast(name):
    text, message = bombs()[name]
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    assert time.monotonic() - start < 5  # a tenth of a second on an idle machine


@pytest.mark.parametrize(
    "text, message", [("[" * 100_000, "levels"), ('{"a": 1, "a": 2}', "a is there twice"), ("{", "Expecting")]
)
def test_json_with_too_many_levels_or_a_key_twice_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe", "is not a text file in UTF-8"),
        (b"{", r"is not valid JSON \(.*\); restore or correct it"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", r"must be cases by name \(Input should be a valid dictionary; found \[\]\); correct or restore it"),
        (b'{"a": ["x", 3]}', r"must be cases by name \(a\.1: Input should be a valid string; found 3\)"),
        (b'{"a": null}', r"must be cases by name \(a: .*found None\)"),
    ],
)
def test_a_file_of_another_form_is_named_with_what_was_found(content, message, tmp_path):
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"a": ["x"]}))
    assert read_json(path, dict[str, list[str]], "cases by name") == {"a": ["x"]}
    path.write_bytes(content)
    with pytest.raises(GenSegError, match=message) as raised:
        read_json(path, dict[str, list[str]], "cases by name")
    assert str(path) in str(raised.value)


def test_a_missing_file_is_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "gone.json")


def test_a_large_value_is_shortened_in_the_message():
    with pytest.raises(GenSegError) as raised:
        in_form(["x" * 100_000] * 1000, dict[str, int], "numbers by name", "here")
    assert len(str(raised.value)) < 400
