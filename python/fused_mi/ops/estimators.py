"""Operators `jensen` and `logsumexp`: from embeddings to the finished terms of a loss, each way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor

from .._building_blocks import Gradients
from .._estimators import jensen_state, logsumexp_state
from .._mixture import AnyInputs, Scoring, Sizes
from .._precision import accumulation_dtype
from .._terms import TERMS, Upstream
from ..reference import estimators as plain
from ._operator import Quantity, operator

Estimate = Callable[[AnyInputs, Scoring, bool], Any]
"""`(inputs, scoring, first_only)` -> the loss (), and unless `first_only` its terms in the order of
`TERMS`; in T and in nats. With the reduction "none", (D N,): one of each sample."""


_INPUTS = ("y", "x", "mu", "stds")


def _estimate(
    name: str,
    formula: Callable[..., Any],
    empty_state: Callable[..., Tensor],
    inputs: tuple[str, ...] = _INPUTS,
) -> Estimate:
    estimator = "jensen" if name == "jensen" else "logsumexp"

    def serving(module: ModuleType, scoring: Scoring) -> ModuleType:
        """Of single samples, plain torch has the only linear form."""
        return plain if estimator == "jensen" and scoring.reduction == "none" else module

    def forward(module: ModuleType, inputs: AnyInputs, scoring: Scoring) -> Any:
        return getattr(serving(module, scoring), estimator)(inputs, scoring)

    def backward(
        module: ModuleType, upstream: Upstream, inputs: AnyInputs, scoring: Scoring, *rest: Any
    ) -> Gradients:
        pull = getattr(serving(module, scoring), f"{estimator}_backward")
        found: Gradients = pull(upstream, inputs, scoring, *rest)
        return found

    def fake(inputs: AnyInputs, scoring: Scoring) -> Any:
        sizes = Sizes.of(scoring, inputs)
        shape = (sizes.mixtures * sizes.samples,) if scoring.reduction == "none" else ()
        terms = inputs[0].new_empty((len(TERMS), *shape), dtype=accumulation_dtype(*inputs))
        return terms.new_empty(shape), terms, empty_state(inputs, scoring)

    return operator(
        Quantity(
            name,
            estimator,
            inputs,
            (
                "Tensor sample_mask",
                "Tensor? component_mask",
                "Tensor? origins",
                "str pairing",
                "bool own_stds",
                "str reduction",
                "float safety_factor",
                "bool leave_origins_out",
            ),
            3,
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
"""`mean_i -log(1/M sum_l exp(-e_il))` of the energies e = q + g - k, in O(N M S E) work.
With the origins of the samples, `mean_i -e_it -log(1/M sum_l exp(-e_il))`, t the origin of i."""

logsumexp_of_weighted = _estimate(
    "logsumexp_of_weighted",
    plain.logsumexp_formula,
    logsumexp_state,
    (*_INPUTS, "log_weights"),
)
"""`logsumexp` of components with weights: `mean_i -log(sum_l exp(w_l - e_il))`."""
