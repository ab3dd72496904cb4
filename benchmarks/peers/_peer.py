"""The interface of the peers, and what several of them share.

Every loss takes (mu, sigma, mask, x, y), in the argument order of the public function: (B, S, E)
floating tensors, `mask` (B, S) bool; and three options. It returns nats, the sum over the samples
with masks combined, computed in float32 or, where an input has it, in float64. Gradients are left
to autograd. No loss makes the host wait for the device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Case, directions

LOG_2PI = math.log(2 * math.pi)


class Peer(NamedTuple):
    """`loss(mu, sigma, mask, x, y, estimator, pairing, information)`; `information` = False leaves
    the samples' own covariances out: the entropy of the mixture."""

    name: str
    loss: Callable[..., Tensor]
    why_not: Callable[[Case], str | None]  # the reason why it cannot serve a case
    temporary: Callable[[Case], float]  # elements that it holds at once, roughly
    work: Callable[[Case], float]  # pairs times features that it goes through
    compiled: bool = False  # takes a minute to get ready


class Role(NamedTuple):
    """The samples or the components of a mixture."""

    centre: Tensor  # (rows, S, E)
    variance: Tensor  # (rows, S, E), stabilised
    mask: Tensor  # (rows, S)


def only(case: Case, **allowed: tuple) -> str | None:
    """Why a peer that knows only these values of some fields does not serve a case."""
    for field, values in allowed.items():
        if getattr(case, field) not in values:
            return f"{field}: only {', '.join(map(str, values))}"
    return None


def pair_elements(case: Case) -> float:
    """N * M * S * E."""
    return float(case.samples * case.components * case.S * case.E)


def roles(
    mu: Tensor, sigma: Tensor, mask: Tensor, x: Tensor, y: Tensor, pairing: str = "sub_batch"
) -> list[tuple[Role, Role]]:
    """The samples and the components of each direction."""
    dtype = torch.float32
    if any(t.dtype == torch.float64 for t in (mu, sigma, x, y)):
        dtype = torch.float64

    def variance(rows: slice) -> Tensor:
        """sigma^2 + eps, eps from the least positive active variance of these rows."""
        square = sigma[rows].to(dtype).square()
        counts = mask[rows, :, None] & (square > 0)
        least = torch.where(counts, square.detach(), torch.inf).amin()
        return square + 100 * torch.finfo(dtype).eps * least

    return [
        (
            Role(y[i].to(dtype), variance(i), mask[i]),
            Role(x[j].to(dtype) + mu[j], variance(j), mask[j]),
        )
        for i, j in directions(pairing, len(x))
    ]


def log_determinant(role: Role) -> Tensor:
    """log |2 pi Sigma| / 2 per row and position: (rows, S)."""
    return (role.variance.log() + LOG_2PI).sum(-1) / 2


def estimate(energies: Tensor, estimator: str, exclude_diagonal: bool = False) -> Tensor:
    """The loss of energies (N, M), summed over the samples."""
    n, m = energies.shape
    if exclude_diagonal:
        diagonal = torch.eye(n, dtype=torch.bool, device=energies.device)
        energies = energies.masked_fill(diagonal, 0 if estimator == "jensen" else torch.inf)
        m = m - 1
    if estimator == "jensen":
        return energies.sum() / m
    return (math.log(m) - torch.logsumexp(-energies, 1)).sum()
