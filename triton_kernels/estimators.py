"""The two estimators from the kernels of this backend, without torch between those of "jensen"."""

from __future__ import annotations

from collections.abc import Sequence

from fused_mi._estimators import (
    HEADER,
    TERMS,
    Estimators,
    Upstream,
    jensen_divisor,
    jensen_state,
    kept_mixtures,
    moments_in,
)
from fused_mi._mixture import Inputs, Scoring, mixtures_of
from fused_mi._precision import accumulation_dtype
from torch import Tensor

from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance
from ._moments_launch import Terms

_estimators = Estimators(_variance, _moments, _pairs, _logsumexp)
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward


def jensen(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.jensen`."""
    state = jensen_state(inputs, scoring)
    mixtures = mixtures_of(scoring, inputs, _variance.variance)
    terms = state.new_empty(len(TERMS), dtype=accumulation_dtype(*inputs))
    total = terms.new_empty(())
    of_sums = Terms(state[:HEADER], total, terms, jensen_divisor(scoring, inputs))
    _moments.moments(*inputs, mixtures, moments_in(state, scoring, inputs), of_sums)
    return total, terms, state


def jensen_backward(
    upstream: Upstream,
    inputs: Inputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `Estimators.jensen_backward`."""
    mixtures = kept_mixtures(state, scoring, inputs)
    of_loss = _moments.Upstream(*upstream, jensen_divisor(scoring, inputs))
    moments = moments_in(state, scoring, inputs)
    return _moments.moments_backward(of_loss, *inputs, moments, mixtures, wanted)
