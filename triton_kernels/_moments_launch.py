"""Launches of the forward pass of the moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fused_mi._estimators import HEADER
from fused_mi._mixture import Mixture
from fused_mi._precision import accumulation_dtype
from torch import Tensor

from ._configs import (
    REDUCE,
    MomentsTile,
    ceil_div,
    few,
    finish_tile,
    lost_tile,
    moments_splits,
    splits,
)
from ._launch import accumulator, launch, strided, unit
from ._leave_one_out import PARTS, leave_one_out_finish_kernel, leave_one_out_kernel
from ._moments_finish import finish_kernel
from ._moments_forward import accumulate_kernel
from ._moments_of_pairs import sums_of_pairs_kernel
from ._positions import Positions
from ._terms import reduce_kernel

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""y, x, mu, stds: (rows, S, E) each."""


class Terms(NamedTuple):
    """What becomes of the sums, see `reduce_kernel`."""

    header: Tensor  # (HEADER,) of a state
    total: Tensor  # () in T
    terms: Tensor  # (6,) in T
    divisor: int


def swapped(mixtures: Sequence[Mixture]) -> bool:
    """Whether the rows of two mixtures have variances in both roles: they are read once."""
    first, other = mixtures[0], mixtures[-1]
    rows = first.sample_rows, first.component_rows
    swapped = rows == (other.component_rows, other.sample_rows)
    masks = first.sample_mask is other.sample_mask and first.component_mask is other.component_mask
    return len(mixtures) == 2 and swapped and masks and first.sample_eps is not None


def forward(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    counts: Tensor,
    sums: Tensor,
    state: Tensor,
    terms: Terms | None,
    tile: MomentsTile,
) -> None:
    """Writes the sums (D, 3) and the state (D, 4, S, E) of one mixture, or of two that are
    `swapped`; counts are (D, 4, S)."""
    D, _, S, E = state.shape
    first, other = mixtures[0], mixtures[1] if len(mixtures) == 2 else None
    N, M = first.samples, first.components
    starts = first.sample_rows[0], first.component_rows[0]
    tiles = ceil_div(E, tile.FEATURES)
    split = moments_splits(N, M, tiles * S, tile.ROWS, state.device)
    programs = tiles * S * split.parts
    merge = finish_tile(E, state.dtype)
    merge_tiles = ceil_div(E, merge.FEATURES)
    merge_programs = merge_tiles * S if split.parts > 1 else 0
    partial_sums = sums.new_empty((D, programs + merge_programs, 3))
    # Where there is one split, nothing goes there.
    parts = state if split.parts == 1 else state.new_empty((D, split.parts, 5, S, E))
    split_samples = state if split.parts == 1 else state.new_empty((D, split.parts, S))
    launch(
        accumulate_kernel,
        programs,
        *map(strided, inputs),
        strided(first.sample_mask),
        strided(first.component_mask),
        counts,
        first.sample_eps,
        first.component_eps,
        None if other is None else other.sample_eps,
        None if other is None else other.component_eps,
        state,
        parts,
        split_samples,
        partial_sums,
        *starts,
        N,
        M,
        split.samples,
        split.components,
        split.parts,
        partial_sums.shape[1],
        S,
        E,
        tiles,
        UNIT=unit(E),
        OWN_STDS=first.sample_eps is not None,
        MIXTURES=D,
        SHARED=other is not None and shared(first, other),
        ACC=accumulator(state.dtype),
        **tile._asdict(),
    )
    if merge_programs:
        launch(
            finish_kernel,
            D * merge_programs,
            *map(strided, inputs[:3]),
            counts,
            parts,
            split_samples,
            state,
            partial_sums[:, programs:],
            *starts,
            split.parts,
            partial_sums.shape[1],
            S,
            E,
            merge_tiles,
            UNIT=unit(E),
            **merge._asdict(),
        )
    masks = first.sample_mask, first.component_mask
    reduce(with_pairs(inputs, mixtures, masks, state, partial_sums), sums, mixtures, terms)


def shared(first: Mixture, other: Mixture) -> bool:
    """Whether swapped roles make no difference to the variances and positions of the rows."""
    eps = first.sample_eps is other.component_eps and other.sample_eps is first.component_eps
    return eps and first.sample_mask is first.component_mask


def leave_one_out(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Positions,
    sums: Tensor,
    state: Tensor,
    terms: Terms | None,
    tile: MomentsTile,
) -> None:
    """The same of every row against all others."""
    _, _, S, E = state.shape
    (mixture,), of = mixtures, where
    start, stop = mixture.sample_rows
    rows = stop - start
    dtype = accumulation_dtype(*inputs)
    tiles = ceil_div(E, tile.FEATURES)
    split = moments_splits(rows, rows, tiles * S, tile.ROWS, state.device)
    programs = tiles * S * split.parts
    merge = finish_tile(E, dtype)
    merge_tiles = ceil_div(E, merge.FEATURES)
    merge_programs = merge_tiles * S if split.parts > 1 else 0
    partial_sums = sums.new_empty((1, programs + merge_programs, 3))
    # Where there is one split, nothing goes there.
    shapes: tuple[tuple[int, ...], ...] = ((1,), (1,))
    if split.parts > 1:
        shapes = ((split.parts, PARTS.value, S, E), (split.parts, S))
    parts, split_samples = (torch.empty(n, dtype=dtype, device=state.device) for n in shapes)
    launch(
        leave_one_out_kernel,
        programs,
        *map(strided, inputs),
        mixture.sample_eps,
        mixture.component_eps,
        of.sample_active,
        of.component_active,
        of.counts,
        state[0],
        parts,
        split_samples,
        partial_sums,
        start,
        rows,
        split.samples,
        split.parts,
        int(few(rows)),
        S,
        E,
        tiles,
        UNIT=unit(E),
        OWN_STDS=mixture.sample_eps is not None,
        SHARED=shared(mixture, mixture),
        ACC=accumulator(dtype),
        **tile._asdict(),
    )
    if merge_programs:
        launch(
            leave_one_out_finish_kernel,
            merge_programs,
            *map(strided, inputs[1:3]),
            of.counts,
            parts,
            split_samples,
            state[0],
            partial_sums[0, programs:],
            start,
            split.parts,
            int(few(rows)),
            S,
            E,
            merge_tiles,
            UNIT=unit(E),
            **merge._asdict(),
        )
    active = of.sample_active, of.component_active
    reduce(with_pairs(inputs, mixtures, active, state, partial_sums), sums, mixtures, terms)


def reduce(
    partial_sums: Tensor, sums: Tensor, mixtures: Sequence[Mixture], terms: Terms | None
) -> None:
    """Sums (D, 3) of q, g and k from those of all programs (D, P, 3), times 2; and the terms."""
    eps = [mixtures[0].component_eps, None, mixtures[0].sample_eps, None]
    if len(mixtures) == 2:
        eps[1], eps[3] = mixtures[1].component_eps, mixtures[1].sample_eps
    launch(
        reduce_kernel,
        1,
        partial_sums,
        sums,
        *eps,
        *(terms or (None, None, None))[:3],
        partial_sums.shape[1],
        1 if terms is None else terms.divisor,
        MIXTURES=len(mixtures),
        HEADER=HEADER,
        **REDUCE,
    )


def reduce_sums(partial_sums: Tensor, sums: Tensor) -> None:
    """The sums (D, 3) alone."""
    launch(
        reduce_kernel,
        1,
        partial_sums,
        sums,
        *(None,) * 7,
        partial_sums.shape[1],
        1,
        MIXTURES=len(sums),
        HEADER=HEADER,
        **REDUCE,
    )


def with_pairs(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    masks: tuple[Tensor, Tensor],
    state: Tensor,
    partial_sums: Tensor,
) -> Tensor:
    """(D, P, 3): the partial sums by fewer programs, with those of the pairs of lost columns."""
    D, (_, S, E) = len(mixtures), inputs[0].shape
    m, other = mixtures[0], mixtures[1] if D == 2 else None
    tile = lost_tile(E)
    tiles = ceil_div(E, tile.LOOK)
    count, rows_per_split = splits(max(m.samples, m.components), tiles * S, tile.ROWS, state.device)
    programs = tiles * S * count
    sums = partial_sums.new_empty((D, programs, 3))
    launch(
        sums_of_pairs_kernel,
        D * programs,
        *map(strided, inputs),
        m.component_eps,
        None if other is None else other.component_eps,
        *map(strided, masks),
        state,
        partial_sums,
        sums,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        rows_per_split,
        count,
        partial_sums.shape[1],
        programs,
        S,
        E,
        tiles,
        UNIT=unit(E),
        EXCLUDE_DIAGONAL=m.exclude_diagonal,
        **tile._asdict(),
    )
    return sums
