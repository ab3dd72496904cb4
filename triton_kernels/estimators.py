"""The two estimators from the kernels of this backend, without torch between those of "jensen"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from fused_mi._building_blocks import BuildingBlocks
from fused_mi._estimators import (
    HEADER,
    Estimators,
    counts_in,
    jensen_state,
    kept_mixtures,
    moments_in,
)
from fused_mi._mixture import Inputs, Mixture, Scoring, mixtures_of
from fused_mi._passes import nothing
from fused_mi._precision import accumulation_dtype
from fused_mi._terms import TERMS, Upstream, jensen_divisor
from torch import Tensor

from . import logsumexp as _logsumexp
from . import moments as _moments
from . import online as _online
from . import pairs as _pairs
from . import parts as _parts
from . import variance as _variance
from ._gradients_launch import Upstream as UpstreamOfLoss
from ._moments_launch import Terms, swapped
from ._one_group_launch import one_group
from ._prepare import counts_of, prepare

building_blocks = BuildingBlocks(_variance, _moments, _pairs, _logsumexp, _parts, _online)
_estimators = Estimators(building_blocks)
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward


def jensen(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """See `Estimators.jensen`."""
    state = jensen_state(inputs, scoring)
    mixtures, counts = _prepared(state, inputs, scoring)
    terms = state.new_empty(len(TERMS), dtype=accumulation_dtype(*inputs))
    total = terms.new_empty(())
    of_sums = Terms(state[:HEADER], total, terms, jensen_divisor(scoring, inputs))
    moments = _kept(state, scoring, inputs, mixtures)
    _moments.moments(*inputs, mixtures, moments, of_sums, counts)
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
    total, terms = upstream
    of_loss = UpstreamOfLoss(total, terms, jensen_divisor(scoring, inputs))
    moments = _kept(state, scoring, inputs, mixtures)
    counts = counts_in(state, scoring, inputs)
    return _moments.moments_backward(of_loss, *inputs, moments, mixtures, wanted, counts)


def _kept(state: Tensor, scoring: Scoring, inputs: Inputs, mixtures: Sequence[Mixture]) -> Tensor:
    """What `moments` keeps, in the state: of one group of rows a byte for each column, in the room
    of the moments. The size is the same: where the batch size is a symbol, it decides nothing."""
    if not one_group(mixtures):
        return moments_in(state, scoring, inputs)
    shape = len(mixtures), *inputs[0].shape[1:]
    first = HEADER * state.itemsize
    return state.view(torch.uint8)[first : first + math.prod(shape)].view(shape)


def _prepared(state: Tensor, inputs: Inputs, scoring: Scoring) -> tuple[Sequence[Mixture], Tensor]:
    """The mixtures with their stabilisers; the counts of contributing rows, in the state."""
    counts = counts_in(state, scoring, inputs)
    bare = mixtures_of(scoring, inputs, lambda _, roles, *__: [None] * len(roles))
    first, D = bare[0], len(bare)
    empty = nothing(inputs[0], bare)
    if first.exclude_diagonal or empty:
        return mixtures_of(scoring, inputs, _variance.variance), counts.zero_() if empty else counts
    one_mask = first.sample_mask is first.component_mask
    # With one mask, the samples of a direction are the components of the other: see `mixtures_of`.
    shared = D == 2 and scoring.component_mask is not None
    known = scoring.own_stds if D == 2 else scoring.pairing != "all" or not scoring.own_stds
    if not known or (shared and not one_mask):
        mixtures = mixtures_of(scoring, inputs, _variance.variance)
        counts.copy_(counts_of(mixtures, inputs[3], swapped(mixtures)))
        return mixtures, counts
    of_eps = D if shared or not scoring.own_stds else 2 * D
    dtype = accumulation_dtype(*inputs)
    eps = prepare(inputs[3], bare, counts, dtype, shared, of_eps, scoring.safety_factor)
    of_samples: Sequence[Tensor | None] = [None] * D
    if scoring.own_stds:
        of_samples = eps[::-1] if shared else eps[D:]
    mixtures = [
        m._replace(component_eps=eps[d], sample_eps=of_samples[d]) for d, m in enumerate(bare)
    ]
    return mixtures, counts
