"""The energies of all pairs on a GPU: launches of the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from fused_mi._mixture import Mixture, Rows
from fused_mi._passes import Pass, gradients, nothing
from fused_mi._precision import moments_dtype
from torch import Tensor

from ._configs import (
    CHUNK,
    PAIRS_PADDING,
    REDUCE,
    log_tile,
    pairs_gradient_tile,
    pairs_splits,
    pairs_tile,
)
from ._launch import accumulator, launch, strided
from ._pairs_backward import components_gradient_kernel, samples_gradient_kernel
from ._pairs_forward import add_splits_kernel, distances_kernel, log_determinants_kernel
from ._positions import Positions, positions
from ._shift import shift_of

Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]
"""y, x, mu, stds: (rows, S, E) each; mu None is 0."""


def pairs(
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    energies: Tensor | None = None,
) -> Tensor:
    """See `fused_mi.reference.pairs.pairs`."""
    inputs = (y, x, mu, stds)
    if energies is None:
        shape = len(mixtures), 3, mixtures[0].samples, mixtures[0].components
        energies = torch.empty(shape, dtype=torch.float64, device=y.device)
    energies.zero_()
    if nothing(y, mixtures):
        return energies
    for mixture, (q, g, k) in zip(mixtures, energies, strict=True):
        where = positions(mixture)
        rows, eps = mixture.component_rows, mixture.component_eps
        # First: it looks at every variance.
        logs = _log_determinants(inputs, rows, eps, where.component_active, where.irregular)
        torch.matmul(where.sample_active.double(), logs.T, out=g)
        if mixture.sample_eps is not None:
            rows, eps = mixture.sample_rows, mixture.sample_eps
            logs = _log_determinants(inputs, rows, eps, where.sample_active, where.irregular)
            torch.matmul(logs, where.component_active.double().T, out=k)
        _distances(inputs, mixture, where, q)
    return energies


def _distances(inputs: Inputs, mixture: Mixture, where: Positions, q: Tensor) -> None:
    y, x, mu, stds = inputs
    _, S, E = y.shape
    N, M = q.shape
    shift = shift_of(x, stds, mixture, where.component_active)
    dtype = _dtype(inputs)
    chunks_per_position = triton.cdiv(E, CHUNK)
    tile = pairs_tile(N, M, dtype)
    tiles = triton.cdiv(N, tile.SAMPLES) * triton.cdiv(M, tile.COMPONENTS)
    splits, chunks_per_split = pairs_splits(S * chunks_per_position, tiles, y.device)
    parts = torch.empty((splits, N, M), dtype=dtype, device=y.device)
    for careful, acc in _launches(inputs):
        tile = pairs_tile(N, M, acc)
        tiles_n, tiles_m = triton.cdiv(N, tile.SAMPLES), triton.cdiv(M, tile.COMPONENTS)
        launch(
            distances_kernel,
            tiles_n * tiles_m * splits,
            *map(strided, inputs),
            mixture.component_eps,
            where.sample_active,
            where.component_active,
            shift,
            where.irregular,
            parts,
            mixture.sample_rows[0],
            mixture.component_rows[0],
            N,
            M,
            S,
            E,
            tiles_n,
            tiles_m,
            chunks_per_position,
            chunks_per_split,
            HAS_MU=mu is not None,
            EVEN=E % tile.FEATURES == 0,
            CAREFUL=careful,
            ACC=accumulator(acc),
            CHUNK=CHUNK,
            **tile._asdict(),
        )
    launch(
        add_splits_kernel,
        triton.cdiv(N * M, REDUCE["BLOCK"]),
        parts,
        where.irregular,
        q,
        N * M,
        splits,
        **REDUCE,
    )


def _log_determinants(
    inputs: Inputs, rows: Rows, eps: Tensor, active: Tensor, irregular: Tensor
) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (rows, S) in float64, 0 where not active."""
    stds = inputs[3]
    _, S, E = stds.shape
    start, stop = rows
    logs = torch.empty((stop - start, S), dtype=torch.float64, device=stds.device)
    launch(
        log_determinants_kernel,
        (stop - start) * S,
        strided(stds),
        eps,
        active,
        logs,
        irregular,
        start,
        stop - start,
        S,
        E,
        ACC=accumulator(_dtype(inputs)),
        **log_tile(E),
    )
    return logs


def pairs_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    state: None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `fused_mi.reference.pairs.pairs_backward`."""
    inputs = (y, x, mu, stds)
    plan = gradients(inputs, mixtures, wanted)
    where = [positions(m) for m in mixtures] if plan.passes else []
    shifts = [
        shift_of(x, stds, m, w.component_active) for m, w in zip(mixtures, where, strict=False)
    ]
    for this, write in plan.passes:
        d_y, i = plan.tensors[0], this.as_samples
        if d_y is not None and write[0]:
            if i is None:
                d_y[slice(*this.rows)].zero_()
            else:
                _samples_gradient(inputs, mixtures[i], where[i], shifts[i], upstream[i, 0], d_y)
        if any(write[1:]):
            _components_gradient(
                inputs, mixtures, where, shifts, this, upstream, plan.tensors, write
            )
    return plan.tensors


def _samples_gradient(
    inputs: Inputs, mixture: Mixture, where: Positions, shift: Tensor, upstream: Tensor, d_y: Tensor
) -> None:
    y, _, mu, _ = inputs
    _, S, E = y.shape
    N, M = upstream.shape
    pull = _padded(upstream.T, _dtype(inputs))
    for careful, dtype in _launches(inputs):
        tile = pairs_gradient_tile(N, E, dtype)
        tiles_n, tiles_e = triton.cdiv(N, tile.ROWS), triton.cdiv(E, tile.FEATURES)
        launch(
            samples_gradient_kernel,
            tiles_n * tiles_e * S,
            *map(strided, inputs),
            mixture.component_eps,
            where.sample_active,
            where.component_active,
            shift,
            where.irregular,
            pull,
            d_y,
            mixture.sample_rows[0],
            mixture.component_rows[0],
            N,
            M,
            S,
            E,
            tiles_n,
            tiles_e,
            pull.stride(0),
            HAS_MU=mu is not None,
            CAREFUL=careful,
            ACC=accumulator(dtype),
            **tile._asdict(),
        )


def _components_gradient(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    shifts: Sequence[Tensor],
    this: Pass,
    upstream: Tensor,
    gradients: Sequence[Tensor | None],
    write: Sequence[bool],
) -> None:
    y, _, mu, _ = inputs
    _, S, E = y.shape
    i, j = this.as_samples, this.as_components
    start, stop = this.rows
    own = i is not None and mixtures[i].sample_eps is not None
    of_logs = of_own = None
    if write[3] and j is not None:
        of_logs = upstream[j, 1].T @ where[j].sample_active.double()
    if write[3] and own and i is not None:
        of_own = upstream[i, 2] @ where[i].component_active.double()
    M = stop - start
    pull = None if j is None else _padded(upstream[j, 0], _dtype(inputs))
    for careful, dtype in _launches(inputs):
        tile = pairs_gradient_tile(M, E, dtype)
        tiles_m, tiles_e = triton.cdiv(M, tile.ROWS), triton.cdiv(E, tile.FEATURES)
        launch(
            components_gradient_kernel,
            tiles_m * tiles_e * S,
            *map(strided, inputs),
            None if j is None else mixtures[j].component_eps,
            mixtures[i].sample_eps if own and i is not None else None,
            None if j is None else where[j].sample_active,
            None if j is None else where[j].component_active,
            where[i].sample_active if own and i is not None else None,
            None if j is None else shifts[j],
            where[this.as_components or 0].irregular,
            pull,
            of_logs,
            of_own,
            *gradients[1:],
            0 if j is None else mixtures[j].sample_rows[0],
            start,
            0 if j is None else mixtures[j].samples,
            M,
            S,
            E,
            tiles_m,
            tiles_e,
            0 if pull is None else pull.stride(0),
            HAS_MU=mu is not None,
            COMPONENTS=j is not None and any(write[1:]),
            OWN_STDS=own and write[3],
            **dict(zip(("D_X", "D_MU", "D_STDS"), write[1:], strict=True)),
            CAREFUL=careful,
            ACC=accumulator(dtype),
            **tile._asdict(),
        )


def _launches(inputs: Inputs) -> Sequence[tuple[bool, torch.dtype]]:
    """Of one kernel, with the type of their arithmetic: the usual one, and the careful one, which
    returns at once where the former has found nothing out of range."""
    return (False, _dtype(inputs)), (True, torch.float64)


def _padded(upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, with zeros up to whole tiles: loads of it need no mask."""
    rows, columns = (triton.cdiv(size, PAIRS_PADDING) * PAIRS_PADDING for size in upstream.shape)
    result = torch.zeros((rows, columns), dtype=dtype, device=upstream.device)
    result[: upstream.shape[0], : upstream.shape[1]] = upstream
    return result


def _dtype(inputs: Inputs) -> torch.dtype:
    return moments_dtype(*(t for t in inputs if t is not None), exact=False)
