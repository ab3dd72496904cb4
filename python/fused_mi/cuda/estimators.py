"""The two estimators: "jensen" is one call of the library in each direction, "logsumexp" is made of
the building blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import _estimators
from .._building_blocks import BuildingBlocks, Gradients
from .._estimators import HEADER, counts_in, jensen_state, moments_in
from .._mixture import Inputs, Mixture, Role, Scoring, mixtures_of
from .._passes import gradients, nothing
from .._precision import accumulation_dtype
from .._terms import TERMS, Upstream, jensen_divisor
from ..cpu._arguments import numbers_of
from ..reference import moments as _moments  # "jensen" is served whole, but for ranks
from ..reference import parts as _parts
from . import logsumexp as _logsumexp
from . import pairs as _pairs
from . import variance as _variance
from ._library import operators
from .variance import factor_and_bounds

building_blocks = BuildingBlocks(_variance, _moments, _pairs, _logsumexp, _parts)
_by_blocks = _estimators.Estimators(building_blocks)
logsumexp, logsumexp_backward = _by_blocks.logsumexp, _by_blocks.logsumexp_backward


class _Call(NamedTuple):
    """What both directions share."""

    mixtures: Sequence[Mixture]  # without stabilisers
    roles: list[int]  # of the stabilisers, three numbers each
    arguments: tuple[Any, ...]  # of the operators, from the masks to the state

    @classmethod
    def of(cls, inputs: Inputs, scoring: Scoring, state: Tensor) -> _Call:
        found: list[Role] = []

        def number(_: Tensor, roles: Sequence[Role], *rest: Any) -> Any:
            found.extend(roles)
            return range(len(roles))

        mixtures = mixtures_of(scoring, inputs, number)
        first = mixtures[0]
        masks = first.sample_mask, first.component_mask
        numbers: list[int] = []
        for m in mixtures:
            own = -1 if m.sample_eps is None else m.sample_eps
            (i, _), (j, _) = m.sample_rows, m.component_rows
            numbers += [i, m.samples, j, m.components, own, m.component_eps]  # type: ignore[list-item]
        roles = [
            n for mask, (start, stop) in found for n in (int(mask is masks[1]), start, stop - start)
        ]
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
