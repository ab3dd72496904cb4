"""The two estimators in plain torch: as operators, and as formulas for every kind of derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import Gradients
from .._environment import Variable
from .._estimators import Estimators, jensen_terms, logsumexp_terms
from .._mixture import Inputs, Mixture, Scoring, mixtures_of
from . import expanded as _expanded
from . import lean as _lean
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance
from .moments import by_pairs

CAREFUL = Variable("FUSED_MI_CAREFUL")
"""Set to 1: what is as exact as plain torch can be, at several times the time. An oracle."""


def _careful() -> bool:
    return CAREFUL.get() == "1"


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
        if state is None or _careful() or not _lean.serves(y, x, mixtures):
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
        lean = not _careful() and _lean.serves(y, x, mixtures) and state.flatten()[0].isfinite()
        backward = _lean.moments_backward if lean else _moments.moments_backward
        return backward(upstream, *inputs, state, mixtures, wanted)


class _Pairs:
    """By matrix products where float64 has the digits for it, on a CPU."""

    @staticmethod
    def pairs(
        y: Tensor,
        x: Tensor,
        mu: Tensor | None,
        stds: Tensor,
        mixtures: Sequence[Mixture],
        energies: Tensor | None = None,
    ) -> Tensor:
        assert mu is not None
        serves = not _careful() and _expanded.serves(y, x, mu, stds, mixtures)
        forward = _expanded.pairs if serves else _pairs.pairs
        return forward(y, x, mu, stds, mixtures, energies)

    @staticmethod
    def pairs_backward(
        upstream: Tensor,
        y: Tensor,
        x: Tensor,
        mu: Tensor | None,
        stds: Tensor,
        state: None,
        mixtures: Sequence[Mixture],
        wanted: Sequence[bool],
    ) -> Gradients:
        assert mu is not None
        serves = not _careful() and _expanded.serves(y, x, mu, stds, mixtures)
        backward = _expanded.pairs_backward if serves else _pairs.pairs_backward
        return backward(upstream, y, x, mu, stds, None, mixtures, wanted)


_estimators = Estimators(_variance, _Moments(), _Pairs(), _logsumexp)
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
