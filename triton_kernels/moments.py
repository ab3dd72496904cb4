"""The moments on a GPU: launches of the kernels for one or two mixtures over the same rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from fused_mi._mixture import Mixture, Rows
from fused_mi._passes import Gradients, Pass, gradients, nothing
from fused_mi._precision import accumulation_dtype, moments_dtype
from torch import Tensor

from ._configs import (
    REDUCE,
    LostTile,
    MomentsTile,
    Tile,
    candidates,
    finish_tile,
    lost_tile,
    moments_splits,
    moments_tiles,
    splits,
)
from ._launch import accumulator, launch, strided
from ._leave_one_out import leave_one_out_finish_kernel, leave_one_out_kernel
from ._moments_backward import gradient_kernel
from ._moments_finish import finish_kernel, reduce_kernel
from ._moments_forward import accumulate_kernel
from ._moments_of_pairs import gradient_of_pairs_kernel, sums_of_pairs_kernel
from ._positions import Positions, positions
from ._tune import best

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""y, x, mu, stds: (rows, S, E) each."""


def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.moments.moments`."""
    inputs = (y, x, mu, stds)
    _, S, E = y.shape
    exact = mixtures[0].exclude_diagonal
    dtype = moments_dtype(*inputs, exact=exact)
    sums = torch.empty((len(mixtures), 3), dtype=torch.float64, device=y.device)
    if state is None:
        state = torch.empty((len(mixtures), 4, S, E), dtype=dtype, device=y.device)
    if nothing(y, mixtures):
        return sums.zero_(), state.zero_()
    where = [positions(m) for m in mixtures]
    together = len(mixtures) if _swapped(mixtures) else 1
    if exact:
        forward, tiles = _leave_one_out, candidates(E, *inputs, heavy=True)
    else:
        forward, tiles = _forward, moments_tiles(E, *inputs, both=together == 2)
    for d in range(0, len(mixtures), together):
        of = slice(d, d + together)
        run = functools.partial(forward, inputs, mixtures[of], where[of], sums[of], state[of])
        run(best(_key("forward", inputs, mixtures[of]), tiles, run, y.device))
    return sums, state


def _swapped(mixtures: Sequence[Mixture]) -> bool:
    """Whether the rows of two mixtures have variances in both roles: they are read once."""
    first, other = mixtures[0], mixtures[-1]
    rows = first.sample_rows, first.component_rows
    swapped = rows == (other.component_rows, other.sample_rows)
    return len(mixtures) == 2 and swapped and first.sample_eps is not None


def _forward(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    sums: Tensor,
    state: Tensor,
    tile: MomentsTile,
) -> None:
    """Of one mixture, or of two that are `_swapped`."""
    D, _, S, E = state.shape
    first, other = mixtures[0], mixtures[-1]
    N, M = first.samples, first.components
    tiles = triton.cdiv(E, tile.FEATURES)
    split = moments_splits(N, M, tiles * S, tile.ROWS, state.device)
    programs = tiles * S * split.count
    merge = finish_tile(E)
    merge_tiles = triton.cdiv(E, merge.FEATURES)
    merge_programs = merge_tiles * S if split.count > 1 else 0
    partial_sums, of_pairs = _partial_sums(D, programs + merge_programs, first, S, E, sums)
    # Where there is one split, nothing goes there.
    parts = state if split.count == 1 else state.new_empty((D, split.count, 5, S, E))
    split_samples = state if split.count == 1 else state.new_empty((D, split.count, S))
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
        split.count,
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
                split.count,
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


def _leave_one_out(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    sums: Tensor,
    state: Tensor,
    tile: Tile,
) -> None:
    _, _, S, E = state.shape
    (mixture,), (of,) = mixtures, where
    start, stop = mixture.sample_rows
    tiles = triton.cdiv(E, tile.FEATURES)
    count, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, state.device)
    merge = finish_tile(E)
    merge_tiles = triton.cdiv(E, merge.FEATURES)
    partial_sums, of_pairs = _partial_sums(1, merge_tiles * S, mixture, S, E, sums)
    of_samples, own = (state.new_empty((count, 3, S, E)) for _ in range(2))
    of_components = state.new_empty((count, 4, S, E))
    split_samples = torch.empty((count, S), dtype=torch.int32, device=state.device)
    launch(
        leave_one_out_kernel,
        tiles * S * count,
        *map(strided, inputs),
        *_constants(mixture, of),
        of_samples,
        of_components,
        own,
        split_samples,
        start,
        stop - start,
        rows_per_split,
        S,
        E,
        tiles,
        OWN_STDS=mixture.sample_eps is not None,
        ACC=accumulator(state.dtype),
        **tile._asdict(),
    )
    launch(
        leave_one_out_finish_kernel,
        merge_tiles * S,
        *map(strided, inputs[:3]),
        of.counts,
        of_samples,
        of_components,
        own,
        split_samples,
        state[0],
        partial_sums,
        start,
        count,
        S,
        E,
        merge_tiles,
        SPARE=state.dtype != accumulation_dtype(*inputs),
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
        *_constants(m, where)[:4],
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
        OWN_STDS=m.sample_eps is not None,
        EXCLUDE_DIAGONAL=m.exclude_diagonal,
        **tile._asdict(),
    )


def moments_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    state: Tensor,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `fused_mi.reference.moments.moments_backward`."""
    inputs = (y, x, mu, stds)
    plan = gradients(inputs, mixtures, wanted)
    if not plan.passes:
        return plan.tensors
    where = [positions(m) for m in mixtures]
    run = functools.partial(_gradients, upstream.contiguous(), inputs, state, mixtures, where, plan)
    key = _key("gradient", inputs, mixtures, *wanted)
    tiles = candidates(y.shape[2], *inputs, heavy=state.dtype == torch.float64)
    run(best(key, tiles, run, y.device))
    return plan.tensors


def _gradients(
    upstream: Tensor,
    inputs: Inputs,
    state: Tensor,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    plan: Gradients,
    tile: Tile,
) -> None:
    _, S, E = inputs[0].shape
    lost = lost_tile(E)
    tiles, lost_tiles = triton.cdiv(E, tile.FEATURES), triton.cdiv(E, lost.LOOK)
    for this, write in plan.passes:
        if not any(write):
            continue
        i, j = this.as_samples, this.as_components
        start, stop = this.rows
        first, last = _partners(mixtures, this)
        *roles, of_samples, of_components = _roles(mixtures, where, this)
        common = (
            *map(strided, inputs),
            *roles,
            *_of_roles(state, this),
            *_of_roles(upstream, this),
            *(tensor if here else None for tensor, here in zip(plan.tensors, write, strict=True)),
            start,
            stop - start,
            first,
            S,
            E,
        )
        flags = _flags(mixtures, this)
        count, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, upstream.device)
        launch(
            gradient_kernel,
            tiles * S * count,
            *common,
            rows_per_split,
            tiles,
            of_samples,
            of_components,
            **flags,
            ACC=accumulator(state.dtype),
            **tile._asdict(),
        )
        count, rows_per_split = splits(stop - start, lost_tiles * S, lost.ROWS, upstream.device)
        launch(
            gradient_of_pairs_kernel,
            lost_tiles * S * count,
            *common,
            rows_per_split,
            lost_tiles,
            last - first,
            None if i is None else mixtures[i].component_eps,
            None if i is None else where[i].component_active,
            None if j is None else where[j].sample_active,
            **flags,
            **lost._asdict(),
        )


def _partners(mixtures: Sequence[Mixture], this: Pass) -> Rows:
    """The rows that those of a pass meet, in either role."""
    i, j = this.as_samples, this.as_components
    return mixtures[j].sample_rows if i is None else mixtures[i].component_rows  # type: ignore[index]


def _of_roles(tensor: Tensor, this: Pass) -> list[Tensor | None]:
    """Of a tensor (mixtures, ...) the parts of both roles, None where a pass lacks the role."""
    return [None if d is None else tensor[d] for d in (this.as_samples, this.as_components)]


def _key(name: str, inputs: Inputs, mixtures: Sequence[Mixture], *flags: bool) -> tuple[Any, ...]:
    """What the fastest tile depends on; sizes by powers of two, for new batches find it too."""
    rows, S, E = inputs[0].shape
    sizes = (rows.bit_length(), (S * E).bit_length(), E.bit_length(), E % 16 == 0)
    both = mixtures[0].exclude_diagonal, len(mixtures)
    return (name, *sizes, *(str(t.dtype) for t in inputs), *both, *flags)


def _roles(
    mixtures: Sequence[Mixture], where: Sequence[Positions], this: Pass
) -> tuple[Tensor | None, ...]:
    """eps, active positions and counts of both roles, None where a pass lacks the role."""
    i, j = this.as_samples, this.as_components
    return (
        None if i is None else mixtures[i].sample_eps,
        None if j is None else mixtures[j].component_eps,
        None if i is None else where[i].sample_active,
        None if j is None else where[j].component_active,
        None if i is None else where[i].counts,
        None if j is None else where[j].counts,
    )


def _flags(mixtures: Sequence[Mixture], this: Pass) -> dict[str, Any]:
    i, j = this.as_samples, this.as_components
    return {
        "SAMPLES": i is not None,
        "OWN_STDS": i is not None and mixtures[i].sample_eps is not None,
        "COMPONENTS": j is not None,
        "EXCLUDE_DIAGONAL": mixtures[0].exclude_diagonal,
    }
