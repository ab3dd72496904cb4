"""The two estimators in plain torch: as operators, and as formulas for every kind of derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Gradients
from .._estimators import (
    HEADER,
    Estimators,
    Upstream,
    jensen_terms,
    logsumexp_terms,
    moments_in,
)
from .._mixture import Inputs, Scoring, mixtures_of
from . import expanded as _expanded
from . import lean as _lean
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance

_estimators = Estimators(_lean, _moments, _expanded, _logsumexp)
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward


def jensen(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """With few operations in T where that is enough, else with care: then the state is infinite."""
    lean = _lean.serves(inputs, scoring)
    found = _lean.jensen(inputs, scoring) if lean else None
    if found is not None:
        return found
    total, terms, state = _estimators.jensen(inputs, scoring)
    moments = moments_in(state, scoring, inputs)
    if lean and not _moments.by_pairs(moments):
        moments.fill_(math.inf)
    return total, terms, state


def jensen_backward(
    upstream: Upstream,
    inputs: Inputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """See `Estimators.jensen_backward`."""
    # A mark fills all moments.
    lean = _lean.serves(inputs, scoring) and math.isfinite(state[HEADER].item())
    backward = _lean.jensen_backward if lean else _estimators.jensen_backward
    return backward(upstream, inputs, scoring, state, wanted)


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
