"""The loss of all pairs from their energies: one call of the library for each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._building_blocks import Own
from .._estimators import ROWS
from ..reference.logsumexp import means as means
from ._library import operators


def logsumexp(energies: Tensor, own: Own | None) -> Tensor:
    """See `fused_mi.reference.logsumexp.logsumexp`."""
    energies = energies.contiguous()
    directions, _, samples, _ = energies.shape
    rows = torch.empty((directions, ROWS, samples), dtype=torch.float64, device=energies.device)
    operators().logsumexp(energies, *_arguments(own), rows)
    return rows


def logsumexp_backward(upstream: Tensor, energies: Tensor, rows: Tensor, own: Own | None) -> Tensor:
    """See `fused_mi.reference.logsumexp.logsumexp_backward`."""
    energies = energies.contiguous()
    gradient = torch.empty_like(energies)
    operators().logsumexp_backward(
        upstream.contiguous(), energies, rows, *_arguments(own), gradient
    )
    return gradient


def _arguments(own: Own | None) -> tuple[Any, ...]:
    """The own component of the first sample, those of all in place of it, whether left out."""
    if own is None:
        return None, None, False
    if own.of_samples is None:
        return own.first, None, True
    return None, own.of_samples.contiguous(), own.left_out
