"""The terms that a loss is made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """The loss and its parts, which add up to it; means over the samples in nats, in the order of
    the operator `logsumexp`."""

    total: Tensor
    mahalanobis: Tensor
    log_determinant: Tensor
    assignment: Tensor | None  # logsumexp only
    std_log: Tensor
