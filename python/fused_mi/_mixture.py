"""From the energies of a mixture to the terms of a loss: the two estimators, shared by entropy and information."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .reference.moments import moments
from .reference.pairs import pairs


class Samples(NamedTuple):
    """The scored samples y (N, S, E), their mask (N, S), and for the information their own stds and eps."""

    y: Tensor
    mask: Tensor
    stds: Tensor | None = None
    eps: Tensor | None = None


class Components(NamedTuple):
    """Components with centres x + mu, stds (M, S, E), mask (M, S) and the eps of their variances."""

    x: Tensor
    mu: Tensor
    stds: Tensor
    mask: Tensor
    eps: Tensor


class Terms(NamedTuple):
    """Parts of the loss, means over the samples in nats; the first three add up to `total` together with the last."""

    mahalanobis: Tensor
    log_determinant: Tensor
    assignment: Tensor | None  # logsumexp only
    std_log: Tensor
    total: Tensor

    def mean_with(self, other: Terms) -> Terms:
        """The mean of two sets of terms of one estimator."""
        return Terms(*(None if a is None else (a + b) / 2 for a, b in zip(self, other, strict=True)))


def mixture_terms(samples: Samples, components: Components, estimator: str, exclude_diagonal: bool = False) -> Terms:
    """Terms of `mean_il (q + g - k)` or, for "logsumexp", of `mean_i -log(1/M sum_l exp(-(q + g - k)))`.

    Without stds of the samples k is 0. With `exclude_diagonal` (N = M) sample i meets every component but its own.
    """
    count = components.x.shape[0] - exclude_diagonal
    arguments = (
        *(samples.y, samples.stds, samples.mask, samples.eps),
        *(components.x, components.mu, components.stds, components.mask, components.eps),
        exclude_diagonal,
    )
    if estimator == "jensen":
        q, g, k = (total / (samples.y.shape[0] * count) for total in moments(*arguments))
        return Terms(q, g, None, -k, q + g - k)
    return _logsumexp_terms(*pairs(*arguments), count, exclude_diagonal)


def _logsumexp_terms(q: Tensor, g: Tensor, k: Tensor, count: int, exclude_diagonal: bool) -> Terms:
    energies = q + g - k
    if exclude_diagonal:
        diagonal = torch.eye(energies.shape[0], dtype=torch.bool, device=energies.device)
        energies = energies.masked_fill(diagonal, math.inf)
    # Where every energy overflowed there is nothing to compare: equal responsibilities, not NaN.
    hopeless = (energies == math.inf).all(1, keepdim=True)
    responsibilities = torch.softmax(torch.where(hopeless, 0, -energies), dim=1)

    def weighted_mean(values: Tensor) -> Tensor:
        chosen = responsibilities > 0  # 0 * inf: a component that is never chosen adds nothing
        return torch.where(chosen, responsibilities * torch.where(chosen, values, 0), 0).sum(1).mean()

    assignment = math.log(count) - torch.special.entr(responsibilities).sum(1).mean()
    total = math.log(count) - torch.where(hopeless[:, 0], -math.inf, torch.logsumexp(-energies, dim=1)).mean()
    return Terms(weighted_mean(q), weighted_mean(g), assignment, -weighted_mean(k), total)
