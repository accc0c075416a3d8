"""Decisions of reviewers: none is lost, and review.csv holds the valid ones."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import ValidationError

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.review.decisions import DATABASE_FILE, Decisions, Verdict

ORIGIN = {"dataset": "Dataset001_A", "seed": 0}
ACCEPT = Verdict(decision="accept")
REJECT = Verdict(decision="reject", rating=1, reasons=("texture", "boundary"))


def rows(decisions: Decisions) -> list[dict[str, str]]:
    with open(decisions.export(), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def in_child(work: Callable[[], object]) -> Callable[[], int]:
    """Does something in a forked process; the function that is returned waits for its status."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return lambda: os.waitpid(child, 0)[1]


def test_the_table_holds_the_last_decision_of_each_reviewer_on_each_pair(tmp_path):
    decisions = Decisions(tmp_path, ORIGIN)
    assert rows(decisions) == []
    decisions.record("Åsa, MD", "b", ACCEPT)
    decisions.record("Åsa, MD", "b", REJECT)
    decisions.record("Bo", "b", Verdict(decision="accept", rating=4))
    decisions.record("Bo", 'a"\n', ACCEPT)
    found = rows(decisions)
    assert (tmp_path / "review.csv").read_text().splitlines()[0] == "pair,reviewer,decision,rating,reasons,time"
    assert all(row.pop("time").endswith("+00:00") for row in found)
    assert [tuple(row.values()) for row in found] == [
        ('a"\n', "Bo", "accept", "", ""),
        ("b", "Bo", "accept", "4", ""),
        ("b", "Åsa, MD", "reject", "1", "texture;boundary"),
    ]
    assert decisions.of("Åsa, MD") == {"b": {"decision": "reject", "rating": 1, "reasons": ["texture", "boundary"]}}


def test_undo_takes_a_reviewers_own_decisions_back_one_by_one_also_later(tmp_path):
    decisions = Decisions(tmp_path, ORIGIN)
    decisions.record("Bo", "a", ACCEPT)
    decisions.record("Bo", "a", REJECT)
    decisions.record("Åsa", "a", REJECT)
    later = Decisions(tmp_path, ORIGIN)
    assert later.undo("Bo") == "a" and later.of("Bo")["a"]["decision"] == "accept", "the decision before it is valid again"
    assert later.undo("Bo") == "a" and later.of("Bo") == {}
    assert later.undo("Bo") is None
    assert later.of("Åsa")["a"]["decision"] == "reject"
    assert [row["reviewer"] for row in rows(later)] == ["Åsa"]


def test_a_killed_process_leaves_what_it_recorded(tmp_path):
    def work() -> None:
        Decisions(tmp_path, ORIGIN).record("Bo", "a", REJECT)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work)() == signal.SIGKILL
    decisions = Decisions(tmp_path, ORIGIN)
    assert [row["pair"] for row in rows(decisions)] == ["a"]
    assert decisions._base.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: also if the power fails"
    assert decisions._base.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_several_processes_write_at_once(tmp_path):
    def work(reviewer: str) -> None:
        decisions = Decisions(tmp_path, ORIGIN)
        for k in range(20):
            decisions.record(reviewer, f"pair_{k}", ACCEPT)
            decisions.export()

    waits = [in_child(lambda name=name: work(name)) for name in ("A", "B", "C")]
    assert [wait() for wait in waits] == [0, 0, 0]
    written = (tmp_path / "review.csv").read_text().splitlines()
    assert len(written) == 1 + 3 * 20, "the last to write wrote the decisions of all"


@pytest.mark.parametrize(
    "content",
    [
        {"decision": "maybe"},
        {"decision": "accept", "rating": 0},
        {"decision": "accept", "rating": 6},
        {"decision": "accept", "rating": 2},
        {"decision": "reject", "rating": 3},
        {"decision": "accept", "reasons": ["anatomy"]},
        {"decision": "reject", "reasons": ["colour"]},
        {"decision": "reject", "because": "x"},
    ],
)
def test_contradictions_are_refused(content):
    with pytest.raises(ValidationError):
        Verdict(**content)


def of_another_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA user_version = 99")


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE decisions (x)")


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"x" * 4096
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_version, "is no database of `genseg review` of this version"),
        (of_another_program, "is no database of `genseg review` of this version"),
        (damaged, "cannot be read"),
        (lambda path: path.write_bytes(b"no database"), "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be written"),
    ],
)
def test_a_database_that_does_not_fit_is_refused_and_left_as_it_is(tmp_path, change, message):
    decisions = Decisions(tmp_path, ORIGIN)
    decisions.record("Bo", "a", ACCEPT)
    decisions._base.close()
    path = tmp_path / DATABASE_FILE
    change(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(GenSegError, match=message):
        Decisions(tmp_path, ORIGIN)
    assert before is None or path.read_bytes() == before


def test_decisions_on_other_pairs_are_refused(tmp_path):
    Decisions(tmp_path, ORIGIN)
    with pytest.raises(GenSegError, match="other pairs than those in the folder now"):
        Decisions(tmp_path, ORIGIN | {"seed": 1})
