"""What the moments need before they read their inputs, in two launches: the stabilisers, and how
many rows contribute at each position and the first of them.

A role is a mask and a range of its rows. First the components of each mixture, then the samples;
these are left out where they are the components of the other mixture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fused_mi._building_blocks import Partners
from fused_mi._mixture import Mixture
from torch import Tensor

from ._configs import (
    ALL_REGISTERS,
    REGISTERS_OF_48_WARPS,
    ceil_div,
    features_tile,
    least_splits,
    positions_splits,
)
from ._configs import positions_tile as tile_of_positions
from ._launch import accumulator, launch, strided, unit
from ._tiles import load_mask, multiple
from .variance import factor_and_bounds, least_of, stabiliser_of


@triton.jit
def _count(masks, second, start, first, end, s, S, NOBODY, BLOCK_ROWS: tl.constexpr):
    """Active rows from `first` to `end`, and the least of them; (BLOCK_S,)."""
    count = tl.zeros_like(s)
    least = tl.zeros_like(s) + NOBODY
    for begin in range(first, end, BLOCK_ROWS):
        index = begin + tl.arange(0, BLOCK_ROWS)[:, None]
        inside = (index < end) & (s < S)[None, :]
        active = load_mask(masks[0], start + index, s[None, :], inside & ~second)
        active |= load_mask(masks[1], start + index, s[None, :], inside & second)
        count += tl.sum(active.to(tl.int32), 0)
        least = tl.minimum(least, tl.min(tl.where(active, index, NOBODY), 0))
    return count, least


@triton.jit(
    do_not_specialize=[
        *("sample_start", "component_start", "N", "M", "S", "E", "tiles"),
        *("of_eps", "programs", "rows_per_split", "splits", "rows_per_count"),
    ]
)
def prepare_kernel(
    stds,  # (rows, S, E) strided
    sample_mask,  # (rows, S) strided bool
    component_mask,  # (rows, S) strided bool
    least,  # (roles, programs) ACC: least positive variances
    parts,  # (roles, splits, 2, S) int32: active rows, and the first of them
    sample_start,  # of the first mixture; the second has the roles of all rows swapped
    component_start,
    N,
    M,
    S,
    E,
    tiles,
    of_eps,  # how many programs look for least variances: `programs` of each role that has one
    programs,
    rows_per_split,
    splits,  # programs that share the rows of a mask
    rows_per_count,
    UNIT: tl.constexpr,  # divides E
    MIXTURES: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    E = multiple(E, UNIT)
    masks = component_mask, sample_mask
    program = tl.program_id(0)
    blocks = tl.cdiv(S, BLOCK_S)
    counting = program - of_eps
    role = tl.where(counting < 0, program // programs, counting // (splits * blocks))
    as_samples = role >= MIXTURES
    # Components of the second mixture are the rows that are samples of the first.
    here = (role == 1) | (role == 2)
    start, rows = tl.where(here, sample_start, component_start), tl.where(here, N, M)
    if counting < 0:
        part, sizes = (start, rows, rows_per_split), (S, E, tiles)
        number = program % programs
        found = least_of(
            stds, masks, as_samples, part, number, programs, sizes, ACC, ROWS, FEATURES
        )
        tl.store(least + program, found)
    else:
        split = counting // blocks % splits
        s = (counting % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
        first = split * rows_per_count
        end = min(first + rows_per_count, rows)
        count, at = _count(masks, as_samples, start, first, end, s, S, rows, BLOCK_ROWS)
        to = parts + (counting // blocks).to(tl.int64) * 2 * S + s
        tl.store(to, count, mask=s < S)
        tl.store(to + S, at, mask=s < S)


@triton.jit
def _total(parts, role, splits, s, S):
    """Of all splits of a role."""
    parts += role * splits.to(tl.int64) * 2 * S
    count = tl.zeros_like(s)
    first = tl.zeros_like(s) + 2147483647
    for split in range(0, splits):
        count += tl.load(parts + split * 2 * S + s, mask=s < S, other=0)
        first = tl.minimum(first, tl.load(parts + (split * 2 + 1) * S + s, mask=s < S, other=0))
    return count, first


@triton.jit(do_not_specialize=["of_eps", "programs", "splits", "S", "low", "high"])
def settle_kernel(
    least,  # (roles, programs) ACC
    parts,  # (roles, splits, 2, S) int32
    eps,  # (roles,) ACC
    counts,  # (MIXTURES, 4, S) int32: contributing samples and components, the first index of each
    of_eps,  # roles that have one
    programs,
    splits,
    S,
    low,  # see `stabiliser_of`
    high,
    MIXTURES: tl.constexpr,
    SHARED: tl.constexpr,  # the samples of a mixture are the components of the other one
    SMALLEST: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    program = tl.program_id(0)
    if program < of_eps:
        found = stabiliser_of(
            least, program * programs, (program + 1) * programs, low, high, SMALLEST, LARGEST, BLOCK
        )
        tl.store(eps + program, found.to(eps.dtype.element_ty))
    else:
        s = (program - of_eps) * BLOCK_S + tl.arange(0, BLOCK_S)
        for d in tl.static_range(MIXTURES):
            n, i = _total(parts, MIXTURES - 1 - d if SHARED else MIXTURES + d, splits, s, S)
            m, j = _total(parts, d, splits, s, S)
            to = counts + 4 * d * S + s
            tl.store(to, tl.where(m > 0, n, 0), mask=s < S)
            tl.store(to + S, tl.where(n > 0, m, 0), mask=s < S)
            tl.store(to + 2 * S, i, mask=s < S)
            tl.store(to + 3 * S, j, mask=s < S)


@triton.jit
def _met(partners, s, S):
    return tl.load(partners + s, mask=s < S, other=0).to(tl.int32)


@triton.jit(
    do_not_specialize=["splits", "S"],
    do_not_specialize_on_alignment=[
        *("of_samples", "of_components", "of_other_samples", "of_other_components"),
    ],
)
def meet_kernel(
    parts,  # (roles, splits, 2, S) int32
    of_samples,  # (S,): how many components a sample of the first mixture meets, wherever they are
    of_components,  # (S,): how many samples a component meets
    of_other_samples,  # of the second mixture, or None
    of_other_components,
    counts,  # (MIXTURES, 6, S) int32: as of `settle_kernel`; and these numbers
    splits,
    S,
    MIXTURES: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The place of `settle_kernel` where partners are elsewhere."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    for d in tl.static_range(MIXTURES):
        n, i = _total(parts, MIXTURES - 1 - d if SHARED else MIXTURES + d, splits, s, S)
        m, j = _total(parts, d, splits, s, S)
        met_by_samples = _met(of_samples if d == 0 else of_other_samples, s, S)
        met_by_components = _met(of_components if d == 0 else of_other_components, s, S)
        to = counts + 6 * d * S + s
        tl.store(to, tl.where(met_by_samples > 0, n, 0), mask=s < S)
        tl.store(to + S, tl.where(met_by_components > 0, m, 0), mask=s < S)
        tl.store(to + 2 * S, i, mask=s < S)
        tl.store(to + 3 * S, j, mask=s < S)
        tl.store(to + 4 * S, met_by_samples, mask=s < S)
        tl.store(to + 5 * S, met_by_components, mask=s < S)


def prepare(
    stds: Tensor,
    mixtures: Sequence[Mixture],
    counts: Tensor,
    dtype: torch.dtype,
    shared: bool,
    of_eps: int,
    safety_factor: float = 0.0,
    partners: Sequence[Partners] | None = None,
) -> Sequence[Tensor]:
    """Writes the counts (D, 4, S) of one mixture, or of two with the roles of all rows swapped.

    Args:
        shared: the samples of a mixture are the components of the other, with the same mask.
        of_eps: how many roles have stabilisers, which are returned, in `dtype`.
        partners: where they are elsewhere; then counts are (D, 6, S), see `meet_kernel`, and there
            are no stabilisers.
    """
    _, S, E = stds.shape
    first, D = mixtures[0], len(mixtures)
    rows = max(first.samples, first.components)
    roles = D if shared else 2 * D
    tile, flags = features_tile(E, stds), tile_of_positions(S)
    tiles = ceil_div(E, tile.FEATURES)
    programs, rows_per_split = least_splits(rows, tiles * S, tile.ROWS, stds.device)
    splits, rows_per_count = positions_splits(rows, flags.BLOCK_ROWS)
    blocks = ceil_div(S, flags.BLOCK_S)
    least = torch.empty((max(of_eps, 1), programs), dtype=dtype, device=stds.device)
    parts = torch.empty((roles, splits, 2, S), dtype=torch.int32, device=stds.device)
    eps = torch.empty(max(of_eps, 1), dtype=dtype, device=stds.device)
    launch(
        prepare_kernel,
        of_eps * programs + roles * splits * blocks,
        strided(stds),
        strided(first.sample_mask),
        strided(first.component_mask),
        least,
        parts,
        first.sample_rows[0],
        first.component_rows[0],
        first.samples,
        first.components,
        S,
        E,
        tiles,
        of_eps * programs,
        programs,
        rows_per_split,
        splits,
        rows_per_count,
        UNIT=unit(E),
        MIXTURES=D,
        ACC=accumulator(dtype),
        ROWS=tile.ROWS,
        FEATURES=tile.FEATURES,
        BLOCK_ROWS=flags.BLOCK_ROWS,
        BLOCK_S=flags.BLOCK_S,
        num_warps=tile.num_warps,
        maxnreg=ALL_REGISTERS if dtype == torch.float64 else REGISTERS_OF_48_WARPS,
    )
    if partners is not None:
        other = partners[1] if D == 2 else (None, None)
        launch(
            meet_kernel,
            blocks,
            parts,
            *partners[0],
            *other,
            counts,
            splits,
            S,
            MIXTURES=D,
            SHARED=shared,
            BLOCK_S=flags.BLOCK_S,
            num_warps=4,
        )
        return ()
    low, high, smallest, largest = factor_and_bounds(dtype, safety_factor)
    launch(
        settle_kernel,
        of_eps + blocks,
        least,
        parts,
        eps,
        counts,
        of_eps,
        programs,
        splits,
        S,
        low,
        high,
        MIXTURES=D,
        SHARED=shared,
        SMALLEST=smallest,
        LARGEST=largest,
        BLOCK=1024,
        BLOCK_S=flags.BLOCK_S,
        num_warps=4,
    )
    return eps[:of_eps].unbind()


def counts_of(mixtures: Sequence[Mixture], stds: Tensor, swapped: bool) -> Tensor:
    """(D, 4, S), see `settle_kernel`; no stabilisers."""
    S = stds.shape[1]
    counts = torch.empty((len(mixtures), 4, S), dtype=torch.int32, device=stds.device)
    together = len(mixtures) if swapped else 1
    for d in range(0, len(mixtures), together):
        of = slice(d, d + together)
        shared = together == 2 and mixtures[0].sample_mask is mixtures[0].component_mask
        prepare(stds, mixtures[of], counts[of], torch.float32, shared, 0)
    return counts
