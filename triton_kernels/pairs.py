"""The energies of all pairs on a GPU: launches of the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fused_mi._mixture import Mixture, Rows
from fused_mi._passes import Pass, gradients, nothing
from torch import Tensor

from ._configs import REDUCE, ceil_div
from ._launch import accumulator, launch, strided, unit
from ._pairs_backward import components_gradient_kernel, samples_gradient_kernel
from ._pairs_configs import (
    CHUNK,
    PAIRS_PADDING,
    careful_programs,
    pairs_gradient_tile,
    pairs_splits,
    pairs_tile,
)
from ._pairs_forward import add_splits_kernel, distances_kernel
from ._pairs_logs import Inputs, dtype_of, logs_of, pair_logs
from ._positions import Positions, positions
from ._shift import shift_of
from ._sum_weights import sum_weights

ARGUMENTS = 16
"""Of a kernel of gradients, those of `of_mixture` and the pull."""


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
    if nothing(y, mixtures):
        return energies.zero_()
    for mixture, (q, g, k) in zip(mixtures, energies, strict=True):
        where = positions(mixture)
        # First: it looks at every variance.
        logs = logs_of(inputs, mixture, where)
        pair_logs(logs, where, g, k)
        _distances(inputs, mixture, where, q)
    return energies


def _distances(inputs: Inputs, mixture: Mixture, where: Positions, q: Tensor) -> None:
    y, x, _, stds = inputs
    _, S, E = y.shape
    N, M = q.shape
    shift = shift_of(x, stds, mixture, where.component_active)
    dtype = dtype_of(inputs)
    chunks_per_position = ceil_div(E, CHUNK)
    itemsize = min(t.element_size() for t in inputs if t is not None)
    tile = pairs_tile(N, M, dtype)
    tiles = ceil_div(N, tile.SAMPLES) * ceil_div(M, tile.COMPONENTS)
    splits, chunks_per_split = pairs_splits(S * chunks_per_position, tiles, y.device)
    parts = torch.empty((splits, N, M), dtype=dtype, device=y.device)
    common = of_mixture(inputs, mixture, where, shift)
    for careful, acc in launches(inputs):
        tile = pairs_tile(N, M, acc, itemsize)
        tiles_n, tiles_m = ceil_div(N, tile.SAMPLES), ceil_div(M, tile.COMPONENTS)
        launch(
            distances_kernel,
            tiles_n * tiles_m * splits,
            *common,
            parts,
            tiles_n,
            tiles_m,
            chunks_per_position,
            chunks_per_split,
            UNIT=unit(E),
            EVEN=E % (tile.FEATURES * tile.VECTOR) == 0,
            CAREFUL=careful,
            ACC=accumulator(acc),
            CHUNK=CHUNK,
            **tile._asdict(),
        )
    launch(
        add_splits_kernel,
        ceil_div(N * M, REDUCE["BLOCK"]),
        parts,
        where.irregular,
        q,
        N * M,
        splits,
        **REDUCE,
    )


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
        d_y, *rest = (t if here else None for t, here in zip(plan.tensors, write, strict=True))
        i = this.as_samples
        if d_y is not None and i is None:
            d_y[slice(*this.rows)].zero_()
        elif d_y is not None and i is not None:
            common = of_mixture(inputs, mixtures[i], where[i], shifts[i])
            pull = _padded(upstream[i, 0].T, dtype_of(inputs))
            to = d_y, 1, mixtures[i].components, this.rows[0], 0
            _gradient(samples_gradient_kernel, inputs, this.rows, common, pull, *to)
        if any(write[1:]):
            _components_gradient(inputs, mixtures, where, shifts, this, upstream, rest)
    return plan.tensors


def _components_gradient(
    inputs: Inputs,
    mixtures: Sequence[Mixture],
    where: Sequence[Positions],
    shifts: Sequence[Tensor],
    this: Pass,
    upstream: Tensor,
    tensors: Sequence[Tensor | None],
) -> None:
    i, j = this.as_samples, this.as_components
    start, stop = this.rows
    pull = of_logs = own_eps = own_active = of_own = None
    common: tuple[Any, ...]
    if j is None:
        bounds = 0, start, 0, stop - start, *inputs[0].shape[1:]
        common = (*map(strided, inputs), *(None,) * 4, where[0].irregular, *bounds)
    else:
        common = of_mixture(inputs, mixtures[j], where[j], shifts[j])
        pull = _padded(upstream[j, 0], dtype_of(inputs))
        if tensors[2] is not None:
            count, S = where[j].component_active.shape
            of_logs = torch.empty((count, S), dtype=torch.float64, device=upstream.device)
            active, flag = where[j].sample_active, where[j].irregular
            sum_weights(upstream[j, 1].T, active, flag, of_logs, len(active))
    if tensors[2] is not None and i is not None and mixtures[i].sample_eps is not None:
        own_eps, own_active = mixtures[i].sample_eps, where[i].sample_active
        of_own = torch.empty(
            where[i].sample_active.shape, dtype=torch.float64, device=upstream.device
        )
        active, flag = where[i].component_active, where[i].irregular
        sum_weights(upstream[i, 2], active, flag, of_own, len(active))
    own = own_eps, own_active, of_own
    kernel = components_gradient_kernel
    _gradient(kernel, inputs, this.rows, common, pull, of_logs, *own, *tensors, 0)


def _gradient(
    kernel: Any, inputs: Inputs, rows: Rows, common: Sequence[Any], pull: Tensor | None, *rest: Any
) -> None:
    """Launches of a kernel that writes gradients of these rows."""
    for careful, dtype in launches(inputs):
        count = rows[1] - rows[0]
        launch_gradient(kernel, inputs, count, 1, careful, dtype, *common, pull, *rest)


def launch_gradient(
    kernel: Any,
    inputs: Inputs,
    count: int,
    splits: int,
    careful: bool,
    dtype: torch.dtype,
    *arguments: Any,
) -> None:
    """One launch of a kernel that writes gradients of `count` rows, by programs that share the
    other role's rows, or none; the arguments up to the pull, the pull and the others."""
    *common, pull = arguments[:ARGUMENTS]
    _, S, E = inputs[0].shape
    tile = pairs_gradient_tile(count, E, dtype, 1 if kernel is samples_gradient_kernel else 2)
    tiles, tiles_e = ceil_div(count, tile.ROWS), ceil_div(E, tile.FEATURES)
    programs = tiles * tiles_e * S * splits
    launch(
        kernel,
        careful_programs(programs, inputs[0].device) if careful else programs,
        *common,
        tiles,
        tiles_e,
        strided(pull),
        *arguments[ARGUMENTS:],
        UNIT=unit(E),
        CAREFUL=careful,
        ACC=accumulator(dtype),
        **tile._asdict(),
    )


def of_mixture(
    inputs: Inputs, mixture: Mixture, where: Positions, shift: Tensor
) -> tuple[Any, ...]:
    """The first arguments of all kernels of pairs."""
    m = mixture
    return (
        *map(strided, inputs),
        m.component_eps,
        where.sample_active,
        where.component_active,
        shift,
        where.irregular,
        m.sample_rows[0],
        m.component_rows[0],
        m.samples,
        m.components,
        *inputs[0].shape[1:],
    )


def launches(inputs: Inputs) -> Sequence[tuple[bool, torch.dtype]]:
    """Of one kernel, with the type of their arithmetic: the usual one, and the careful one, which
    returns at once where the former has found nothing out of range."""
    return (False, dtype_of(inputs)), (True, torch.float64)


def _padded(upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, with zeros up to whole tiles: loads of it need no mask."""
    rows, columns = (ceil_div(size, PAIRS_PADDING) * PAIRS_PADDING for size in upstream.shape)
    result = torch.zeros((rows, columns), dtype=dtype, device=upstream.device)
    result[: upstream.shape[0], : upstream.shape[1]] = upstream
    return result
