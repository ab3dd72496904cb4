"""From the energies of a mixture to the terms of a loss: the two estimators."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .reference.mixture import Mixture
from .reference.moments import moments
from .reference.pairs import pairs


class Terms(NamedTuple):
    """Parts of the loss, means over the samples in nats; the others add up to `total`."""

    mahalanobis: Tensor
    log_determinant: Tensor
    assignment: Tensor | None  # logsumexp only
    std_log: Tensor
    total: Tensor

    def mean_with(self, other: Terms) -> Terms:
        """The mean of two sets of terms of one estimator."""
        assignment = None
        if self.assignment is not None and other.assignment is not None:
            assignment = (self.assignment + other.assignment) / 2
        return Terms(
            (self.mahalanobis + other.mahalanobis) / 2,
            (self.log_determinant + other.log_determinant) / 2,
            assignment,
            (self.std_log + other.std_log) / 2,
            (self.total + other.total) / 2,
        )


def mixture_terms(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, mixture: Mixture, estimator: str
) -> Terms:
    """Terms of the mean energy "jensen" or of the entropy "logsumexp", of energies e = q + g - k:
    `mean_il e_il`, or `mean_i -log(1/M sum_l exp(-e_il))`.

    The arguments are those of `reference.moments.moments`; with `exclude_diagonal` M counts one
    component less.
    """
    samples, components = (
        len(range(*rows.indices(t.shape[0])))
        for rows, t in ((mixture.sample_rows, y), (mixture.component_rows, x))
    )
    partners = components - mixture.exclude_diagonal
    if estimator == "jensen":
        q, g, k = (total / (samples * partners) for total in moments(y, x, mu, stds, mixture))
        return Terms(q, g, None, -k, q + g - k)
    return _logsumexp_terms(*pairs(y, x, mu, stds, mixture), partners, mixture.exclude_diagonal)


def _logsumexp_terms(q: Tensor, g: Tensor, k: Tensor, count: int, exclude_diagonal: bool) -> Terms:
    energies = q + g - k
    if exclude_diagonal:
        diagonal = torch.eye(energies.shape[0], dtype=torch.bool, device=energies.device)
        energies = energies.masked_fill(diagonal, math.inf)
    # Where every energy overflowed there is nothing to compare: equal responsibilities, not NaN.
    hopeless = (energies == math.inf).all(1, keepdim=True)
    log_densities = torch.where(hopeless, 0, -energies)
    log_responsibilities = torch.log_softmax(log_densities, dim=1)
    responsibilities = log_responsibilities.exp()

    def weighted_mean(values: Tensor) -> Tensor:
        chosen = (
            responsibilities > 0
        )  # 0 * inf: a component that is never chosen adds nothing, to no gradient either
        return (
            torch.where(chosen, responsibilities * torch.where(chosen, values, 0), 0).sum(1).mean()
        )

    assignment = math.log(count) + weighted_mean(log_responsibilities)
    log_mean = torch.where(
        hopeless[:, 0], -math.inf, torch.logsumexp(log_densities, dim=1)
    ) - math.log(count)
    return Terms(
        weighted_mean(q), weighted_mean(g), assignment, -weighted_mean(k), -log_mean.mean()
    )
