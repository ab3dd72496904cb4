"""The loss of all pairs from their energies: one call of the library for each direction."""

from __future__ import annotations

import torch
from torch import Tensor

from ._library import operators, path


def logsumexp(energies: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
    """See `fused_mi.reference.logsumexp.logsumexp`."""
    directions, _, samples, _ = energies.shape
    terms = torch.empty((directions, 5), dtype=torch.float64)
    state = torch.empty((directions, 4, samples), dtype=torch.float64)
    operators().logsumexp(energies.contiguous(), own, path(), terms, state)
    return terms, state


def logsumexp_backward(
    upstream: Tensor, energies: Tensor, state: Tensor, own: int | None
) -> Tensor:
    """See `fused_mi.reference.logsumexp.logsumexp_backward`."""
    gradient = torch.empty(energies.shape, dtype=torch.float64)
    operators().logsumexp_backward(
        upstream.contiguous(), energies.contiguous(), state, own, path(), gradient
    )
    return gradient
