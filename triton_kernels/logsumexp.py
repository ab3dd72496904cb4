"""The loss of all pairs from their energies: some rows of a program, then one program for means."""

from __future__ import annotations

from typing import Any

import torch
from fused_mi._building_blocks import Own
from fused_mi._estimators import ROWS
from torch import Tensor

from ._configs import REDUCE, ceil_div
from ._launch import launch
from ._logsumexp_kernels import (
    logsumexp_gradient_kernel,
    logsumexp_means_kernel,
    logsumexp_state_kernel,
)
from ._pairs_configs import logsumexp_tile


def logsumexp(energies: Tensor, own: Own | None) -> Tensor:
    """See `fused_mi.reference.logsumexp.logsumexp`."""
    energies = energies.contiguous()
    directions, _, N, M = energies.shape
    rows = torch.empty((directions, ROWS, N), dtype=torch.float64, device=energies.device)
    tile = logsumexp_tile(M, energies.device)
    tiles = ceil_div(N, tile.ROWS)
    launch(
        logsumexp_state_kernel,
        directions * tiles,
        energies,
        rows,
        N,
        M,
        *own_arguments(own),
        tiles,
        **tile._asdict(),
    )
    return rows


def means(rows: Tensor, partners: int) -> Tensor:
    """See `fused_mi.reference.logsumexp.means`."""
    directions, _, N = rows.shape
    terms = torch.empty((directions, 5), dtype=torch.float64, device=rows.device)
    launch(logsumexp_means_kernel, directions, rows, terms, N, partners, **REDUCE)
    return terms


def logsumexp_backward(upstream: Tensor, energies: Tensor, rows: Tensor, own: Own | None) -> Tensor:
    """See `fused_mi.reference.logsumexp.logsumexp_backward`."""
    energies = energies.contiguous()
    directions, _, N, M = energies.shape
    gradient = torch.empty_like(energies)
    tile = logsumexp_tile(M, energies.device)
    tiles_n, tiles_m = ceil_div(N, tile.ROWS), ceil_div(M, tile.COLUMNS)
    launch(
        logsumexp_gradient_kernel,
        directions * tiles_n * tiles_m,
        upstream.contiguous(),
        energies,
        rows,
        gradient,
        N,
        M,
        *own_arguments(own),
        upstream.shape[-1] > 1,
        M - int(own is not None and own.left_out),
        tiles_n,
        tiles_m,
        **tile._asdict(),
    )
    return gradient


def own_arguments(own: Own | None, first: int = 0) -> tuple[Any, ...]:
    """Of a kernel, whose first component has this number: the own component of the first sample,
    relative to it; the origins of all in place of it; and whether they are left out."""
    if own is None:
        return 0, None, False
    if own.of_samples is None:
        return own.first - first, None, own.left_out
    return -first, own.of_samples.contiguous(), own.left_out
