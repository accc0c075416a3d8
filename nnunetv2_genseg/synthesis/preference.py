"""Which pairs reviewers prefer: a logistic regression on what can be seen in a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from torch import Tensor

from nnunetv2_genseg.synthesis.pair_features import pair_features

FEWEST = 10
"""Fewest accepted and fewest rejected pairs that are learned from."""
FEWEST_CASES = 2
"""Fewest real cases that these were made from."""
FOLDS = 5
"""Of the cross-validation, at most."""
CHANCE = 3.0
"""Standard deviations of the area under the ROC curve of decisions made at random, by which the cross-validated one must be above
0.5. Cross-validation makes that area vary by about a fifth more than its formula tells."""
LEAST = 0.1
"""Least probability of a pair to be kept. So no pair is ruled out, and if the generator moves away from all that reviewers saw,
the training still has pairs."""


@dataclass(frozen=True)
class Preference:
    """Keeps pairs as reviewers would, from their voxels alone. Nothing waits for the device."""

    foreground: int
    """Number of foreground classes."""
    centre: Tensor
    """(features,) mean of each feature in real patches."""
    scale: Tensor
    """(features,) its standard deviation."""
    weights: Tensor
    """(features,) of the standardised features."""
    bias: Tensor
    """0-d."""
    reference: Tensor
    """0-d mean probability of accepted pairs to be accepted."""

    def probability(self, image: Tensor, labels: Tensor) -> Tensor:
        """(B,) probability that a pair is accepted; (B, C, *spatial) images and (B, *spatial) int64 class maps."""
        seen = standardised(pair_features(image, labels, self.foreground), self.centre, self.scale)
        return (seen @ self.weights + self.bias).sigmoid()

    def keeps(self, image: Tensor, labels: Tensor, rng: torch.Generator) -> Tensor:
        """(B,) booleans: which pairs the training keeps, drawn with their probabilities relative to that of accepted ones."""
        wanted = (self.probability(image, labels) / self.reference).clamp(LEAST, 1)
        return torch.rand(len(image), generator=rng, device=rng.device) < wanted

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_state(state: dict[str, Any], device: torch.device) -> Preference:
        """The inverse of `state_dict`."""
        there: Any = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in state.items()}
        return Preference(**there)


@dataclass(frozen=True)
class Evidence:
    """Whether the decisions can be told from the pairs."""

    accepted: int
    """Pairs that more than half of their reviewers accept."""
    rejected: int
    """Pairs that more than half of them reject."""
    auc: float | None
    """Area under the ROC curve, cross-validated over the cases that pairs were made from; None for too few pairs or cases."""

    @property
    def needed(self) -> float:
        """The area that decisions made at random hardly reach: from the variance of the Mann-Whitney statistic."""
        variance = (self.accepted + self.rejected + 1) / (12 * self.accepted * self.rejected)
        return 0.5 + CHANCE * math.sqrt(variance)

    @property
    def holds(self) -> bool:
        """Whether they can be told better than by chance."""
        return self.auc is not None and self.auc > self.needed


def standardised(features: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """(..., features) in standard deviations of real patches; what a patch does not show is as in the mean of them."""
    return ((features - centre) / scale).nan_to_num(nan=0.0)


def learn(
    reviewed: Tensor, acceptance: Tensor, cases: Sequence[str], real: Tensor, foreground: int
) -> tuple[Preference | None, Evidence]:
    """Learns from reviewed pairs; equal arguments give equal results.

    Args:
        reviewed: (pairs, patches, features) of patches of each pair; see `pair_features`.
        acceptance: (pairs,) fraction of its reviewers that accept a pair.
        cases: (pairs,) the real case that each was made from.
        real: (patches, features) of real patches, by which features are standardised.
        foreground: number of foreground classes.

    Returns:
        What was learned, on the device of `reviewed`, and what it rests on; None if the decisions cannot be told.
    """
    centre, scale = _moments(real)
    seen = standardised(reviewed, centre, scale).double().cpu().numpy()
    wanted = acceptance.double().cpu().numpy()
    found = Evidence(int((wanted > 0.5).sum()), int((wanted < 0.5).sum()), None)
    if min(found.accepted, found.rejected) < FEWEST or len(set(cases)) < FEWEST_CASES:
        return None, found
    found = Evidence(found.accepted, found.rejected, _cross_validated(seen, wanted, cases))
    if not found.holds:
        return None, found
    model = _fitted(seen, wanted)
    probabilities = model.predict_proba(seen.reshape(-1, seen.shape[2]))[:, 1].reshape(seen.shape[:2]).mean(axis=1)
    weights, bias, reference = (
        torch.as_tensor(values, dtype=torch.float32, device=reviewed.device)
        for values in (model.coef_[0], model.intercept_[0], np.average(probabilities, weights=wanted))
    )
    return Preference(foreground, centre, scale, weights, bias, reference), found


def _moments(real: Tensor) -> tuple[Tensor, Tensor]:
    """(features,) mean and standard deviation over the patches that show a feature; 0 and 1 for one that none shows."""
    centre = real.nanmean(dim=0)
    scale = (real - centre).square().nanmean(dim=0).sqrt()
    varies = scale > 1e-6 * centre.abs().clamp(min=1)
    return centre.nan_to_num(nan=0.0), torch.where(varies, scale, 1.0)


def _fitted(seen: Any, wanted: Any) -> Any:
    """The regression of (pairs, patches, features) on (pairs,) fractions; all patches of a pair together count once.

    Its weights are kept small as scikit-learn does it by default, which suits features of unit variance.
    """
    patches = seen.shape[1]
    flat = seen.reshape(-1, seen.shape[2])
    share = np.repeat(wanted, patches)
    weight = np.concatenate([share, 1 - share]) / patches
    answer = np.repeat([1, 0], len(flat))
    counted = weight > 0
    model = LogisticRegression(max_iter=1000)
    return model.fit(np.concatenate([flat, flat])[counted], answer[counted], sample_weight=weight[counted])


def _cross_validated(seen: Any, wanted: Any, cases: Sequence[str]) -> float:
    """Area under the ROC curve of pairs of cases that the regression did not learn from; undecided pairs are left out of it.

    Pairs of one case are alike: learned from and tested on the same case, a liking for some cases would pass for one for pairs.
    """
    score = np.zeros(len(wanted))
    for learned, tested in GroupKFold(min(FOLDS, len(set(cases)))).split(seen, groups=cases):
        if 0 < wanted[learned].mean() < 1:  # else there is one kind alone to learn from
            logits = _fitted(seen[learned], wanted[learned]).decision_function(seen[tested].reshape(-1, seen.shape[2]))
            score[tested] = logits.reshape(len(tested), -1).mean(axis=1)
    decided = wanted != 0.5
    return float(roc_auc_score(wanted[decided] > 0.5, score[decided]))
