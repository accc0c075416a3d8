"""`genseg review`: what its server answers, and what it does not."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from nnunetv2_genseg import cli
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.plots.slices import outline_picture
from nnunetv2_genseg.trainers.reviewed_pairs import ReviewedPairs
from tests.review_server import served
from tests.written_pairs import write_pairs

NAMES = [f"synthetic_{k:05d}" for k in range(4)]
DAMAGED = NAMES[3]
TRAVERSALS = (
    "../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/app.py",
    "pairs/..%2f..%2fprovenance.json",
    "pairs/../provenance.json",
    "pairs/%2e%2e%2fdataset/synthetic/0.png?channel=0&low=0&high=1",
    "provenance.json",
    "review.sqlite",
    "//etc/passwd",
    "pairs/tr_000",
)


@dataclass(frozen=True)
class Client:
    """Asks the server; paths are sent as they are."""

    folder: Path
    port: int
    token: str

    def raw(self, path: str, content: Any = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        body = None if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return found

    def ask(self, path: str, content: Any = None) -> tuple[int, Any]:
        status, body, _ = self.raw(f"/{self.token}/{path}", content)
        return status, json.loads(body)

    def picture(self, path: str) -> np.ndarray:
        status, body, headers = self.raw(f"/{self.token}/{path}")
        assert (status, headers["content-type"]) == (200, "image/png"), body
        picture = Image.open(io.BytesIO(body))
        return np.asarray(picture.convert("RGBA") if "outline" in path else picture)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("review")
    pairs = write_pairs(folder, folder / "raw", NAMES, dims=3, extent=24)
    (pairs / "imagesTr" / f"{DAMAGED}_0000.nii.gz").write_bytes(b"no image")
    with served(pairs, folder / "raw") as server:
        parts = urlsplit(server.address)
        assert parts.hostname == "127.0.0.1"
        yield Client(folder, int(parts.port or 0), parts.path.strip("/"))
    assert (server.process.returncode, server.errors.read_text()) == (0, ""), "Ctrl+C ends it, and nothing was wrong"


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_pictures_are_the_slices_of_the_files(client):
    status, about = client.ask(f"pairs/{NAMES[1]}")
    assert status == 200 and about["channels"] == ["MRI"]
    real = voxels(client.folder / "raw" / "Dataset931_Phantom3D" / "imagesTr" / "tr_001_0000.nii.gz")
    synthetic = voxels(client.folder / "pairs" / "imagesTr" / f"{NAMES[1]}_0000.nii.gz")
    labels = voxels(client.folder / "pairs" / "labelsTr" / f"{NAMES[1]}.nii.gz")
    assert about["windows"][0] == pytest.approx(np.percentile(real, [0.5, 99.5])), "the window of the real case"
    assert about["synthetic"]["slices"] == len(synthetic)
    assert about["synthetic"]["fullest"] == (labels > 0).sum(axis=(1, 2)).argmax()
    assert about["synthetic"]["aspect"] == pytest.approx(labels.shape[2] / labels.shape[1])
    for part, image in (("synthetic", synthetic), ("real", real)):
        for k in (0, 5):
            found = client.picture(f"pairs/{NAMES[1]}/{part}/{k}.png?channel=0&low=0.2&high=0.7")
            assert np.abs(found - 255 * np.clip((image[k] - 0.2) / 0.5, 0, 1)).max() <= 0.51
    k = about["synthetic"]["fullest"]
    outline = client.picture(f"pairs/{NAMES[1]}/synthetic/{k}-outline.png")
    expected = outline_picture(labels[k : k + 1], (outline.shape[1], outline.shape[0]))
    assert outline.any() and np.array_equal(outline, np.asarray(Image.open(io.BytesIO(expected)).convert("RGBA")))
    assert outline.shape[1] / outline.shape[0] == pytest.approx(about["synthetic"]["aspect"], rel=0.01)


@pytest.mark.parametrize("path", ["", "pairs?reviewer=A", "review.csv", f"pairs/{NAMES[0]}"])
def test_nothing_is_answered_without_the_token(client, path):
    own = client.raw(f"/{client.token}/{path}")
    for token in ("", client.token[:-1], client.token + "x", "ä", client.token.swapcase()):
        status, body, headers = client.raw(f"/{quote(token)}/{path}")
        assert (status, json.loads(body)) == (404, {"message": "not found"})
        assert headers["content-security-policy"] == own[2]["content-security-policy"]
        assert client.raw(f"/{quote(token)}/decisions?reviewer=C", {"pair": NAMES[0], "decision": "accept"})[0] == 404
    assert own[0] == 200
    assert client.ask("pairs?reviewer=C")[1]["pairs"][0]["verdict"] is None


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_file_but_those_of_the_listing_can_be_read(client, path):
    status, body, _ = client.raw(f"/{client.token}/{path}")
    assert status == 404, body
    assert b"root:" not in body and b'"format"' not in body and b"SQLite" not in body


def test_another_name_of_the_machine_is_refused(client):
    """A page of another origin that lets its name point at 127.0.0.1 (DNS rebinding)."""
    assert client.raw(f"/{client.token}/", Host=f"evil.example:{client.port}")[0] == 400
    assert client.raw(f"/{client.token}/", Host=f"localhost:{client.port}")[0] == 200


def test_names_of_the_machine_are_as_browsers_send_them(monkeypatch):
    from nnunetv2_genseg.review.serving import names_of

    monkeypatch.setattr("socket.gethostname", lambda: "Reading-Room")
    assert {"reading-room", "lab-pc.example", "127.0.0.1"} <= set(names_of("Lab-PC.example"))


def test_every_answer_forbids_foreign_content_and_copies(client):
    for path in ("", "review.js", "pairs?reviewer=A", "none"):
        _, _, headers = client.raw(f"/{client.token}/{path}")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_a_decision_is_on_the_disk_when_it_is_acknowledged_and_the_table_follows(client):
    status, answer = client.ask("decisions?reviewer=Bo", {"pair": NAMES[0], "decision": "reject", "reasons": ["texture"]})
    with sqlite3.connect(client.folder / "pairs" / "review.sqlite") as base:
        assert base.execute("SELECT pair, reasons FROM last WHERE reviewer = 'Bo'").fetchall() == [(NAMES[0], "texture")]
    assert (status, answer["reasons"]) == (200, ["texture"])
    table = client.folder / "pairs" / "review.csv"
    wait_for(lambda: "Bo" in table.read_text())
    assert client.raw(f"/{client.token}/review.csv")[1] == table.read_bytes()
    found = {pair["name"]: pair["verdict"] for pair in client.ask("pairs?reviewer=Bo")[1]["pairs"]}
    assert found[NAMES[0]] == answer and found[NAMES[1]] is None
    assert all(pair["verdict"] is None for pair in client.ask("pairs?reviewer=Else")[1]["pairs"])
    assert client.ask("undo?reviewer=Bo", {})[1] == {"pair": NAMES[0], "verdict": None}
    wait_for(lambda: "Bo" not in table.read_text())
    assert client.ask("undo?reviewer=Bo", {})[1] == {"pair": None, "verdict": None}


def wait_for(happened) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("reviewer", "content", "status"),
    [
        ("", {"pair": NAMES[0], "decision": "accept"}, 400),
        ("%3DHYPERLINK(1)", {"pair": NAMES[0], "decision": "accept"}, 400),
        ("A%0AB", {"pair": NAMES[0], "decision": "accept"}, 400),
        ("x" * 101, {"pair": NAMES[0], "decision": "accept"}, 400),
        ("%D1%84%3B%3D1", {"pair": NAMES[0], "decision": "accept"}, 400),
        ("A", b"{", 400),
        ("A", b"[" * 10000, 400),
        ("A", b" " * 2**15, 413),
        ("A", b"\xff", 400),
        ("A", [1], 400),
        ("A", {"decision": "accept"}, 400),
        ("A", {"pair": "tr_000", "decision": "accept"}, 404),
        ("A", {"pair": [1], "decision": "accept"}, 404),
        ("A", {"pair": NAMES[0], "decision": "perhaps"}, 422),
        ("A", {"pair": NAMES[0], "decision": "accept", "rating": 9}, 422),
    ],
)
def test_a_request_that_is_no_decision_is_refused_with_a_message(client, reviewer, content, status):
    found, answer = client.ask(f"decisions?reviewer={reviewer}", content)
    assert found == status and answer["message"]
    assert all(pair["verdict"] is None for pair in client.ask("pairs?reviewer=A")[1]["pairs"])


@pytest.mark.parametrize("name", ["Åsa", "अनिता", "நிலா", "李娜", "O’Neil-Smith, MD", "m_2@clinic.org"])
def test_reviewers_have_names_of_any_script_in_one_form(client, name):
    composed, decomposed = (quote(unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))
    assert client.ask(f"decisions?reviewer={decomposed}", {"pair": NAMES[2], "decision": "accept"})[0] == 200
    assert client.ask(f"pairs?reviewer={composed}")[1]["pairs"][2]["verdict"]["decision"] == "accept"


@pytest.mark.parametrize("query", ["", "?channel=0&low=0", "?channel=3&low=0&high=1", "?channel=0&low=nan&high=1", "?channel=x"])
def test_a_picture_of_nothing_is_refused(client, query):
    assert client.ask(f"pairs/{NAMES[0]}/synthetic/0.png{query}")[0] == 400
    assert client.ask(f"pairs/{NAMES[0]}/synthetic/999.png?channel=0&low=0&high=1")[0] == 404
    assert client.ask(f"pairs/{NAMES[0]}/other/0.png?channel=0&low=0&high=1")[0] == 404


def test_a_damaged_pair_is_told_and_the_others_are_shown(client):
    status, answer = client.ask(f"pairs/{DAMAGED}")
    assert status == 422 and f"{DAMAGED} cannot be read" in answer["message"]
    assert client.ask(f"pairs/{NAMES[2]}")[0] == 200


def test_a_port_that_is_taken_is_told(client, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(client.folder / "raw"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["review", str(client.folder / "pairs"), "--port", str(client.port)])
    assert ended.value.code == 2
    assert f"cannot listen at 127.0.0.1, port {client.port} (Address already in use)" in capsys.readouterr().err


def test_the_table_is_exported_without_a_server(tmp_path, capsys):
    pairs = write_pairs(tmp_path, tmp_path / "raw", NAMES)
    with pytest.raises(SystemExit):
        cli.main(["review", str(pairs), "--export"])
    assert "holds no decisions; judge pairs first" in capsys.readouterr().err
    from nnunetv2_genseg.review.decisions import Decisions, Verdict
    from nnunetv2_genseg.trainers.pair_folder import PairFolder

    Decisions(pairs, PairFolder.read(pairs).origin).record("Bo", NAMES[1], Verdict(decision="accept", rating=5))
    cli.main(["review", str(pairs), "--export"])
    with open(pairs / "review.csv", newline="") as file:
        assert [(row["pair"], row["rating"]) for row in csv.DictReader(file)] == [(NAMES[1], "5")]


@pytest.mark.parametrize("module", ["starlette", "uvicorn"])
def test_the_missing_extra_is_named(module, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["review", str(tmp_path)])
    assert ended.value.code == 2
    assert f'needs {module}; run: pip install "nnunetv2-genseg[review]"' in capsys.readouterr().err


def test_photographs_are_in_colour_and_without_the_dataset_there_is_no_real_case(tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path, tmp_path / "raw", NAMES)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    found = ReviewedPairs(pairs)
    case = found.case(NAMES[0], real=False)
    assert case.colour and case.window.tolist() == [[0] * 3, [255] * 3]
    assert np.array_equal(case.image[:, 0].transpose(1, 2, 0), Image.open(pairs / "imagesTr" / f"{NAMES[0]}_0000.png"))
    with pytest.raises(KeyError):
        found.case(NAMES[0], real=True)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path, monkeypatch):
    pairs = write_pairs(tmp_path, tmp_path / "raw", NAMES)
    file = pairs / "imagesTr" / f"{NAMES[1]}_0000.png"
    file.rename(tmp_path / "secret.png")
    file.symlink_to(tmp_path / "secret.png")
    with pytest.raises(GenSegError, match="is not in"):
        ReviewedPairs(pairs).case(NAMES[1], real=False)
