"""The moments on a GPU: launches of the kernels for one or two mixtures over the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from fused_mi.reference.mixture import Mixture
from fused_mi.reference.variance import moments_dtype

from ._configs import REDUCE, features_tile, finish_tile, splits
from ._launch import accumulator, launch
from ._moments_backward import gradient_kernel
from ._moments_forward import accumulate_kernel, finish_kernel, reduce_kernel
from ._moments_passes import cover, passes, writes
from ._positions import Positions, positions


def moments(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, mixtures: Sequence[Mixture]
) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.moments.moments`."""
    _, S, E = y.shape
    device, count = y.device, len(mixtures)
    exclude_diagonal = mixtures[0].exclude_diagonal
    dtype = moments_dtype(y, x, mu, stds, exact=exclude_diagonal)
    sums = torch.empty((count, 3), dtype=torch.float64, device=device)
    state = torch.empty((count, 4, S, E), dtype=dtype, device=device)
    if not S * E or any(m.samples * m.components == 0 for m in mixtures):
        return sums.zero_(), state.zero_()
    where = [positions(m) for m in mixtures]
    tile = features_tile(E, y, x, mu, stds)
    tiles = triton.cdiv(E, tile.FEATURES)

    def empty(splits: int, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty((splits, *shape), dtype=dtype, device=device)

    sample_parts: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}
    component_parts: dict[int, Tensor] = {}
    for rows, i, l in passes(mixtures):
        start, stop = rows
        batch_splits, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, device)
        if i is not None:
            sample_parts[i] = (
                empty(batch_splits, 3, S, E),
                empty(batch_splits, S, dtype=torch.int32),
                empty(batch_splits, S, E) if exclude_diagonal else None,
            )
        if l is not None:
            component_parts[l] = empty(batch_splits, 4, S, E)
        of_samples, split_samples, diagonal = (None,) * 3 if i is None else sample_parts[i]
        launch(
            accumulate_kernel,
            tiles * S * batch_splits,
            y,
            x,
            mu,
            stds,
            *_roles(mixtures, where, i, l),
            of_samples,
            None if l is None else component_parts[l],
            diagonal,
            split_samples,
            *_strides(y, x, mu, stds),
            start,
            stop - start,
            rows_per_split,
            S,
            E,
            tiles,
            **_flags(mixtures, i, l),
            ACC=accumulator(dtype),
            **tile.meta(),
        )
    finish = finish_tile(E)
    tiles = triton.cdiv(E, finish.FEATURES)
    for d, mixture in enumerate(mixtures):
        of_samples, split_samples, diagonal = sample_parts[d]
        partial_sums = torch.empty((tiles * S, 3), dtype=torch.float64, device=device)
        launch(
            finish_kernel,
            tiles * S,
            y,
            x,
            where[d].counts,
            of_samples,
            component_parts[d],
            diagonal,
            split_samples,
            state[d],
            partial_sums,
            *_strides(y, x),
            mixture.sample_rows[0],
            mixture.component_rows[0],
            of_samples.shape[0],
            component_parts[d].shape[0],
            S,
            E,
            tiles,
            EXCLUDE_DIAGONAL=exclude_diagonal,
            FEATURES=finish.FEATURES,
            num_warps=finish.num_warps,
        )
        launch(
            reduce_kernel,
            1,
            partial_sums,
            mixture.component_eps,
            sums[d],
            tiles * S,
            ACC=accumulator(dtype),
            **REDUCE,
        )
    return sums, state


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
    _, S, E = y.shape
    sample_rows = [m.sample_rows for m in mixtures]
    component_rows = [m.component_rows for m in mixtures]
    own = sample_rows if mixtures[0].sample_eps is not None else []
    with_gradient = (sample_rows, component_rows, component_rows, component_rows + own)
    nothing = not S * E or any(m.samples * m.components == 0 for m in mixtures)

    everything = [] if nothing else passes(mixtures)
    gradients: list[Tensor | None] = []
    for tensor, needed, of_role in zip((y, x, mu, stds), wanted, with_gradient, strict=True):
        written = [p.rows for p in everything if writes(p.rows, of_role)]
        new = torch.empty if cover(written, tensor.shape[0]) else torch.zeros
        shape, dtype = tensor.shape, tensor.dtype
        gradients.append(new(shape, dtype=dtype, device=y.device) if needed else None)
    if nothing:
        return gradients

    where = [positions(m) for m in mixtures]
    upstream = upstream.contiguous()
    tile = features_tile(E, y, x, mu, stds)
    tiles = triton.cdiv(E, tile.FEATURES)
    for rows, i, l in everything:
        start, stop = rows
        batch_splits, rows_per_split = splits(stop - start, tiles * S, tile.ROWS, y.device)
        partners = mixtures[i].component_rows if i is not None else mixtures[l].sample_rows
        write = [
            g is not None and writes(rows, of_role)
            for g, of_role in zip(gradients, with_gradient, strict=True)
        ]
        if not any(write):
            continue
        sample_eps, component_eps, *rest = _roles(mixtures, where, i, l)
        launch(
            gradient_kernel,
            tiles * S * batch_splits,
            y,
            x,
            mu,
            stds,
            sample_eps,
            component_eps,
            None if i is None else mixtures[i].component_eps,
            *rest,
            None if i is None else state[i],
            None if l is None else state[l],
            None if i is None else upstream[i],
            None if l is None else upstream[l],
            *gradients,
            *_strides(y, x, mu, stds),
            start,
            stop - start,
            rows_per_split,
            partners[0],
            S,
            E,
            tiles,
            **_flags(mixtures, i, l),
            **dict(zip(("D_Y", "D_X", "D_MU", "D_STDS"), write, strict=True)),
            ACC=accumulator(state.dtype),
            **tile.meta(),
        )
    return gradients


def _roles(
    mixtures: Sequence[Mixture], where: Sequence[Positions], i: int | None, l: int | None
) -> tuple[Tensor | None, ...]:
    """eps, active positions and counts of both roles, None where a pass lacks the role."""
    return (
        None if i is None else mixtures[i].sample_eps,
        None if l is None else mixtures[l].component_eps,
        None if i is None else where[i].sample_active,
        None if l is None else where[l].component_active,
        None if i is None else where[i].counts,
        None if l is None else where[l].counts,
    )


def _flags(mixtures: Sequence[Mixture], i: int | None, l: int | None) -> dict[str, Any]:
    return {
        "SAMPLES": i is not None,
        "OWN_STDS": i is not None and mixtures[i].sample_eps is not None,
        "COMPONENTS": l is not None,
        "EXCLUDE_DIAGONAL": mixtures[0].exclude_diagonal,
    }


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()]
