"""The two estimators from the kernels of this backend; the terms of "jensen" in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fused_mi._estimators import (
    HEADER,
    TERMS,
    Estimators,
    jensen_divisor,
    jensen_state,
    kept_mixtures,
)
from fused_mi._mixture import Scoring, mixtures_of
from fused_mi._precision import accumulation_dtype
from torch import Tensor

from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance
from ._launch import launch
from ._terms import jensen_terms_kernel, jensen_upstream_kernel

_estimators = Estimators(_variance, _moments, _pairs, _logsumexp)
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward


def jensen(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.jensen`."""
    inputs = (y, x, mu, stds)
    state = jensen_state(*inputs, scoring)
    mixtures = mixtures_of(scoring, *inputs, _variance.variance)
    moments = state[HEADER:].view(len(mixtures), 4, *y.shape[1:])
    sums, _ = _moments.moments(*inputs, mixtures, moments)
    terms = torch.empty(len(TERMS), dtype=accumulation_dtype(*inputs), device=y.device)
    total = torch.empty((), dtype=terms.dtype, device=y.device)
    first, second = mixtures[0], mixtures[1] if len(mixtures) == 2 else None
    launch(
        jensen_terms_kernel,
        1,
        sums,
        first.component_eps,
        None if second is None else second.component_eps,
        first.sample_eps,
        None if second is None else second.sample_eps,
        state,
        total,
        terms,
        jensen_divisor(scoring, y, x),
        MIXTURES=len(mixtures),
        HEADER=HEADER,
    )
    return total, terms, state


def jensen_backward(
    of_total: Tensor | None,
    of_terms: Tensor | None,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `Estimators.jensen_backward`."""
    inputs = (y, x, mu, stds)
    mixtures = kept_mixtures(state, scoring, *inputs)
    upstream = torch.empty((len(mixtures), 3), dtype=torch.float64, device=y.device)
    launch(
        jensen_upstream_kernel,
        1,
        of_total,
        of_terms,
        upstream,
        0 if of_terms is None else of_terms.stride(0),
        jensen_divisor(scoring, y, x),
        MIXTURES=len(mixtures),
    )
    moments = state[HEADER:].view(len(mixtures), 4, *y.shape[1:])
    return _moments.moments_backward(upstream, *inputs, moments, mixtures, wanted)
