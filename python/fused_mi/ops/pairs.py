"""Operator `pairs`: the energies q, g and k of all N x M pairs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference import pairs as reference
from ..reference.mixture import Mixture
from ..reference.streaming import working_dtype
from ._mixture import mixture_operator


def _fake(
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    rows: Sequence[int],
    exclude_diagonal: bool,
) -> Tensor:
    shape = len(rows) // 4, 3, rows[1] - rows[0], rows[3] - rows[2]
    return y.new_empty(shape, dtype=working_dtype(y.device))


_pairs = mixture_operator("pairs", "Tensor?", "Tensor", _fake, reference)


def pairs(y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor, *mixtures: Mixture) -> Tensor:
    """q, g and k of every pair for each of D mixtures: (D, 3, N, M) in the working dtype, in nats;
    O(N M S E) work.

    The arguments are those of `ops.moments.moments`, whose results are the sums of these matrices;
    all mixtures have the same N and the same M; `mu` None is 0. With `exclude_diagonal` the
    diagonal entries are finite but mean nothing: the caller leaves them out.
    """
    energies: Tensor = _pairs(y, x, mu, stds, *mixtures)
    return energies
