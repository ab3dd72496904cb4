"""Operator `moments`: the sums over all pairs of q, g and k, linear in the batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference import moments as reference
from ..reference.mixture import Mixture
from ..reference.streaming import working_dtype
from ..reference.variance import moments_dtype
from ._mixture import mixture_operator

Sums = tuple[Tensor, Tensor, Tensor]
"""Sums over all pairs of q, g and k: 0-dim tensors in the working dtype, in nats."""


def _fake(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, rows: Sequence[int], exclude_diagonal: bool
) -> tuple[Tensor, Tensor]:
    directions = len(rows) // 4
    dtype = moments_dtype(y, x, mu, stds, exact=exclude_diagonal)
    return (
        y.new_empty((directions, 3), dtype=working_dtype(y.device)),
        y.new_empty((directions, 4, *y.shape[1:]), dtype=dtype),
    )


_moments = mixture_operator("moments", "Tensor", "(Tensor sums, Tensor state)", _fake, reference)


def moments(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, *mixtures: Mixture) -> list[Sums]:
    """Sums over all pairs of q, g and k for each mixture, separately differentiable; O((N + M) S E)
    work, in one pass.

    Args:
        y: (rows, S, E) samples.
        x, mu, stds: (rows, S, E); component l is centred at x + mu with the standard deviations
            stds. Where `sample_eps` is given, stds holds those of the samples too, in their rows.
        mixtures: over the same masks; which rows and positions meet.
    """
    sums, _ = _moments(y, x, mu, stds, *mixtures)
    return [of_mixture.unbind() for of_mixture in sums.unbind()]
