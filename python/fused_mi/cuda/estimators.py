"""The two estimators, one call of the library in each direction; "logsumexp" of more pairs than are
kept, of rows that are too long to go without, is made of the building blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _estimators
from .._building_blocks import BuildingBlocks, Gradients, Own
from .._estimators import (
    HEADER,
    counts_in,
    jensen_state,
    logsumexp_parts,
    logsumexp_state,
    moments_in,
    short,
)
from .._mixture import AnyInputs, Inputs, Mixture, Role, Scoring, Sizes, mixtures_of
from .._passes import gradients, nothing
from .._precision import accumulation_dtype
from .._terms import TERMS, Upstream, jensen_divisor
from ..cpu._arguments import numbers_of
from ..reference import moments as _moments  # "jensen" is served whole, but for ranks
from ..reference import parts as _parts
from . import logsumexp as _logsumexp
from . import online as _online
from . import pairs as _pairs
from . import variance as _variance
from ._library import operators
from .variance import factor_and_bounds

building_blocks = BuildingBlocks(_variance, _moments, _pairs, _logsumexp, _parts, _online)
_by_blocks = _estimators.Estimators(building_blocks)


def _roles(
    inputs: AnyInputs, scoring: Scoring
) -> tuple[Sequence[Mixture], list[tuple[int, int]], list[int]]:
    """The mixtures without stabilisers; the roles of samples (-1: none) and of components of each,
    and three numbers of each role."""
    found: list[Role] = []

    def number(_: Tensor, roles: Sequence[Role], *rest: Any) -> Any:
        found.extend(roles)
        return range(len(roles))

    mixtures = mixtures_of(scoring, inputs, number)
    of_components = mixtures[0].component_mask
    numbers = [
        n
        for mask, (start, stop) in found
        for n in (int(mask is of_components), start, stop - start)
    ]
    of_mixtures = [
        (-1 if m.sample_eps is None else m.sample_eps, m.component_eps) for m in mixtures
    ]
    return mixtures, of_mixtures, numbers  # type: ignore[return-value]


class _Call(NamedTuple):
    """What both directions share."""

    mixtures: Sequence[Mixture]  # without stabilisers
    roles: list[int]  # of the stabilisers, three numbers each
    arguments: tuple[Any, ...]  # of the operators, from the masks to the state

    @classmethod
    def of(cls, inputs: Inputs, scoring: Scoring, state: Tensor) -> _Call:
        mixtures, of_mixtures, roles = _roles(inputs, scoring)
        first = mixtures[0]
        masks = first.sample_mask, first.component_mask
        numbers: list[int] = []
        for m, of_roles in zip(mixtures, of_mixtures, strict=True):
            (i, _), (j, _) = m.sample_rows, m.component_rows
            numbers += [i, m.samples, j, m.components, *of_roles]
        return cls(
            mixtures,
            roles,
            (
                *masks,
                numbers,
                first.exclude_diagonal,
                float(jensen_divisor(scoring, inputs)),
                state[:HEADER],
                moments_in(state, scoring, inputs),
                counts_in(state, scoring, inputs),
            ),
        )


def jensen(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.jensen`."""
    state = jensen_state(inputs, scoring)
    call, dtype = _Call.of(inputs, scoring, state), accumulation_dtype(*inputs)
    terms = state.new_empty(len(TERMS), dtype=dtype)
    total = terms.new_empty(())
    bounds = factor_and_bounds(dtype, scoring.safety_factor)
    operators().jensen(*inputs, *call.arguments, call.roles, *bounds, total, terms)
    return total, terms, state


def jensen_backward(
    upstream: Upstream,
    inputs: Inputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """See `Estimators.jensen_backward`."""
    call = _Call.of(inputs, scoring, state)
    plan = gradients(inputs, call.mixtures, wanted)
    numbers = numbers_of(plan)
    if numbers and not nothing(inputs[0], call.mixtures):
        of_loss = (t if t is None else t.contiguous() for t in upstream)
        operators().jensen_backward(*of_loss, *inputs, *call.arguments, numbers, *plan.tensors)
    return plan.tensors


def logsumexp(inputs: AnyInputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.logsumexp`."""
    state = logsumexp_state(inputs, scoring)
    rows, energies = logsumexp_parts(state, scoring, inputs)
    if not _whole(inputs, scoring, energies):
        return _by_blocks.logsumexp(inputs, scoring)
    dtype = accumulation_dtype(*inputs)
    call, roles = _of_scoring(inputs, scoring, state)
    d, n, m = Sizes.of(scoring, inputs)
    shape = (d * n,) if scoring.reduction == "none" else ()
    terms = state.new_empty((len(TERMS), *shape), dtype=dtype)
    total = terms.new_empty(shape)
    _online.forward(
        inputs[:4],
        call,
        rows,
        energies,
        roles,
        factor_and_bounds(dtype, scoring.safety_factor),
        float(n) if scoring.reduction == "sum" else 1.0,
        _online.log_of_partners(Own.of(scoring), m),
        (total, terms),
    )
    return total, terms, state


def logsumexp_backward(
    upstream: Upstream,
    inputs: AnyInputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """See `Estimators.logsumexp_backward`."""
    rows, energies = logsumexp_parts(state, scoring, inputs)
    if not _whole(inputs, scoring, energies):
        return _by_blocks.logsumexp_backward(upstream, inputs, scoring, state, wanted)
    call, _ = _of_scoring(inputs, scoring, state)
    d, n, _ = Sizes.of(scoring, inputs)
    each = scoring.reduction == "none"
    factor = 1.0 if each else 1 / (d if scoring.reduction == "sum" else d * n)
    of_loss = *upstream, None
    found = _online.backward(of_loss, inputs[:4], call, rows, energies, wanted, factor, each)
    return [g if g is None else g.to(t.dtype) for g, t in zip(found, inputs, strict=True)]


def _whole(inputs: AnyInputs, scoring: Scoring, energies: Tensor | None) -> bool:
    """Whether one call of the library serves all pairs."""
    if nothing(inputs[0], _roles(inputs, scoring)[0]):
        return False
    return energies is not None or (
        short(inputs[0]) and accumulation_dtype(*inputs) == torch.float32
    )


def _of_scoring(
    inputs: AnyInputs, scoring: Scoring, state: Tensor
) -> tuple[_online.Call, list[int]]:
    mixtures, of_mixtures, roles = _roles(inputs, scoring)
    weights = inputs[4] if len(inputs) > 4 else None
    offset = 0.0 if weights is None else math.log(max(len(weights), 1))
    own = Own.of(scoring)
    call = _online.Call.of(mixtures, state[:HEADER], of_mixtures, own, weights, offset)
    return call, roles
