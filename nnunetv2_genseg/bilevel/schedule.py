"""What happens at which moment of a training."""

from __future__ import annotations

from dataclasses import dataclass

from nnunetv2_genseg.config import GenSegConfig

UNLABELLED_RAMP = 0.2
"""Fraction of the training after the warm-up in which the share of unlabelled images rises: the first labels are the worst."""


@dataclass(frozen=True)
class Stage:
    """What happens at a moment of the training."""

    share: float
    """Probability of a patch to become synthetic; 0 if the segmentation network sees real pairs only."""
    feedback: bool
    """Whether feedback steps are due."""
    tail: bool
    """Whether the real-only tail has begun."""
    unlabelled: float = 0.0
    """Probability of a synthetic patch to be made from an unlabelled image."""


def stage_at(progress: float, config: GenSegConfig) -> Stage:
    """The stage after the fraction `progress` in [0, 1) of all iterations."""
    schedule = config.schedule
    tail = progress >= 1 - schedule.tail
    if tail or progress < schedule.warmup:
        return Stage(0.0, False, tail)
    risen = (progress - schedule.warmup) / schedule.ramp if schedule.ramp else 1.0
    share = config.mixing.share * min(1.0, risen)
    start, end = config.feedback_span
    feedback = config.feedback.enabled and share > 0 and start <= progress < end
    unlabelled = config.unlabelled.share * min(1.0, (progress - schedule.warmup) / UNLABELLED_RAMP)
    return Stage(share, feedback, False, unlabelled if config.unlabelled.images else 0.0)


def rotation_at(progress: float, config: GenSegConfig) -> int | None:
    """Which part of the cases is held out after the fraction `progress` of all iterations; None if all of them train."""
    feedback, (start, end) = config.feedback, config.feedback_span
    before = feedback.parts > 1 and progress < start
    if not feedback.enabled or before or progress >= end:
        return None
    elapsed = (progress - start) / (end - start)
    return min(max(0, int(elapsed * feedback.parts + 1e-6)), feedback.parts - 1)
