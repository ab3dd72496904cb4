"""From the energies of a mixture to the terms of a loss: the two estimators."""

from __future__ import annotations

from torch import Tensor

from ._logsumexp import logsumexp_terms
from ._terms import Terms, mean
from .ops.moments import moments
from .reference.mixture import Mixture


def mixture_terms(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    estimator: str,
    *mixtures: Mixture,
    parts: bool,
) -> Terms:
    """Terms of the mean energy "jensen" or of the entropy "logsumexp", of energies e = q + g - k:
    `mean_il e_il`, or `mean_i -log(1/M sum_l exp(-e_il))`; the mean over several mixtures.

    The arguments are those of `ops.moments.moments`; with `exclude_diagonal` M counts one component
    less. `parts`: not `total` alone.
    """
    if estimator == "logsumexp":
        return mean(logsumexp_terms(y, x, mu, stds, *mixtures, parts=parts))
    sums = moments(y, x, mu, stds, *mixtures)
    return mean([_jensen_terms(*s, mixture) for s, mixture in zip(sums, mixtures, strict=True)])


def _jensen_terms(q: Tensor, g: Tensor, k: Tensor, mixture: Mixture) -> Terms:
    pairs_count = mixture.samples * (mixture.components - mixture.exclude_diagonal)
    q, g, k = (total / pairs_count for total in (q, g, k))
    return Terms(q + g - k, q, g, None, -k)
