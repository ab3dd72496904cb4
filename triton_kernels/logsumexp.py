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
        *_arguments(own),
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
        *_arguments(own),
        upstream.shape[-1] > 1,
        M - int(own is not None and own.left_out),
        tiles_n,
        tiles_m,
        **tile._asdict(),
    )
    return gradient


def _arguments(own: Own | None) -> tuple[Any, ...]:
    """Of a kernel: the own component of the first sample, those of all in place of it, and whether
    they are left out."""
    if own is None:
        return 0, None, False
    origins = None if own.of_samples is None else own.of_samples.contiguous()
    return own.first, origins, own.left_out
