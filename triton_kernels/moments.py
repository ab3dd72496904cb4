"""The moments on a GPU: launches of the kernels for one or two mixtures over the same rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from fused_mi._mixture import Mixture, Rows
from fused_mi._passes import Gradients, Pass, gradients, nothing, passes
from fused_mi._precision import accumulation_dtype, moments_dtype
from torch import Tensor

from ._configs import REDUCE, Tile, candidates, finish_tile, lost_tile, splits
from ._launch import accumulator, launch, strided
from ._moments_backward import gradient_kernel
from ._moments_finish import finish_kernel, reduce_kernel
from ._moments_forward import accumulate_kernel
from ._moments_of_pairs import gradient_of_pairs_kernel, sums_of_pairs_kernel
from ._positions import Positions, positions
from ._tune import best

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""y, x, mu, stds: (rows, S, E) each."""


class _Parts(NamedTuple):
    """What `accumulate_kernel` writes for one mixture, see there."""

    samples: Tensor
    split_samples: Tensor
    own: Tensor | None
    components: Tensor


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
    dtype = moments_dtype(*inputs, exact=mixtures[0].exclude_diagonal)
    sums = torch.empty((len(mixtures), 3), dtype=torch.float64, device=y.device)
    if state is None:
        state = torch.empty((len(mixtures), 4, S, E), dtype=dtype, device=y.device)
    if nothing(y, mixtures):
        return sums.zero_(), state.zero_()
    where = [positions(m) for m in mixtures]
    run = functools.partial(_accumulate, inputs, mixtures, where, dtype)
    heavy = dtype == torch.float64 or len(mixtures) > 1
    tiles = candidates(E, *inputs, heavy=heavy)
    tile = best(_key("accumulate", inputs, mixtures), tiles, run, y.device)
    for d, parts in enumerate(run(tile)):
        _finish(inputs, mixtures[d], where[d], parts, sums[d], state[d])
    return sums, state


def _accumulate(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    dtype: torch.dtype,
    tile: Tile,
) -> list[_Parts]:
    _, S, E = inputs[0].shape
    exclude_diagonal = mixtures[0].exclude_diagonal
    empty = functools.partial(torch.empty, dtype=dtype, device=inputs[0].device)
    samples: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    components: dict[int, Tensor] = {}
    tiles = triton.cdiv(E, tile.FEATURES)
    for this in passes(mixtures):
        start, stop = this.rows
        count, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, inputs[0].device)
        of_samples = split_samples = own = of_components = None
        if this.as_samples is not None:
            of_samples = empty((count, 3, S, E))
            split_samples = empty((count, S), dtype=torch.int32)
            own = empty((count, 3, S, E)) if exclude_diagonal else None
            samples[this.as_samples] = of_samples, split_samples, own
        if this.as_components is not None:
            of_components = components[this.as_components] = empty((count, 4, S, E))
        launch(
            accumulate_kernel,
            tiles * S * count,
            *map(strided, inputs),
            *_roles(mixtures, where, this),
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
            **_flags(mixtures, this),
            ACC=accumulator(dtype),
            **tile._asdict(),
        )
    return [_Parts(*samples[d], components[d]) for d in range(len(mixtures))]


def _finish(
    inputs: Inputs, mixture: Mixture, where: Positions, parts: _Parts, sums: Tensor, state: Tensor
) -> None:
    y, x, *_ = inputs
    _, S, E = y.shape
    m = mixture
    sample_splits, component_splits = parts.samples.shape[0], parts.components.shape[0]
    tile = finish_tile(max(sample_splits, component_splits), E)
    tiles = triton.cdiv(E, tile.FEATURES)
    lost = lost_tile(E)
    lost_tiles = triton.cdiv(E, lost.LOOK)
    count, rows_per_split = splits(m.samples, lost_tiles * S, lost.ROWS, y.device)
    programs = tiles * S, lost_tiles * S * count
    partial_sums = torch.empty((sum(programs), 3), dtype=torch.float64, device=y.device)
    of_moments, of_pairs = partial_sums.split(programs)
    launch(
        finish_kernel,
        programs[0],
        strided(y),
        strided(x),
        where.counts,
        parts.samples,
        parts.components,
        parts.own,
        parts.split_samples,
        state,
        of_moments,
        m.sample_rows[0],
        m.component_rows[0],
        sample_splits,
        component_splits,
        S,
        E,
        tiles,
        EXCLUDE_DIAGONAL=m.exclude_diagonal,
        SPARE=state.dtype != accumulation_dtype(*inputs),
        **tile._asdict(),
    )
    launch(
        sums_of_pairs_kernel,
        programs[1],
        *map(strided, inputs),
        m.sample_eps,
        m.component_eps,
        where.sample_active,
        where.component_active,
        state,
        of_pairs,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        rows_per_split,
        S,
        E,
        lost_tiles,
        OWN_STDS=m.sample_eps is not None,
        EXCLUDE_DIAGONAL=m.exclude_diagonal,
        **lost._asdict(),
    )
    launch(reduce_kernel, 1, partial_sums, sums, sum(programs), **REDUCE)


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
