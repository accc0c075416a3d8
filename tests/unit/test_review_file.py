import csv

import pytest

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.trainers.review_file import read_review

PAIRS = ["synthetic_00000", "synthetic_00001", "synthetic_00002"]
HEAD = "pair,reviewer,decision,rating,reasons,time\n"
ROW = "synthetic_00001,anna,accept,4,,2026-01-01T10:00:00\n"


def written(folder, text, encoding="utf-8"):
    path = folder / "review.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_decisions_of_several_reviewers_are_read_with_everything_that_csv_allows(tmp_path):
    rows = [
        ("synthetic_00002", "Bo, M. D.", "reject", "1", "texture;boundary", "t"),
        ("synthetic_00001", "Bo, M. D.", "reject", "", 'says "blurred"\nand dark', "t"),
        ("synthetic_00001", "Ärztin", "accept", "5", "", "t"),
        ("synthetic_00001", "third", "accept", "", "", ""),
        ("synthetic_00000", "third", "", "3", "", ""),
    ]
    path = tmp_path / "review.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEAD.strip().split(","), *rows])
    review = read_review(path, PAIRS)
    assert review.decisions == {
        "synthetic_00001": {"Bo, M. D.": False, "Ärztin": True, "third": True},
        "synthetic_00002": {"Bo, M. D.": False},
    }
    assert list(review.decisions) == sorted(review.decisions)
    assert review.reviewers == ["Bo, M. D.", "third", "Ärztin"]
    assert review.acceptance("synthetic_00001") == pytest.approx(2 / 3)
    assert review.acceptance("synthetic_00002") == 0


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (HEAD + ROW, "utf-8-sig"),
        (HEAD + ROW.strip(), "utf-8"),
        ((HEAD + ROW).replace("\n", "\r\n") + "\r\n", "utf-8"),
        ("decision,pair,reviewer\naccept, synthetic_00001 ,anna\n", "utf-8"),
    ],
    ids=["byte order mark", "no end of line", "of Windows, with an empty line", "other order, no other columns"],
)
def test_other_forms_of_the_same_table(tmp_path, text, encoding):
    assert read_review(written(tmp_path, text, encoding), PAIRS).decisions == {"synthetic_00001": {"anna": True}}


BAD = {
    "nothing": ("", "lacks the columns pair, reviewer, decision, found nothing"),
    "no header": (ROW, "lacks the columns pair, reviewer, decision, found synthetic_00001, anna"),
    "a column is missing": ("pair,reviewer,rating\nsynthetic_00001,anna,3\n", "lacks the columns decision, found pair"),
    "semicolons": ((HEAD + ROW).replace(",", ";"), "separated by commas"),
    "header alone": (HEAD, "holds no decision; review the pairs"),
    "ratings alone": (HEAD + "synthetic_00001,anna,,4,,t\n", "holds no decision; review the pairs"),
    "unknown pair": (HEAD + ROW.replace("00001", "00007"), "line 2: no pair is named 'synthetic_00007'"),
    "unknown pair without decision": (HEAD + ",,,,,\n", "line 2: no pair is named ''"),
    "unknown decision": (HEAD + ROW.replace("accept", "yes"), "decision must be accept, reject or empty, found 'yes'"),
    "twice": (HEAD + ROW + ROW.replace("accept", "reject"), "line 3: 'anna' has decided on synthetic_00001 before"),
    "too few values": (HEAD + ROW + "synthetic_00002,anna\n", "line 3: 2 values for 6 columns"),
    "too many values": (HEAD + ROW.strip() + ",more\n", "line 2: 7 values for 6 columns"),
    "a field without end": (HEAD + ROW + 'synthetic_00002,"anna' + "x" * 200_000, "not CSV"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=list(BAD))
def test_what_is_no_review_is_refused(tmp_path, text, message):
    with pytest.raises(GenSegError, match=message) as refused:
        read_review(written(tmp_path, text), PAIRS)
    assert "review.csv" in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_refused(tmp_path, encoding):
    with pytest.raises(GenSegError, match="not a text file in UTF-8"):
        read_review(written(tmp_path, HEAD + ROW.replace("anna", "Ärztin"), encoding), PAIRS)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(GenSegError, match=r"review\.file: .* is not a file; name the review\.csv"):
            read_review(path, PAIRS)
