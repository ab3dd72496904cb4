"""Operator `jensen_of_ranks`: the Jensen loss of the batch of all ranks.

Its forward pass sends moments, see `_moments`; its backward pass sends nothing: it takes the
gradient of the result to be the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .._building_blocks import Gradients
from .._mixture import Inputs, Scoring
from .._precision import accumulation_dtype
from .._terms import TERMS, terms_of_means, upstream_of_energies
from ..ops._backends import building_blocks
from ..ops._library import define, differentiate
from ..reference.parts import PLANES
from . import Group
from ._layout import Layout, divisor_of
from ._meeting import Meeting, half_of
from ._moments import met_moments
from ._peers import Peers
from ._refuse import refuse_second_derivative
from ._sizes import sizes_of

_STATE = 4
"""Planes that pairs of rows of one rank keep, see `reference.moments.moments`."""


def _apart(scoring: Scoring) -> bool:
    """Whether pairs of rows of one rank are found by themselves: a row does not meet itself, and a
    difference of sums over all would lose its digits."""
    return scoring.pairing == "leave_one_out"


def _empty_state(y: Tensor, D: int, apart: bool) -> Tensor:
    """Stabilisers and partners, what the pairs of rows of this rank keep, and planes."""
    S, E = y.shape[1:]
    planes = PLANES + (_STATE if apart else 0)
    return y.new_empty(2 * D + 2 * D * S + D * planes * S * E, dtype=torch.float64)


def _parts_of(state: Tensor, D: int, S: int, E: int) -> tuple[Tensor, Tensor, Tensor]:
    first, last = 2 * D + 2 * D * S, len(state) - D * PLANES * S * E
    of_local = state[first:last].view(-1, _STATE, S, E) if last > first else state[:0]
    return state[:first], of_local, state[last:].view(D, PLANES, S, E)


def _forward(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    sample_mask: Tensor,
    component_mask: Tensor | None,
    pairing: str,
    own_stds: bool,
    reduction: str,
    safety_factor: float,
    rows: str,
    shards: str,
    sizes: Sequence[int],
    told: bool,
    averaged: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss (), its terms (6,), d/2 (), what the backward pass needs, and the sizes of all
    ranks.

    Args:
        y, x, mu, stds: rows of this rank.
        rows, shards: names of groups, "" for none.
        sizes: samples and components of each rank, one pair after the other; empty: they are asked.
        told: by the caller; then nobody waits for a GPU, nor looks whether float32 has room.
        averaged: factor of the gradients.
    """
    inputs = y, x, mu, stds
    scoring = _scoring(sample_mask, component_mask, pairing, own_stds, reduction, safety_factor)
    peers, sharing = Peers(rows), Peers(shards)
    layout = Layout.of(peers.rank, sizes_of(peers, y, x, sizes), pairing)
    meeting = Meeting.of_ranks(layout, peers, sharing, inputs, scoring)
    D, S, E = len(meeting.mixtures), y.shape[1], y.shape[2]
    state = _empty_state(y, D, _apart(scoring))
    head, of_local, planes = _parts_of(state, D, S, E)
    head.copy_(meeting.keep())
    local = torch.zeros((D, 3), dtype=torch.float64, device=y.device)
    blocks = building_blocks(y)
    if _apart(scoring):
        local, _ = blocks.moments.moments(*inputs, meeting.mixtures, of_local)
    check = not (told and y.is_cuda)
    for dtype in (accumulation_dtype(*inputs), torch.float64):
        of_rows = blocks.parts.parts(*inputs, meeting.mixtures, meeting.partners, dtype)
        sums = met_moments(peers, layout, of_rows, local, _apart(scoring), check, planes)
        if sums is not None:
            break
    assert sums is not None
    divisor = divisor_of(layout, scoring)
    total, terms = terms_of_means(sharing.sum(sums).sum(0) / divisor, inputs)
    half = half_of(meeting, E, divisor, sharing)
    return total, terms, half, state, torch.tensor(layout.sizes, dtype=torch.int64)


def _fake(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    sample_mask: Tensor,
    component_mask: Tensor | None,
    pairing: str,
    own_stds: bool,
    reduction: str,
    safety_factor: float,
    rows: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    D = 2 if pairing == "symmetric" else 1
    terms = y.new_empty(len(TERMS), dtype=accumulation_dtype(y, x, mu, stds))
    state = _empty_state(y, D, pairing == "leave_one_out")
    sizes = torch.empty((Peers(rows).size, 2), dtype=torch.int64)
    return terms.new_empty(()), terms, state.new_empty(()), state, sizes


def _backward(
    of_total: Tensor | None,
    of_terms: Tensor | None,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    sample_mask: Tensor,
    component_mask: Tensor | None,
    state: Tensor,
    sizes: Tensor,
    pairing: str,
    own_stds: bool,
    reduction: str,
    rows: str,
    averaged: float,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the wanted ones among y, x, mu and stds: of the loss of all ranks, times
    `averaged`. Nothing is sent."""
    inputs = y, x, mu, stds
    scoring = _scoring(sample_mask, component_mask, pairing, own_stds, reduction, 0.0)
    pairs_of_sizes = [(n, m) for n, m in sizes.tolist()]
    layout = Layout.of(Peers(rows).rank, pairs_of_sizes, pairing)
    D, S, E = len(layout.samples), y.shape[1], y.shape[2]
    head, of_local, planes = _parts_of(state, D, S, E)
    meeting = Meeting.kept(layout, inputs, scoring, head)
    of_means = upstream_of_energies((of_total, of_terms), torch.float64) * averaged
    of_sums = (of_means / divisor_of(layout, scoring)).expand(D, 3)
    blocks = building_blocks(y)
    found = blocks.parts.pull(of_sums, *inputs, meeting.mixtures, meeting.partners, planes, wanted)
    if _apart(scoring):
        more = blocks.moments.moments_backward(of_sums, *inputs, of_local, meeting.mixtures, wanted)
        found = _both(found, more)
    return [g for g in found if g is not None]


def _backward_fake(*arguments: Any) -> list[Tensor]:
    inputs, wanted = arguments[2:6], arguments[-1]
    return [t.new_empty(t.shape) for t, needed in zip(inputs, wanted, strict=True) if needed]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, pairing, own_stds, reduction, _, rows, _, _, _, averaged = inputs
    *_, half, state, sizes = output
    ctx.mark_non_differentiable(half, state, sizes)
    ctx.set_materialize_grads(False)
    ctx.options = pairing, own_stds, reduction, rows, averaged
    ctx.save_for_backward(*tensors, state, sizes)


def _pull_back(ctx: Any, of_total: Tensor | None, of_terms: Tensor | None, *_: Any) -> Any:
    refuse_second_derivative()
    nothing = (None,) * 11
    if of_total is None and of_terms is None:
        return (None,) * 4 + nothing
    wanted = list(ctx.needs_input_grad[:4])
    found = iter(
        _jensen_of_ranks_backward(of_total, of_terms, *ctx.saved_tensors, *ctx.options, wanted)
    )
    return *(next(found) if needed else None for needed in wanted), *nothing


def _no_gradient(*_: Any) -> NoReturn:
    raise RuntimeError("fused_mi::jensen_of_ranks_backward has no gradient")


_INPUTS = "Tensor y, Tensor x, Tensor mu, Tensor stds, Tensor sample_mask, Tensor? component_mask, "
_jensen_of_ranks = differentiate(
    define(
        f"jensen_of_ranks({_INPUTS}str pairing, bool own_stds, str reduction, float safety_factor, "
        "str rows, str shards, int[] sizes, bool told, float averaged)"
        " -> (Tensor total, Tensor terms, Tensor half, Tensor state, Tensor sizes_of_all)",
        _forward,
        _fake,
    ),
    _setup,
    _pull_back,
)
_jensen_of_ranks_backward = differentiate(
    define(
        f"jensen_of_ranks_backward(Tensor? of_total, Tensor? of_terms, {_INPUTS}Tensor state, "
        "Tensor sizes, str pairing, bool own_stds, str reduction, str rows, float averaged, "
        "bool[] wanted) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
    lambda ctx, inputs, output: None,
    _no_gradient,
)


def _scoring(
    sample_mask: Tensor,
    component_mask: Tensor | None,
    pairing: str,
    own_stds: bool,
    reduction: str,
    safety_factor: float,
) -> Scoring:
    return Scoring(
        sample_mask,
        component_mask,
        pairing=pairing,
        own_stds=own_stds,
        reduction=reduction,
        safety_factor=safety_factor,
    )


def _both(a: Gradients, b: Gradients) -> Gradients:
    """The sums of two lists of gradients, in the memory of the first."""
    return [p if p is None or q is None else p.add_(q) for p, q in zip(a, b, strict=True)]


def jensen(inputs: Inputs, scoring: Scoring, where: Group) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its terms, and d/2."""
    total, terms, half, _, _ = _jensen_of_ranks(
        *inputs,
        scoring.sample_mask,
        scoring.component_mask,
        scoring.pairing,
        scoring.own_stds,
        scoring.reduction,
        scoring.safety_factor,
        where.rows,
        where.shards,
        where.sizes,
        where.told,
        where.averaged,
    )
    return total, terms, half
