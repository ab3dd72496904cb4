"""Launches of the forward pass of the moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from fused_mi._mixture import Mixture
from fused_mi._precision import accumulation_dtype
from torch import Tensor

from ._configs import (
    REDUCE,
    LostTile,
    MomentsTile,
    few,
    finish_tile,
    lost_tile,
    moments_splits,
    splits,
)
from ._launch import accumulator, launch, strided
from ._leave_one_out import PARTS, leave_one_out_finish_kernel, leave_one_out_kernel
from ._moments_finish import finish_kernel, reduce_kernel
from ._moments_forward import accumulate_kernel
from ._moments_of_pairs import sums_of_pairs_kernel
from ._positions import Positions

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""y, x, mu, stds: (rows, S, E) each."""


def swapped(mixtures: Sequence[Mixture]) -> bool:
    """Whether the rows of two mixtures have variances in both roles: they are read once."""
    first, other = mixtures[0], mixtures[-1]
    rows = first.sample_rows, first.component_rows
    swapped = rows == (other.component_rows, other.sample_rows)
    return len(mixtures) == 2 and swapped and first.sample_eps is not None


def forward(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    sums: Tensor,
    state: Tensor,
    tile: MomentsTile,
) -> None:
    """Writes the sums (D, 3) and the state (D, 4, S, E) of one mixture, or of two that are
    `swapped`."""
    D, _, S, E = state.shape
    first, other = mixtures[0], mixtures[-1]
    N, M = first.samples, first.components
    tiles = triton.cdiv(E, tile.FEATURES)
    split = moments_splits(N, M, tiles * S, tile.ROWS, state.device)
    programs = tiles * S * split.parts
    merge = finish_tile(E, state.dtype)
    merge_tiles = triton.cdiv(E, merge.FEATURES)
    merge_programs = merge_tiles * S if split.parts > 1 else 0
    partial_sums, of_pairs = _partial_sums(D, programs + merge_programs, first, S, E, sums)
    # Where there is one split, nothing goes there.
    parts = state if split.parts == 1 else state.new_empty((D, split.parts, 5, S, E))
    split_samples = state if split.parts == 1 else state.new_empty((D, split.parts, S))
    launch(
        accumulate_kernel,
        programs,
        *map(strided, inputs),
        *_constants(first, where[0]),
        *(_constants(other, where[1]) if D == 2 else (None,) * 5),
        state,
        parts,
        split_samples,
        partial_sums,
        first.sample_rows[0],
        first.component_rows[0],
        N,
        M,
        split.samples,
        split.components,
        split.parts,
        partial_sums.shape[1],
        S,
        E,
        tiles,
        OWN_STDS=first.sample_eps is not None,
        SHARED=D == 2 and _shared(first, other),
        ACC=accumulator(state.dtype),
        **tile._asdict(),
    )
    for d, mixture in enumerate(mixtures):
        # The batch of `warmup` compiles what larger ones need.
        if merge_programs or max(N, M) <= 2:
            launch(
                finish_kernel,
                merge_programs,
                *map(strided, inputs[:3]),
                where[d].counts,
                parts[d],
                split_samples[d],
                state[d],
                partial_sums[d, programs:],
                mixture.sample_rows[0],
                mixture.component_rows[0],
                split.parts,
                S,
                E,
                merge_tiles,
                **merge._asdict(),
            )
        _sums_of_pairs(inputs, mixture, where[d], state[d], of_pairs[d])
    launch(reduce_kernel, D, partial_sums, sums, partial_sums.shape[1], **REDUCE)


def _constants(mixture: Mixture, where: Positions) -> tuple[Tensor | None, ...]:
    """eps, contributing positions and counts of both roles, as arguments of a kernel."""
    m = mixture
    active = where.sample_active, where.component_active
    return m.sample_eps, m.component_eps, *active, where.counts


def _shared(first: Mixture, other: Mixture) -> bool:
    """Whether swapped roles make no difference to the variances and positions of the rows."""
    eps = first.sample_eps is other.component_eps and other.sample_eps is first.component_eps
    return eps and first.sample_mask is first.component_mask


def leave_one_out(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    sums: Tensor,
    state: Tensor,
    tile: MomentsTile,
) -> None:
    """The same of every row against all others."""
    _, _, S, E = state.shape
    (mixture,), (of,) = mixtures, where
    start, stop = mixture.sample_rows
    rows = stop - start
    dtype = accumulation_dtype(*inputs)
    tiles = triton.cdiv(E, tile.FEATURES)
    split = moments_splits(rows, rows, tiles * S, tile.ROWS, state.device)
    programs = tiles * S * split.parts
    merge = finish_tile(E, dtype)
    merge_tiles = triton.cdiv(E, merge.FEATURES)
    merge_programs = merge_tiles * S if split.parts > 1 else 0
    partial_sums, of_pairs = _partial_sums(1, programs + merge_programs, mixture, S, E, sums)
    # Where there is one split, nothing goes there.
    shapes = ((1,),) * 2
    if split.parts > 1:
        shapes = ((split.parts, PARTS.value, S, E), (split.parts, S))
    parts, split_samples = (torch.empty(n, dtype=dtype, device=state.device) for n in shapes)
    launch(
        leave_one_out_kernel,
        programs,
        *map(strided, inputs),
        *_constants(mixture, of),
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
        OWN_STDS=mixture.sample_eps is not None,
        SHARED=_shared(mixture, mixture),
        ACC=accumulator(dtype),
        **tile._asdict(),
    )
    # The batch of `warmup` compiles what larger ones need.
    if merge_programs or rows <= 2:
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
            **merge._asdict(),
        )
    _sums_of_pairs(inputs, mixture, of, state[0], of_pairs[0])
    launch(reduce_kernel, 1, partial_sums, sums, partial_sums.shape[1], **REDUCE)


def _partial_sums(
    mixtures: int, programs: int, mixture: Mixture, S: int, E: int, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """(mixtures, P, 3): of `programs` programs and of the pairs of lost columns; the latter."""
    of_pairs, _, _, _ = _lost_splits(mixture, S, E, sums.device)
    found = sums.new_empty((mixtures, programs + of_pairs, 3))
    return found, found[:, programs:]


def _lost_splits(
    mixture: Mixture, S: int, E: int, device: torch.device
) -> tuple[int, int, int, LostTile]:
    """Programs of `sums_of_pairs_kernel`, rows for each, tiles, and the tile."""
    tile = lost_tile(E)
    tiles = triton.cdiv(E, tile.LOOK)
    rows = max(mixture.samples, mixture.components)  # the same where roles are swapped
    count, rows_per_split = splits(rows, tiles * S, tile.ROWS, device)
    return tiles * S * count, rows_per_split, tiles, tile


def _sums_of_pairs(
    inputs: Inputs, mixture: Mixture, where: Positions, state: Tensor, partial_sums: Tensor
) -> None:
    m, (_, S, E) = mixture, state.shape
    programs, rows_per_split, tiles, tile = _lost_splits(m, S, E, state.device)
    launch(
        sums_of_pairs_kernel,
        programs,
        *map(strided, inputs),
        *_constants(m, where)[1:4],
        state,
        partial_sums,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        rows_per_split,
        S,
        E,
        tiles,
        EXCLUDE_DIAGONAL=m.exclude_diagonal,
        **tile._asdict(),
    )
