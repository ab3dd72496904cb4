"""From a mixture to the terms of a loss: the two estimators."""

from __future__ import annotations

import functools
import operator

from torch import Tensor

from ._logsumexp import logsumexp_terms
from ._terms import Terms
from .ops.moments import moments
from .reference.mixture import Mixture


def mixture_terms(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, estimator: str, *mixtures: Mixture
) -> Terms:
    """Terms of the mean energy "jensen" or of the entropy "logsumexp", of energies e = q + g - k:
    `mean_il e_il`, or `mean_i -log(1/M sum_l exp(-e_il))`; the mean over several mixtures.

    The arguments are those of `ops.moments.moments`; with `exclude_diagonal` M counts one component
    less.
    """
    if estimator == "logsumexp":
        return logsumexp_terms(y, x, mu, stds, *mixtures)
    first = mixtures[0]
    count = len(mixtures) * first.samples * (first.components - first.exclude_diagonal)
    sums = zip(*moments(y, x, mu, stds, *mixtures), strict=True)
    q, g, k = (functools.reduce(operator.add, column) / count for column in sums)
    return Terms(q + g - k, q, g, None, -k)
