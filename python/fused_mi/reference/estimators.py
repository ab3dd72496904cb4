"""The two estimators in plain torch: as operators, and as formulas for every kind of derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Gradients
from .._estimators import Estimators, jensen_terms, logsumexp_terms
from .._mixture import Inputs, Mixture, Scoring, mixtures_of
from . import expanded as _expanded
from . import lean as _lean
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance
from .moments import by_pairs


class _Moments:
    """With few operations in T where that is enough, else with care: then the state is infinite."""

    @staticmethod
    def moments(
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
        mixtures: Sequence[Mixture],
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        inputs = (y, x, mu, stds)
        if state is None or not _lean.serves(y, x, mixtures):
            return _moments.moments(*inputs, mixtures, state)
        sums = _lean.moments(*inputs, mixtures, state)
        if sums is not None:
            return sums, state
        sums, state = _moments.moments(*inputs, mixtures, state)
        return sums, state if by_pairs(state) else state.fill_(math.inf)

    @staticmethod
    def moments_backward(
        upstream: Tensor,
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
        state: Tensor,
        mixtures: Sequence[Mixture],
        wanted: Sequence[bool],
    ) -> Gradients:
        inputs = (y, x, mu, stds)
        # A mark fills the whole state.
        lean = _lean.serves(y, x, mixtures) and math.isfinite(state[0, 0, 0, 0].item())
        backward = _lean.moments_backward if lean else _moments.moments_backward
        return backward(upstream, *inputs, state, mixtures, wanted)


_estimators = Estimators(_lean, _Moments(), _expanded, _logsumexp)
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
