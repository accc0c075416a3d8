"""Curves and the page of a report: what they hold, that nothing is taken for HTML, and how large the page may be."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from nnunetv2_genseg.plots.curves import COLOURS, Curves
from nnunetv2_genseg.plots.gallery import Detail, strip
from nnunetv2_genseg.plots.report import LARGEST, Content, Item, View, page_of

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>'\"&"


def content(**changes: Any) -> Content:
    picture = strip(np.eye(8)[None, None].repeat(3, 1), np.ones((3, 8, 8), int), (1, 1), np.array([[0.0], [1.0]]), Detail(16, 3))
    whole: dict[str, Any] = {
        "title": HOSTILE,
        "facts": {HOSTILE: HOSTILE},
        "settings": {HOSTILE: HOSTILE},
        "curves": [Curves(HOSTILE, {HOSTILE: [(0, 1.0), (1, 0.5)], "l1": [(1, 2.0)]})],
        "views": [View(HOSTILE, HOSTILE, [Item(HOSTILE, HOSTILE, HOSTILE)])],
        "pictures": {f"case {HOSTILE}": picture, f"pair {HOSTILE}": picture},
        "labels": [(HOSTILE, "rgb(0 229 255)")],
        "of_pairs": [HOSTILE],
        "tables": [(HOSTILE, (HOSTILE, "b"), [(HOSTILE, "1,5")])],
        "of_quality": [HOSTILE],
        "files": {"settings.json": '{"seed": 0}', f"{HOSTILE}.csv": HOSTILE},
    }
    return Content(**whole | changes)


def downloads(page: str) -> list[str]:
    return [base64.b64decode(found).decode() for found in re.findall(r'href="data:[a-z/]+;base64,([^"]*)"', page)]


def test_names_are_never_taken_for_html():
    page = page_of(content())
    assert "<img src" not in page and "<script>document" not in page
    assert page.count("<script") == page.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert data["views"][0]["items"] == [{"pair": HOSTILE, "case": HOSTILE, "caption": HOSTILE}]
    assert set(data["pictures"]) == {f"case {HOSTILE}", f"pair {HOSTILE}"}


def test_nothing_is_fetched_and_everything_can_be_downloaded():
    page = page_of(content())
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:|//|file:)""", page.replace('xlink:href="#', ""))
    assert "default-src 'none'" in page
    assert downloads(page) == [
        '{"seed": 0}',
        HOSTILE,
        'epoch,"{}",l1\n0,1,\n1,0.5,2\n'.format(HOSTILE.replace('"', '""')),
        '"{0}",b\n"{0}","1,5"\n'.format(HOSTILE.replace('"', '""')),
    ]


def test_a_page_that_is_too_large_is_refused():
    with pytest.raises(RuntimeError, match="more than 20000000"):
        page_of(content(of_pairs=["x" * LARGEST]))


def test_logged_values_are_explained():
    page = page_of(content())
    assert "mean distance of the drawn to the real image" in page


def shapes(svg: str) -> list[str]:
    return re.findall(r"stroke: var\(--curve-(\d)\)", svg)


def test_curves_take_their_colours_from_the_page():
    lines = {str(k): [(0.0, k), (1.0, k + 1), (2.0, float("nan"))] for k in range(COLOURS + 1)}
    curves = Curves("several <lines> & more", lines)
    svg = curves.as_svg()
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == "several <lines> & more" and root.attrib["role"] == "img"
    assert set(shapes(svg)) == set("01234567") and "#0102" not in svg
    assert curves.legend[0] == ("0", "var(--curve-0)", "") and curves.legend[COLOURS][1] == "var(--curve-0)"
    assert "epoch" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")], "text stays text"


def test_the_axis_has_whole_epochs():
    texts = ElementTree.fromstring(Curves("early", {"a": [(2, 0.5)]}).as_svg()).iter("{http://www.w3.org/2000/svg}text")
    assert "2" in (found := [text.text for text in texts]) and not any(text.startswith(("1.", "2.")) for text in found)


def test_panels_share_no_names():
    first, second = (set(re.findall(r'id="([^"]*)"', Curves(title, {"a": [(0, 1.0)]}).as_svg())) for title in ("one", "two"))
    assert first and not first & second


def test_a_logarithmic_axis_leaves_zeros_out():
    svg = Curves("norm", {"norm": [(0, 0.0), (1, 1e-3), (2, 1e3)]}, logarithmic=True).as_svg()
    assert "nan" not in svg and "inf" not in svg
