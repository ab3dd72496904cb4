"""The two estimators on a CPU: one call of the library for each direction, plain torch where the
library says that float64 has no room for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _estimators
from .._building_blocks import BuildingBlocks, Gradients
from .._estimators import HEADER, log_weights, logsumexp_parts
from .._mixture import AnyInputs, Scoring, Sizes
from .._terms import Upstream, logsumexp_terms_of_samples, upstream_of_samples
from ..reference import estimators as reference
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import parts as _parts
from . import variance as _variance
from ._library import operators, path

_PAIRINGS = {  # as the library has them
    "all": 0,
    "sub_batch": 1,
    "symmetric": 2,
    "leave_one_out": 3,
}
building_blocks = BuildingBlocks(_variance, _moments, _pairs, _logsumexp, _parts)
_by_blocks = _estimators.Estimators(building_blocks)


class _Estimator:
    """One of them: the operators of the library, and plain torch where these know no answer."""

    def __init__(
        self,
        name: str,
        plain: Callable[..., Any],
        plain_backward: Callable[..., Any],
        keeps: Callable[[AnyInputs, Scoring], bool] | None = None,  # whether the state has energies
    ) -> None:
        self._name, self._plain, self._plain_backward = name, plain, plain_backward
        self._keeps = keeps

    @functools.cached_property
    def _operators(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        library = operators()
        return (
            getattr(library, self._name).default,
            getattr(library, f"{self._name}_backward").default,
        )

    def forward(self, inputs: AnyInputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
        loss, terms, state, known = self._operators[0](
            *inputs[:4],
            scoring.sample_mask,
            scoring.component_mask,
            _PAIRINGS[scoring.pairing],
            scoring.own_stds,
            scoring.reduction == "sum",
            scoring.safety_factor,
            *(() if self._keeps is None else _labels(inputs, scoring)),
            *(() if self._keeps is None else (self._keeps(inputs, scoring),)),
            path(),
        )
        if not known:
            loss, terms, state = self._plain(inputs, scoring)
            state[HEADER - 1] = 1  # so that the library leaves the gradients as well
        elif scoring.reduction == "none":
            rows, _ = logsumexp_parts(state, scoring, inputs)
            return *logsumexp_terms_of_samples(rows, scoring, inputs), state
        return loss, terms, state

    def backward(
        self,
        upstream: Upstream,
        inputs: AnyInputs,
        scoring: Scoring,
        state: Tensor,
        wanted: Sequence[bool],
    ) -> Gradients:
        of_samples = None
        if scoring.reduction == "none":
            of_samples = upstream_of_samples(upstream, scoring, inputs).contiguous()
        found = self._operators[1](
            *upstream,
            *(() if self._keeps is None else (of_samples,)),
            *inputs[:4],
            scoring.sample_mask,
            scoring.component_mask,
            _PAIRINGS[scoring.pairing],
            scoring.own_stds,
            scoring.reduction == "sum",
            *(() if self._keeps is None else _labels(inputs, scoring)),
            state,
            wanted,
            path(),
        )
        if not found and any(wanted):
            plain: Gradients = self._plain_backward(upstream, inputs, scoring, state, wanted)
            return plain
        gradients = iter(found)
        of_inputs = [next(gradients) if needed else None for needed in wanted]
        return [g if g is None else g.to(t.dtype) for g, t in zip(of_inputs, inputs, strict=True)]


def _labels(inputs: AnyInputs, scoring: Scoring) -> tuple[Any, ...]:
    """Weights of the components, and the origins of the samples."""
    origins = scoring.origins
    return (
        None if len(inputs) == 4 else log_weights(inputs, torch.float64),
        None if origins is None else origins.contiguous(),
        scoring.leave_origins_out,
    )


_jensen = _Estimator("jensen", reference.jensen, reference.jensen_backward)
_of_pairs = _Estimator(
    "logsumexp_of_pairs",
    reference.logsumexp,
    reference.logsumexp_backward,
    lambda inputs, scoring: not _estimators.online(inputs, scoring),
)
jensen, jensen_backward = _jensen.forward, _jensen.backward


def logsumexp(inputs: AnyInputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.logsumexp`."""
    estimator = _by_blocks.logsumexp if _many(inputs, scoring) else _of_pairs.forward
    return estimator(inputs, scoring)


def logsumexp_backward(
    upstream: Upstream,
    inputs: AnyInputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """See `Estimators.logsumexp_backward`."""
    many = _many(inputs, scoring)
    estimator = _by_blocks.logsumexp_backward if many else _of_pairs.backward
    return estimator(upstream, inputs, scoring, state, wanted)


def _many(inputs: AnyInputs, scoring: Scoring) -> bool:
    _, samples, components = Sizes.of(scoring, inputs)
    return samples * components > _estimators.PAIRS_AT_ONCE and not _estimators.online(
        inputs, scoring
    )
