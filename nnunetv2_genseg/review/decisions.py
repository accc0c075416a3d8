"""What reviewers decided of the pairs of a folder: a database in which every decision is kept, and review.csv made of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.files.atomic import write_text_atomically

DATABASE_FILE = "review.sqlite"
"""Holds all decisions, also those that were undone or replaced."""
CSV_FILE = "review.csv"
"""Holds the last decision of each reviewer on each pair."""
COLUMNS = ("pair", "reviewer", "decision", "rating", "reasons", "time")
FORMAT = 1
APPLICATION = int.from_bytes(b"gseg", "big")
"""What SQLite calls an application's number; it tells this database from those of other programs."""
WAIT = 10.0
"""Seconds to wait for another process that writes."""
SCHEMA = (
    "CREATE TABLE folder (origin TEXT NOT NULL)",
    """CREATE TABLE decisions (
        number INTEGER PRIMARY KEY, reviewer TEXT NOT NULL, pair TEXT NOT NULL, decision TEXT NOT NULL, rating INTEGER,
        reasons TEXT NOT NULL, time TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX of_reviewers ON decisions (reviewer, pair)",
    # SQLite takes the other columns from the row that has the maximum
    f"""CREATE VIEW last AS SELECT max(number), {", ".join(COLUMNS)} FROM decisions WHERE NOT undone
        GROUP BY reviewer, pair ORDER BY pair, reviewer""",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
)


class Verdict(BaseModel):
    """What a reviewer thinks of a pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    decision: Literal["accept", "reject"]
    rating: int | None = Field(default=None, ge=1, le=5)
    """3 and above accept, 1 and 2 reject; None: not rated."""
    reasons: tuple[Literal["anatomy", "texture", "boundary", "artefact"], ...] = ()
    """Of a rejection; none need be given."""

    @model_validator(mode="after")
    def _consistent(self) -> Verdict:
        accepted = self.decision == "accept"
        if self.rating is not None and (self.rating >= 3) != accepted:
            raise ValueError("ratings of 3 and above accept, 1 and 2 reject")
        if accepted and self.reasons:
            raise ValueError("reasons are those of a rejection")
        return self


class Decisions:
    """The decisions on the pairs of a folder. Several threads, and several processes, may use them at once.

    Args:
        folder: of the pairs.
        origin: what the pairs were made from, as in their record; decisions on other pairs are refused.

    Raises:
        GenSegError: the database is damaged, of another version, or about other pairs.
        GenSegFileError: it cannot be written.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        path = folder / DATABASE_FILE
        with _explained(path):
            self._base = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            with _explained(path):
                self._require_own(path)
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute("PRAGMA synchronous = FULL")  # a decision is on the disk when its transaction ends
                self._begin(path, hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest())
        except GenSegError:
            self._base.close()
            raise

    def _require_own(self, path: Path) -> None:
        # in this order: another process may make its tables in between
        empty = not self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        own = [self._base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if not empty and own != [APPLICATION, FORMAT]:
            raise GenSegError(
                f"{path} is no database of `genseg review` of this version (format {FORMAT}); use the version that wrote it, or "
                "move it away to begin anew"
            )
        fault = self._base.execute("PRAGMA quick_check").fetchone()[0]
        if fault != "ok":
            raise sqlite3.DatabaseError(fault)

    def _begin(self, path: Path, origin: str) -> None:
        with self._lock, self._base:
            self._base.execute("BEGIN IMMEDIATE")
            if not self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in SCHEMA:
                    self._base.execute(statement)
                self._base.execute("INSERT INTO folder VALUES (?)", (origin,))
            (there,) = self._base.execute("SELECT origin FROM folder").fetchone()
        if there != origin:
            raise GenSegError(
                f"{path} holds decisions on other pairs than those in the folder now; move it away to judge these, or restore "
                "the pairs that it belongs to"
            )

    def record(self, reviewer: str, pair: str, verdict: Verdict) -> None:
        """Keeps a decision; when this returns, it is on the disk.

        Raises:
            sqlite3.Error: it could not be kept.
        """
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        content = (reviewer, pair, verdict.decision, verdict.rating, ";".join(verdict.reasons), time)
        columns = "reviewer, pair, decision, rating, reasons, time"
        with self._lock, self._base:
            self._base.execute(f"INSERT INTO decisions ({columns}) VALUES (?, ?, ?, ?, ?, ?)", content)

    def undo(self, reviewer: str) -> str | None:
        """Takes back a reviewer's last decision, so that the one before it on the same pair is valid again.

        Returns:
            The pair that it was about; None: there is no decision to take back.
        """
        with self._lock, self._base:
            self._base.execute("BEGIN IMMEDIATE")
            latest = "SELECT number, pair FROM decisions WHERE reviewer = ? AND NOT undone ORDER BY number DESC LIMIT 1"
            found = self._base.execute(latest, (reviewer,)).fetchone()
            if found is None:
                return None
            self._base.execute("UPDATE decisions SET undone = 1 WHERE number = ?", found[:1])
        return str(found[1])

    def of(self, reviewer: str) -> dict[str, dict[str, Any]]:
        """A reviewer's valid decisions, by the pair: decision, rating (may be None), list of reasons."""
        with self._lock:
            query = "SELECT pair, decision, rating, reasons FROM last WHERE reviewer = ?"
            rows = self._base.execute(query, (reviewer,)).fetchall()
        return {
            pair: {"decision": decision, "rating": rating, "reasons": reasons.split(";") if reasons else []}
            for pair, decision, rating, reasons in rows
        }

    def export(self) -> Path:
        """Writes all valid decisions as review.csv into the folder; returns its path.

        Raises:
            GenSegFileError: it cannot be written; the older one is intact.
        """
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        path = self.folder / CSV_FILE
        with self._lock, self._base:
            self._base.execute("BEGIN IMMEDIATE")  # no other process writes an older state over a newer one
            writer.writerows(self._base.execute(f"SELECT {', '.join(COLUMNS)} FROM last"))
            write_text_atomically(text.getvalue(), path)
        return path


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Inside the block, what SQLite raises becomes a message."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise GenSegFileError(
            f"{path} cannot be written ({error}); free space, or correct the permissions of the folder"
        ) from error
    except sqlite3.DatabaseError as error:
        raise GenSegError(f"{path} cannot be read ({error}); restore it, or move it away to begin anew") from error
