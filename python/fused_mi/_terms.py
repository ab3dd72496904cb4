"""The terms that a loss is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """The loss and its parts, which add up to it; means over the samples in nats."""

    total: Tensor
    mahalanobis: Tensor | None = None
    log_determinant: Tensor | None = None
    assignment: Tensor | None = None  # logsumexp only
    std_log: Tensor | None = None


def mean(terms: Sequence[Terms], weights: Sequence[int] | None = None) -> Terms:
    """The mean of the terms of one estimator, by `weights` where they are given."""
    if len(terms) == 1:
        return terms[0]
    weights = weights or [1] * len(terms)
    columns = (
        None if column[0] is None else _weighted(column, weights)  # all or none of a column
        for column in zip(*terms, strict=True)
    )
    return Terms(*columns)  # type: ignore[arg-type]


def _weighted(values: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    found = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        found = found + value * weight
    return found / sum(weights)
