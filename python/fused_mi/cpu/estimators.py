"""The two estimators on a CPU: one call of the library for each direction, plain torch where the
library says that float64 has no room for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .. import _estimators
from .._mixture import Scoring
from ..reference import estimators as reference
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import variance as _variance
from ._library import operators, path

_PAIRINGS = {
    "all": 0,
    "sub_batch": 1,
    "symmetric": 2,
    "leave_one_out": 3,
}  # as the library has them
_by_blocks = _estimators.Estimators(_variance, _moments, _pairs, _logsumexp)


@functools.cache
def _operator(name: str) -> Callable[..., Any]:
    operator: Callable[..., Any] = getattr(operators(), name).default
    return operator


def jensen(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.jensen`."""
    return _forward("jensen", y, x, mu, stds, scoring)


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
    return _backward("jensen_backward", of_total, of_terms, y, x, mu, stds, scoring, state, wanted)


def logsumexp(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.logsumexp`."""
    if _many(y, x, scoring):
        return _by_blocks.logsumexp(y, x, mu, stds, scoring)
    return _forward("logsumexp_of_pairs", y, x, mu, stds, scoring)


def logsumexp_backward(
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
    """See `Estimators.logsumexp_backward`."""
    arguments = (of_total, of_terms, y, x, mu, stds, scoring, state, wanted)
    if _many(y, x, scoring):
        return _by_blocks.logsumexp_backward(*arguments)
    return _backward("logsumexp_of_pairs_backward", *arguments)


def _many(y: Tensor, x: Tensor, scoring: Scoring) -> bool:
    _, samples, components = _estimators.Sizes.of(scoring, y, x)
    return samples * components > _estimators.PAIRS_AT_ONCE


def _forward(
    name: str, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor, Tensor]:
    mask, component_mask, pairing, own_stds, total, safety_factor = scoring
    loss, terms, state, known = _operator(name)(
        y,
        x,
        mu,
        stds,
        mask,
        component_mask,
        _PAIRINGS[pairing],
        own_stds,
        total,
        safety_factor,
        path(),
    )
    if not known:
        plain = reference.jensen if name == "jensen" else reference.logsumexp
        loss, terms, state = plain(y, x, mu, stds, scoring)
        state[_estimators.HEADER - 1] = 1  # so that the library leaves the gradients as well
    return loss, terms, state


def _backward(
    name: str,
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
    mask, component_mask, pairing, own_stds, total, _ = scoring
    found = _operator(name)(
        of_total,
        of_terms,
        y,
        x,
        mu,
        stds,
        mask,
        component_mask,
        _PAIRINGS[pairing],
        own_stds,
        total,
        state,
        wanted,
        path(),
    )
    if not found and any(wanted):
        plain = (
            reference.jensen_backward if name == "jensen_backward" else reference.logsumexp_backward
        )
        return plain(of_total, of_terms, y, x, mu, stds, scoring, state, wanted)
    gradients = iter(found)
    return [next(gradients) if needed else None for needed in wanted]
