"""Killed at any moment, nothing is lost: `--c` goes on from the newest checkpoint and ends at the same bits."""

from __future__ import annotations

import pytest

from .kills import MOMENTS, SAVE_EVERY, killed_and_continued
from .processes import Training


@pytest.mark.parametrize("moments", MOMENTS, ids=lambda moments: ", then ".join(map(str, moments)))
def test_a_killed_training_goes_on_and_ends_at_the_same_bits(workspace, tmp_path, undisturbed, moments):
    found = killed_and_continued(Training(workspace, tmp_path), moments, undisturbed)
    assert found.killed, [run.exit_status for run in found.runs]
    assert found.changed == []
    assert found.repeated <= SAVE_EVERY * len(moments)
    assert found.left_over == []


def test_another_seed_ends_at_other_bits(workspace, tmp_path, undisturbed):
    """What the test above compares does tell trainings apart."""
    found = killed_and_continued(Training(workspace, tmp_path, length="6,2,1,2,6"), (), undisturbed)
    assert any(name.startswith(".segmenter.network_weights") for name in found.changed)
    assert any(name.startswith(".generator.learned.sampler.sources.redraw.generator.network.") for name in found.changed)
