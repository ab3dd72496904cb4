"""From the energies of a mixture to the terms of a loss: the two estimators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .ops.moments import moments
from .ops.pairs import pairs
from .reference.mixture import Mixture


class Terms(NamedTuple):
    """Parts of the loss, means over the samples in nats; the others add up to `total`."""

    mahalanobis: Tensor
    log_determinant: Tensor
    assignment: Tensor | None  # logsumexp only
    std_log: Tensor
    total: Tensor


def mixture_terms(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, estimator: str, *mixtures: Mixture
) -> Terms:
    """Terms of the mean energy "jensen" or of the entropy "logsumexp", of energies e = q + g - k:
    `mean_il e_il`, or `mean_i -log(1/M sum_l exp(-e_il))`; the mean over several mixtures.

    The arguments are those of `ops.moments.moments`; with `exclude_diagonal` M counts one component
    less.
    """
    operator, terms_of = (
        (moments, _jensen_terms) if estimator == "jensen" else (pairs, _logsumexp_terms)
    )
    terms = [
        terms_of(*energies, mixture)
        for energies, mixture in zip(operator(y, x, mu, stds, *mixtures), mixtures, strict=True)
    ]
    return terms[0] if len(terms) == 1 else _mean(terms)


def _mean(terms: Sequence[Terms]) -> Terms:
    """The mean of the terms of one estimator."""
    columns = (
        None if column[0] is None else sum(column) / len(terms)
        for column in zip(*terms, strict=True)
    )
    return Terms(*columns)  # type: ignore[arg-type]


def _jensen_terms(q: Tensor, g: Tensor, k: Tensor, mixture: Mixture) -> Terms:
    pairs_count = mixture.samples * (mixture.components - mixture.exclude_diagonal)
    q, g, k = (total / pairs_count for total in (q, g, k))
    return Terms(q, g, None, -k, q + g - k)


def _logsumexp_terms(q: Tensor, g: Tensor, k: Tensor, mixture: Mixture) -> Terms:
    energies = q + g - k
    # A tensor: a Python number would make the batch size a constant of a compiled graph.
    partners = mixture.components - mixture.exclude_diagonal
    log_partners = torch.full((), partners, dtype=energies.dtype, device=energies.device).log()
    if mixture.exclude_diagonal:
        diagonal = torch.eye(energies.shape[0], dtype=torch.bool, device=energies.device)
        energies = energies.masked_fill(diagonal, math.inf)
    # Where every energy overflowed there is nothing to compare: equal responsibilities, not NaN.
    hopeless = (energies == math.inf).all(1, keepdim=True)
    log_densities = torch.where(hopeless, 0, -energies)
    log_responsibilities = torch.log_softmax(log_densities, dim=1)
    responsibilities = log_responsibilities.exp()

    def weighted_mean(values: Tensor) -> Tensor:
        # 0 * inf: a component that is never chosen adds nothing, to no gradient either.
        chosen = responsibilities > 0
        return (
            torch.where(chosen, responsibilities * torch.where(chosen, values, 0), 0).sum(1).mean()
        )

    assignment = log_partners + weighted_mean(log_responsibilities)
    log_mean = (
        torch.where(hopeless[:, 0], -math.inf, torch.logsumexp(log_densities, dim=1)) - log_partners
    )
    return Terms(
        weighted_mean(q), weighted_mean(g), assignment, -weighted_mean(k), -log_mean.mean()
    )
