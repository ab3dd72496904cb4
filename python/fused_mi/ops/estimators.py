"""Operators `jensen` and `logsumexp`: from embeddings to the finished terms of a loss, each way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from .._building_blocks import Gradients
from .._estimators import TERMS, jensen_state, logsumexp_state
from .._mixture import Inputs, Scoring
from .._precision import accumulation_dtype
from ..reference import estimators as plain
from ._operator import Quantity, operator

Estimate = Callable[[Inputs, Scoring, bool], Any]
"""`(inputs, scoring, first_only)` -> the loss (), and unless `first_only` its terms in the order of
`TERMS`; in T and in nats."""


def _estimate(
    name: str, formula: Callable[..., Any], empty_state: Callable[..., Tensor]
) -> Estimate:
    def forward(module: ModuleType, inputs: Inputs, scoring: Scoring) -> Any:
        return getattr(module, name)(inputs, scoring)

    def backward(module: ModuleType, *arguments: Any) -> Gradients:
        found: Gradients = getattr(module, f"{name}_backward")(*arguments)
        return found

    def fake(inputs: Inputs, scoring: Scoring) -> Any:
        terms = inputs[0].new_empty(len(TERMS), dtype=accumulation_dtype(*inputs))
        return terms.new_empty(()), terms, empty_state(inputs, scoring)

    return operator(
        Quantity(
            name,
            ("y", "x", "mu", "stds"),
            (
                "Tensor sample_mask",
                "Tensor? component_mask",
                "str pairing",
                "bool own_stds",
                "bool sum",
                "float safety_factor",
            ),
            2,
            ("total", "terms"),
            Scoring,
            forward,
            backward,
            fake,
            formula,
        )
    )


jensen = _estimate("jensen", plain.jensen_formula, jensen_state)
"""`mean_il e_il` of the energies e = q + g - k of all pairs, in O((N + M) S E) work."""

logsumexp = _estimate("logsumexp", plain.logsumexp_formula, logsumexp_state)
"""`mean_i -log(1/M sum_l exp(-e_il))` of the energies e = q + g - k, in O(N M S E) work."""
