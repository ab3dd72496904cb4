"""The arguments of the losses, checked: inputs and scoring of an operator. How many rows there must
be is another question: of a group, all ranks have them together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _checks
from ._mixture import AnyInputs, Inputs, Scoring
from ._types import Constant, Estimator, Pairing, Reduction, SmallBatch
from ._weighted import weighted


def entropy(
    clean_embeddings: Any,
    transformed_embeddings: Any,
    means: Any,
    stds: Any,
    mask: Any,
    losses: Any,
    safety_factor: Any,
    component_mask: Any,
    weights: Any,
    estimator: Any,
    reduction: Any,
    eps: Any,
) -> tuple[AnyInputs, Scoring]:
    """Of `gaussian_mixture_entropy`, which see for the errors."""
    x, y, means, stds, mask, component_mask = _checks.with_positions(
        (clean_embeddings, transformed_embeddings, means, stds), mask, component_mask
    )
    named = {} if weights is None else {"component_log_weights": weights}
    dtype = _checks.floating(
        clean_embeddings=x, transformed_embeddings=y, means=means, stds=stds, **named
    )
    _checks.mapping("losses", losses)
    safety_factor = _checks.factor_or_fixed(safety_factor, eps)
    _checks.option("estimator", estimator, Estimator)
    _checks.option("reduction", reduction, Reduction)
    _checks.dimensions("clean_embeddings", x, "(M, S, E)")
    _checks.dimensions("transformed_embeddings", y, "(N, S, E)")
    _checks.shape("transformed_embeddings", y, (y.shape[0], *x.shape[1:]), "(N, S, E)")
    _checks.shape("means", means, x.shape, "(M, S, E)")
    _checks.shape("stds", stds, x.shape, "(M, S, E)")
    active = _checks.sample_mask(mask, y)
    components = _checks.component_mask(component_mask, stds)
    scoring = Scoring(active, components, reduction=reduction, safety_factor=safety_factor)
    if weights is None:
        return (y, x, means, stds), scoring
    if estimator == "jensen":
        raise ValueError(
            'component_log_weights: expected None for estimator="jensen", got a tensor'
        )
    _checks.shape("component_log_weights", weights, x.shape[:1], "(M,)")
    return weighted((y, x, means, stds), weights, scoring, dtype)


def information(
    means_tensor: Any,
    stds_tensor: Any,
    clean_input_embeddings: Any,
    noisy_input_embeddings: Any,
    noise_mask: Any,
    combine: Any,
    losses: Any,
    safety_factor: Any,
    estimator: Any,
    reduction: Any,
    pairing: Any,
    constant: Any,
    eps: Any,
    small_batch: Any,
) -> tuple[Inputs, Scoring]:
    """Of `mutual_information_sub_batch`, which see for the errors."""
    inputs, active = batch(
        means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings, noise_mask
    )
    combine = _checks.flag("combine_noise_masks_for_mutual_information_sub_batches", combine)
    _checks.mapping("losses", losses)
    safety_factor = _checks.factor_or_fixed(safety_factor, eps)
    _checks.option("estimator", estimator, Estimator)
    _checks.option("reduction", reduction, Reduction)
    _checks.option("pairing", pairing, Pairing)
    _checks.option("constant", constant, Constant)
    _checks.option("small_batch", small_batch, SmallBatch)
    scoring = Scoring(
        active,
        active if combine else None,
        pairing=pairing,
        own_stds=True,
        reduction=reduction,
        safety_factor=safety_factor,
    )
    return inputs, scoring


def batch(
    means_tensor: Any,
    stds_tensor: Any,
    clean_input_embeddings: Any,
    noisy_input_embeddings: Any,
    noise_mask: Any,
) -> tuple[Inputs, Tensor]:
    """Embeddings of one batch (B, S, E), and its mask (B, S) as bool."""
    mu, stds, x, y, noise_mask = _checks.with_positions(
        (means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings), noise_mask
    )
    active: Tensor = noise_mask
    if not _checks.all_well((mu, stds, x, y), noise_mask):
        _checks.floating(
            means_tensor=mu, stds_tensor=stds, clean_input_embeddings=x, noisy_input_embeddings=y
        )
        _checks.dimensions("means_tensor", mu, "(B, S, E)")
        _checks.shape("stds_tensor", stds, mu.shape, "(B, S, E)")
        _checks.shape("clean_input_embeddings", x, mu.shape, "(B, S, E)")
        _checks.shape("noisy_input_embeddings", y, mu.shape, "(B, S, E)")
        active = _checks.activity("noise_mask", noise_mask, y)
        _checks.shape("noise_mask", active, mu.shape[:2], "(B, S)")
    return (y, x, mu, stds), active


def rows_of_information(batch: int, pairing: str) -> None:
    """
    Raises:
        ValueError: no batch of this size has such a pairing.
    """
    if batch < 2:
        raise ValueError(f"means_tensor: expected a batch of at least 2, got B = {batch}")
    if pairing != "leave_one_out" and batch % 2:
        raise ValueError(
            f"means_tensor: expected an even batch for pairing={pairing!r}, got B = {batch}; "
            'pairing="leave_one_out" takes odd ones'
        )


def rows_of_entropy(samples: int, components: int) -> None:
    """
    Raises:
        ValueError: there are no samples, or no components.
    """
    for name, count in (
        ("clean_embeddings", components),
        ("transformed_embeddings", samples),
    ):
        if count == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
