"""The decisions of reviewers on the pairs of a folder, as a table in it."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.config.reading import read_text
from nnunetv2_genseg.trainers.preflight import first_of

COLUMNS = ("pair", "reviewer", "decision")
"""That are read; there may be others."""
ACCEPTS = {"accept": True, "reject": False}
DECIDE = "review the pairs (genseg review), or leave review.file out"


@dataclass(frozen=True)
class Review:
    """What reviewers decided."""

    decisions: dict[str, dict[str, bool]]
    """By pair and reviewer: whether it is accepted."""

    @property
    def reviewers(self) -> list[str]:
        """All who decided, sorted."""
        return sorted({name for of_pair in self.decisions.values() for name in of_pair})

    def acceptance(self, pair: str) -> float:
        """The fraction of a pair's reviewers that accept it."""
        decided = self.decisions[pair].values()
        return sum(decided) / len(decided)


def require_review(path: Path) -> None:
    """Raises GenSegError if there is no such file."""
    if not path.is_file():
        raise GenSegError(f"review.file: {path} is not a file; name the review.csv of a folder of pairs, or leave it out")


def read_review(path: Path, pairs: Collection[str]) -> Review:
    """Reads the table: CSV in UTF-8 with a header. A row without a decision, such as of a rating alone, is left out.

    Args:
        path: the file.
        pairs: names of the pairs that may be judged.

    Raises:
        GenSegError: it is not such a table, names other pairs, holds two decisions of one reviewer on a pair, or none at all.
    """
    require_review(path)
    found: dict[str, dict[str, bool]] = {}
    for line, (pair, reviewer, decision) in _rows(path):
        if pair not in pairs:
            known = first_of(sorted(pairs))
            raise GenSegError(
                f"{path}, line {line}: no pair is named {pair!r}; those of this folder are {known}; correct the line"
            )
        if decision == "":
            continue
        if decision not in ACCEPTS:
            raise GenSegError(f"{path}, line {line}: decision must be accept, reject or empty, found {decision!r}; correct it")
        of_pair = found.setdefault(pair, {})
        if reviewer in of_pair:
            raise GenSegError(f"{path}, line {line}: {reviewer!r} has decided on {pair} before; keep one of the two lines")
        of_pair[reviewer] = ACCEPTS[decision]
    if not found:
        raise GenSegError(f"{path} holds no decision; {DECIDE}")
    return Review({pair: found[pair] for pair in sorted(found)})


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Number and the values of `COLUMNS` of every line of the table."""
    reader = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""))
    try:
        head = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in head]
        if missing:
            raise GenSegError(
                f"{path} lacks the columns {', '.join(missing)}, found {', '.join(head) or 'nothing'}; the first line names the "
                "columns, separated by commas"
            )
        places = [head.index(name) for name in COLUMNS]
        for row in reader:
            if len(row) not in (0, len(head)):
                raise GenSegError(f"{path}, line {reader.line_num}: {len(row)} values for {len(head)} columns; correct the line")
            if row:
                yield reader.line_num, tuple(row[place].strip() for place in places)
    except csv.Error as error:
        raise GenSegError(f"{path}, line {reader.line_num}: not CSV ({error}); correct or export it again") from None
