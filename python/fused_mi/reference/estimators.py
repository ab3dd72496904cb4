"""The two estimators in plain torch: as operators, and as formulas for every kind of derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from .._estimators import Estimators, jensen_terms, logsumexp_terms
from .._mixture import Inputs, Scoring, mixtures_of
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance

_estimators = Estimators(_variance, _moments, _pairs, _logsumexp)
jensen, jensen_backward = _estimators.jensen, _estimators.jensen_backward
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward


def jensen_formula(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Total and terms as `jensen` has them; differentiable as often as wanted, in any mode."""
    mixtures = mixtures_of(scoring, inputs, _variance.variance)
    sums = torch.stack([_moments.sums(mixture, *inputs) for mixture in mixtures])
    return jensen_terms(sums, scoring, inputs)


def logsumexp_formula(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Total and terms as `logsumexp` has them; differentiable as often as wanted, in any mode."""
    mixtures = mixtures_of(scoring, inputs, _variance.variance)
    energies = torch.stack([_pairs.energies(mixture, *inputs) for mixture in mixtures])
    own = 0 if mixtures[0].exclude_diagonal else None
    terms, _ = _logsumexp.logsumexp(energies, own)
    return logsumexp_terms(terms.mean(0), scoring, inputs)
