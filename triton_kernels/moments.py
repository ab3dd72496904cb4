"""The moments on a GPU: launches of the kernels for one or two mixtures over the same rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from fused_mi._mixture import Mixture
from fused_mi._passes import Gradients, Pass, gradients, nothing, passes
from fused_mi._precision import moments_dtype
from torch import Tensor

from ._configs import REDUCE, Tile, candidates, careful_tile, finish_tile, splits
from ._launch import accumulator, launch, strides
from ._moments_backward import gradient_kernel
from ._moments_careful import accumulate_carefully_kernel
from ._moments_finish import finish_kernel, reduce_kernel
from ._moments_forward import accumulate_kernel
from ._positions import Positions, positions
from ._tune import best

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""y, x, mu, stds: (rows, S, E) each."""


class _Parts(NamedTuple):
    """What `accumulate_kernel` writes for one mixture, see there."""

    samples: Tensor
    split_samples: Tensor
    diagonal: Tensor | None
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
        _finish(inputs, mixtures[d], where[d], where[0].irregular, parts, sums[d], state[d])
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
    careful = careful_tile(E, inputs[0].device)
    tiles, careful_tiles = (triton.cdiv(E, t.FEATURES) for t in (tile, careful))
    for this in passes(mixtures):
        start, stop = this.rows
        count, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, inputs[0].device)
        of_samples = split_samples = diagonal = of_components = None
        if this.as_samples is not None:
            of_samples, split_samples = (
                empty((count, 3, S, E)),
                empty((count, S), dtype=torch.int32),
            )
            diagonal = empty((count, S, E)) if exclude_diagonal else None
            samples[this.as_samples] = of_samples, split_samples, diagonal
        if this.as_components is not None:
            of_components = components[this.as_components] = empty((count, 4, S, E))
        arguments = (
            *inputs,
            *_roles(mixtures, where, this),
            of_samples,
            of_components,
            diagonal,
            split_samples,
            where[0].irregular,
            *strides(*inputs),
            start,
            stop - start,
            rows_per_split,
            S,
            E,
        )
        launch(
            accumulate_kernel,
            tiles * S * count,
            *arguments,
            tiles,
            **_flags(mixtures, this),
            ACC=accumulator(dtype),
            **tile._asdict(),
        )
        launch(
            accumulate_carefully_kernel,
            careful_tiles * S * count,
            *arguments,
            careful_tiles,
            **_flags(mixtures, this),
            FEATURES=careful.FEATURES,
            num_warps=careful.num_warps,
        )
    return [_Parts(*samples[d], components[d]) for d in range(len(mixtures))]


def _finish(
    inputs: Inputs,
    mixture: Mixture,
    where: Positions,
    irregular: Tensor,
    parts: _Parts,
    sums: Tensor,
    state: Tensor,
) -> None:
    y, x, *_ = inputs
    _, S, E = y.shape
    sample_splits, component_splits = parts.samples.shape[0], parts.components.shape[0]
    tile = finish_tile(max(sample_splits, component_splits), E)
    tiles = triton.cdiv(E, tile.FEATURES)
    partial_sums = torch.empty((tiles * S, 3), dtype=torch.float64, device=y.device)
    launch(
        finish_kernel,
        tiles * S,
        y,
        x,
        where.counts,
        parts.samples,
        parts.components,
        parts.diagonal,
        parts.split_samples,
        irregular,
        state,
        partial_sums,
        *strides(y, x),
        mixture.sample_rows[0],
        mixture.component_rows[0],
        sample_splits,
        component_splits,
        S,
        E,
        tiles,
        EXCLUDE_DIAGONAL=mixture.exclude_diagonal,
        **tile._asdict(),
    )
    launch(reduce_kernel, 1, partial_sums, sums, tiles * S, **REDUCE)


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
    run(careful_tile(y.shape[2], y.device), careful=True)
    return plan.tensors


def _gradients(
    upstream: Tensor,
    inputs: Inputs,
    state: Tensor,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    plan: Gradients,
    tile: Tile,
    careful: bool = False,
) -> None:
    _, S, E = inputs[0].shape
    tiles = triton.cdiv(E, tile.FEATURES)
    for this, write in plan.passes:
        if not any(write):
            continue
        start, stop = this.rows
        count, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, inputs[0].device)
        i, j = this.as_samples, this.as_components
        partners = mixtures[j].sample_rows if i is None else mixtures[i].component_rows
        sample_eps, component_eps, *rest = _roles(mixtures, where, this)
        launch(
            gradient_kernel,
            tiles * S * count,
            *inputs,
            sample_eps,
            component_eps,
            *rest,
            None if i is None else state[i],
            None if j is None else state[j],
            None if i is None else upstream[i],
            None if j is None else upstream[j],
            *plan.tensors,
            *strides(*inputs),
            start,
            stop - start,
            rows_per_split,
            partners[0],
            S,
            E,
            tiles,
            **_flags(mixtures, this),
            **dict(zip(("D_Y", "D_X", "D_MU", "D_STDS"), write, strict=True)),
            CAREFUL=careful,
            ACC=accumulator(torch.float64 if careful else state.dtype),
            **tile._asdict(),
        )


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
