"""The loss of all pairs from their energies: some rows of a program, then one program for means."""

from __future__ import annotations

import torch
from torch import Tensor

from ._configs import REDUCE, ceil_div
from ._launch import launch
from ._logsumexp_kernels import (
    logsumexp_gradient_kernel,
    logsumexp_means_kernel,
    logsumexp_state_kernel,
)
from ._pairs_configs import logsumexp_tile


def logsumexp(energies: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.logsumexp.logsumexp`."""
    energies = energies.contiguous()
    directions, _, N, M = energies.shape
    state = torch.empty((directions, 4, N), dtype=torch.float64, device=energies.device)
    terms = torch.empty((directions, 5), dtype=torch.float64, device=energies.device)
    tile = logsumexp_tile(M, energies.device)
    tiles = ceil_div(N, tile.ROWS)
    launch(
        logsumexp_state_kernel,
        directions * tiles,
        energies,
        state,
        N,
        M,
        *_own(own),
        tiles,
        **tile._asdict(),
    )
    partners = M - (own is not None)
    launch(logsumexp_means_kernel, directions, state, terms, N, partners, **REDUCE)
    return terms, state


def logsumexp_backward(
    upstream: Tensor, energies: Tensor, state: Tensor, own: int | None
) -> Tensor:
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
        state,
        gradient,
        N,
        M,
        *_own(own),
        M - (own is not None),
        tiles_n,
        tiles_m,
        **tile._asdict(),
    )
    return gradient


def _own(own: int | None) -> tuple[int, bool]:
    """As arguments of a kernel: the component, and whether there is one to leave out."""
    return (0, False) if own is None else (own, True)
