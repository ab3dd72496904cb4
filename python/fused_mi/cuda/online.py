"""The log-sum-exp over components in one call of the library for each direction: of kept energies,
or of many pairs of short rows without any in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._building_blocks import Gradients, Own
from .._estimators import HEADER
from .._mixture import Inputs, Mixture
from .._precision import accumulation_dtype
from ._library import operators

BLOCK_ROWS, BLOCK_PAIRS = 2048, 1 << 22
"""Of how many samples and pairs the backward pass keeps weights at once, where energies are not
kept: 12 bytes for each pair."""


class Call(NamedTuple):
    """What both directions share."""

    numbers: list[int]  # six of each mixture
    arguments: tuple[Any, ...]  # from the masks to the header
    labels: tuple[Any, ...]  # of the components: weights, own ones
    own_stds: bool

    @classmethod
    def of(
        cls,
        mixtures: Sequence[Mixture],
        header: Tensor,  # stabilisers by their roles
        roles: Sequence[tuple[int, int]],  # of samples (-1: none) and of components, each mixture
        own: Own | None,
        log_weights: Tensor | None,  # of any dtype
        offset: float,  # on top of them
    ) -> Call:
        numbers: list[int] = []
        for m, of_roles in zip(mixtures, roles, strict=True):
            numbers += [m.sample_rows[0], m.samples, m.component_rows[0], m.components, *of_roles]
        first = mixtures[0]
        of_samples = None if own is None else own.of_samples
        return cls(
            numbers,
            (first.sample_mask, first.component_mask, numbers, first.exclude_diagonal, header),
            (
                log_weights,
                offset,
                None if own is None else own.first,
                None if of_samples is None else of_samples.contiguous(),
                own is not None and own.left_out,
            ),
            roles[0][0] >= 0,
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Samples and components of a mixture."""
        return self.numbers[1], self.numbers[3]


def forward(
    inputs: Inputs,
    call: Call,
    rows: Tensor,  # (D, 5, N) float64, written
    energies: Tensor | None,  # (D, 3, N, M) float64, written
    roles: Sequence[int] = (),  # three numbers of each stabiliser that is found
    bounds: Sequence[float] = (0.0, 0.0, 0.0),
    factor: float = 1.0,  # of the terms
    log_partners: float = 0.0,
    outputs: tuple[Tensor | None, Tensor | None] = (None, None),  # the loss and its terms, written
) -> None:
    """Writes what `reference.logsumexp.logsumexp` returns, and the loss."""
    operators().logsumexp_of_pairs(
        *inputs,
        *call.arguments,
        roles,
        *bounds,
        *call.labels,
        rows,
        energies,
        log_partners,
        factor,
        *outputs,
    )


def backward(
    upstream: Sequence[Tensor | None],  # of the loss and of its terms; or of those of each sample
    inputs: Inputs,
    call: Call,
    rows: Tensor,
    energies: Tensor | None,
    wanted: Sequence[bool],
    factor: float = 1.0,
    each: bool = False,  # of each sample
) -> Gradients:
    """Gradients of the inputs and, where there are any, of the log weights; some of them wider than
    what they are of."""
    block = _block(*call.sizes)
    tensors = _empty(inputs, call, energies is not None, block, wanted)
    log_weights = call.labels[0]
    of_weights = None
    if log_weights is not None and wanted[4]:
        of_weights = log_weights.new_empty(log_weights.shape, dtype=torch.float64)
    if any(t is not None for t in (*tensors, of_weights)):
        operators().logsumexp_of_pairs_backward(
            *(t if t is None else t.contiguous() for t in upstream),
            *inputs,
            *call.arguments,
            *call.labels,
            rows,
            energies,
            factor,
            each,
            *block,
            *tensors,
            of_weights,
        )
    return [*tensors, of_weights] if log_weights is not None else tensors


def _block(samples: int, components: int) -> tuple[int, int]:
    """Samples and components of a block of pairs: a matrix of four million is 16 MiB, in the L2
    cache of an H100. An energy needs all features before a gradient has its first."""
    rows = min(samples, BLOCK_ROWS)
    return rows, min(components, max(BLOCK_PAIRS // max(rows, 32) // 64 * 64, 64))


def _empty(
    inputs: Inputs, call: Call, kept: bool, block: tuple[int, int], wanted: Sequence[bool]
) -> Gradients:
    """Gradients, in float32 where they add up in several steps and their inputs are narrower."""
    samples, components = call.sizes
    numbers = call.numbers
    starts = numbers[::6], numbers[2::6]
    by_samples = not kept and samples > block[0]
    by_components = not kept and components > block[1]
    both = (
        call.own_stds
        and (by_samples or by_components)
        and samples == components
        and not {*starts[0]}.isdisjoint(starts[1])
    )
    often = by_components, by_samples, by_samples, by_samples or both
    found: list[Tensor | None] = []
    for t, several, needed in zip(inputs, often, wanted[:4], strict=True):
        dtype = torch.float32 if several and t.itemsize == 2 else t.dtype
        found.append(torch.empty(t.shape, dtype=dtype, device=t.device) if needed else None)
    return found


def _of_mixtures(
    inputs: Inputs, mixtures: Sequence[Mixture], own: Own | None, log_weights: Tensor | None
) -> Call:
    """Of mixtures that have their stabilisers."""
    dtype, D = accumulation_dtype(*inputs), len(mixtures)
    eps = [m.component_eps for m in mixtures]
    eps += [m.sample_eps for m in mixtures if m.sample_eps is not None]
    header = inputs[0].new_zeros(HEADER, dtype=dtype)
    header[: len(eps)] = torch.stack(eps)
    roles = [(-1 if m.sample_eps is None else D + d, d) for d, m in enumerate(mixtures)]
    return Call.of(mixtures, header, roles, own, log_weights, 0.0)


def online(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    own: Own | None,
    log_weights: Tensor | None,
    rows: Tensor,
) -> None:
    """See `Online` of the building blocks."""
    found = rows if rows.is_contiguous() else torch.empty_like(rows)
    forward(inputs, _of_mixtures(inputs, mixtures, own, log_weights), found, None)
    if found is not rows:
        rows.copy_(found)


def online_backward(
    upstream: Tensor,  # (D, 5, N) or (D, 5, 1) float64, of the terms of each sample
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    own: Own | None,
    log_weights: Tensor | None,
    rows: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """See `Online` of the building blocks."""
    call = _of_mixtures(inputs, mixtures, own, log_weights)
    each = upstream.shape[-1] > 1 or call.sizes[0] == 1
    of_samples = None, None, upstream.double()
    return backward(of_samples, inputs, call, rows.contiguous(), None, wanted, each=each)


def log_of_partners(own: Own | None, components: int) -> float:
    return math.log(max(Own.partners(own, components), 1))
