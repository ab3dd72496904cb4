"""Operators `jensen` and `logsumexp`: from embeddings to the finished terms of a loss, each way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._estimators import TERMS, jensen_state, logsumexp_state
from .._precision import accumulation_dtype
from ..reference import estimators as plain
from ..reference.mixture import Scoring
from ._backends import choose
from ._operator import Quantity, operator

INPUTS = ("y", "x", "mu", "stds")
CONSTANTS = (
    "Tensor sample_mask",
    "Tensor? component_mask",
    "str pairing",
    "bool own_stds",
    "bool sum",
    "float safety_factor",
)


def _estimator(
    name: str, formula: Callable[..., Any], state: Callable[..., Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    back = f"{name}_backward"

    def forward(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, *scoring: Any) -> Any:
        return getattr(choose(name, y), name)(y, x, mu, stds, Scoring(*scoring))

    def backward(
        upstream: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        scoring: Sequence[Any],
        state: Tensor,
        wanted: Sequence[bool],
    ) -> Any:
        module = choose(name, inputs[0])
        return getattr(module, back)(*upstream, *inputs, Scoring(*scoring), state, wanted)

    def fake(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, *scoring: Any) -> Any:
        dtype = accumulation_dtype(y, x, mu, stds)
        terms = y.new_empty(len(TERMS), dtype=dtype)
        return terms.new_empty(()), terms, state(y, x, mu, stds, Scoring(*scoring))

    def of_scoring(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, *scoring: Any) -> Any:
        return formula(y, x, mu, stds, Scoring(*scoring))

    return operator(
        Quantity(name, INPUTS, CONSTANTS, 2, ("total", "terms"), forward, backward, fake, of_scoring)
    )


_jensen = _estimator("jensen", plain.jensen_formula, jensen_state)
_logsumexp = _estimator(
    "logsumexp", plain.logsumexp_formula, lambda y, x, mu, stds, scoring: logsumexp_state(y, x, scoring)
)


def jensen(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """`mean_il e_il` of the energies e = q + g - k of all pairs, in O((N + M) S E) work.

    Args:
        y: (rows, S, E) samples.
        x, mu, stds: (rows, S, E); component l is centred at x + mu with the standard deviations
            stds. With `own_stds`, stds holds those of the samples too, in their rows.
        scoring: who is scored against whom.

    Returns:
        The loss (), and its terms in the order of `TERMS`, in T and in nats.
    """
    return _jensen(y, x, mu, stds, *scoring)


def logsumexp(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """`mean_i -log(1/M sum_l exp(-e_il))` of the energies e = q + g - k, in O(N M S E) work.

    Arguments and results are those of `jensen`."""
    return _logsumexp(y, x, mu, stds, *scoring)
