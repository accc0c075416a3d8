"""The gate of `genseg generate`: what the fold's network does not find is drawn again."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunetv2_genseg import cli
from nnunetv2_genseg.trainers.fold_network import FoldNetwork
from nnunetv2_genseg.trainers.gate import Gate
from nnunetv2_genseg.trainers.raw_cases import RawCases
from nnunetv2_genseg.trainers.standalone import Standalone

from .test_judging import prepare  # noqa: F401

PAIRS = 6


def test_pairs_that_fail_are_drawn_again(prepare, capsys):  # noqa: F811
    prepared = prepare("photographs", steps=150)
    own = prepared.results.parents[1] / "GenSegTrainer__nnUNetPlans__2d"
    shutil.copytree(prepared.results.parent, own)
    folder = prepared.pairs.parent

    def generate(out: str, least: float, *options: str) -> dict[str, Any]:
        arguments = ["generate", "910", "2d", "0", "-n", str(PAIRS), "-o", str(folder / out), "-device", "cpu"]
        cli.main([*arguments, "--least-dice", str(least), *options])
        generate.said = capsys.readouterr().out  # type: ignore[attr-defined]
        return json.loads((folder / out / "provenance.json").read_text())

    def mean(pair: dict[str, Any]) -> float:
        return statistics.fmean(pair["gate"]["dice"].values())

    loose = generate("loose", 0.001)
    assert loose["origin"]["gate"] == {"least_dice": 0.001, "redraws": 3, "checkpoint": "checkpoint_final.pth"}
    first = loose["pairs"]
    assert all(set(pair["gate"]["dice"]) <= {"outer", "inner"} for pair in first.values())
    usual = {name: pair for name, pair in first.items() if not pair["gate"]["unusual_intensities"]}
    assert all(pair["gate"] | {"passed": True, "draws": 1} == pair["gate"] for pair in usual.values())
    shutil.copytree(own, own.with_name("nnUNetTrainer__nnUNetPlans__2d"), dirs_exist_ok=True)
    judged = prepared.quality(folder / "loose")["fidelity"]["outer"]["synthetic"]
    assert judged["mean"] == pytest.approx(statistics.fmean(pair["gate"]["dice"]["outer"] for pair in first.values()), abs=0.02)
    least = statistics.median(mean(pair) for pair in first.values())
    strict = generate("strict", least, "--redraws", "2")
    draws = {name: pair["gate"]["draws"] for name, pair in strict["pairs"].items()}
    for name, pair in strict["pairs"].items():
        before = first[name]
        assert draws[name] > 1 or mean(before) >= least
        assert pair["gate"]["passed"] or draws[name] == 3
        if draws[name] == 1:
            assert pair["seed"] == before["seed"] and pair["files"] == before["files"]
    assert {1, *draws.values()} != {1}
    again, failed = sum(n > 1 for n in draws.values()), sum(not pair["gate"]["passed"] for pair in strict["pairs"].values())
    assert f"of {PAIRS} pairs {again} were drawn again, and {failed} of these still fail" in generate.said
    one = folder / "strict" / "imagesTr" / f"{max(draws, key=draws.get)}_0000.png"  # type: ignore[arg-type]
    content = one.read_bytes()
    one.unlink()
    generate("strict", least, "--redraws", "2")
    assert one.read_bytes() == content, "the same draw is chosen"
    with pytest.raises(SystemExit):
        generate("strict", 0.5)
    assert "gate.least_dice" in capsys.readouterr().err


def test_intensities_out_of_the_real_range_fail(prepare):  # noqa: F811
    prepared = prepare("volumes", steps=1)
    settings = Standalone("910", "3d_fullres", "0", Path("."), "nnUNetTrainer", "nnUNetPlans", "cpu")
    network = FoldNetwork(settings)
    names = [f"tr_00{i}" for i in range(1, 5)]
    cases = RawCases(network.plans, network.configuration, network.description, prepared.raw, names)
    gate = Gate(network, 0.001, 1)
    gate.look_at_cases(cases, names)
    image, labels, properties = cases.load("tr_001")
    assert gate.scores(image, labels[0], properties).unusual == []
    inner = np.where(labels == 2, image + 5 * np.ptp(image), image).astype(np.float32)
    scores = gate.scores(inner, labels[0], properties)
    assert scores.unusual == ["MRI: inner"] and not scores.passed
    assert set(gate.scores(image - 10 * np.ptp(image), labels[0], properties).unusual) == {
        "MRI: background",
        "MRI: outer",
        "MRI: inner",
    }
    assert gate.scores(image, labels[0], properties).rank > scores.rank
