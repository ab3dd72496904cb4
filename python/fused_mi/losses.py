"""The losses of the mixture: checks of arguments, roles of samples and components, reductions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._mixture import AnyInputs, Inputs, Scoring, positions_of_samples
from ._terms import TERMS
from ._types import Constant, Estimator, Pairing, Reduction
from ._weighted import weighted
from .ops.estimators import Estimate, jensen, logsumexp, logsumexp_of_weighted

Losses = MutableMapping[str, Any]
"""Any mutable mapping, `ComponentLossesDict` among them."""


_ESTIMATORS: dict[Estimator, Estimate] = {
    "jensen": jensen,
    "logsumexp": logsumexp,
}
_ENTRIES_OF_ENTROPY = {
    "mahalanobis": "gaussian_mixture_mahalanobis_distance_loss",
    "log_determinant": "gaussian_mixture_log_constants_and_determinant_loss",
    "assignment": "gaussian_mixture_assignment_loss",
}
_ENTRIES_OF_INFORMATION = {
    **_ENTRIES_OF_ENTROPY,
    "entropy": "gaussian_mixture_entropy_loss",
    "std_log": "std_log_loss",
    "total": "mutual_information_loss",
}


def gaussian_mixture_entropy(
    clean_embeddings: Tensor,
    transformed_embeddings: Tensor,
    means: Tensor,
    stds: Tensor,
    mask: Tensor,
    losses: Losses | None = None,
    safety_factor: float = 100.0,
    *,
    component_mask: Tensor | None = None,
    component_log_weights: Tensor | None = None,
    estimator: Estimator = "jensen",
    reduction: Reduction = "mean",
    eps: float | None = None,
) -> Tensor:
    """Monte Carlo entropy of a mixture of diagonal Gaussians at samples from another batch.

    With the energies `q + g = -log N(y_i; x_l + mu_l, diag(stds_l^2 + eps))` over the active
    positions, "jensen" is their mean over all pairs, an upper bound of "logsumexp",
    `mean_i -log(1/M sum_l exp(-(q_il + g_il)))`, or with weights w
    `mean_i -log(sum_l exp(w_l - (q_il + g_il)))`.

    Args:
        clean_embeddings, means, stds: (M, S, E); component l is centred at clean + means.
        transformed_embeddings: (N, S, E) samples; or (N, E), with the others (M, E), for S = 1.
        mask: (N, S) of the samples, non-zero = active; or (N,).
        losses: receives the terms named in `ComponentLossesDict`, in the same reduction; they add
            up to the result.
        safety_factor: as in `pairwise_square_mahalanobis_distance`.
        component_mask: (M, S); a position weighs 1 in a pair where both masks are active. Under
            "logsumexp", densities over different numbers of features then meet in one sum.
        component_log_weights: (M,) logs of the weights of the components, under "logsumexp"; taken
            as they are, so normalise them before. -inf takes a component out, from the stabiliser
            as well. None: -log M each.
        estimator: "jensen", O(N S E) work, or "logsumexp", O(N M S E) work.
        reduction: "mean" over the samples, "sum", N times that, or "none", one value each.
        eps: the stabiliser itself, for a value that does not depend on the other rows; then
            `safety_factor` plays no part.

    Returns:
        0-dim in T, in nats; (N,) for the reduction "none".

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not match, a batch is empty, devices differ, an option is unknown, or
            weights under "jensen".
    """
    x, y, means, stds, mask, component_mask = _checks.with_positions(
        (clean_embeddings, transformed_embeddings, means, stds), mask, component_mask
    )
    weights = component_log_weights
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
    _checks.not_empty("clean_embeddings", x)
    _checks.not_empty("transformed_embeddings", y)
    active = _checks.sample_mask(mask, y)
    components = _checks.component_mask(component_mask, stds)
    scoring = Scoring(active, components, reduction=reduction, safety_factor=safety_factor)
    if weights is None:
        return _evaluate(
            _ESTIMATORS[estimator], (y, x, means, stds), scoring, losses, _ENTRIES_OF_ENTROPY
        )
    if estimator == "jensen":
        raise ValueError(
            'component_log_weights: expected None for estimator="jensen", got a tensor'
        )
    _checks.shape("component_log_weights", weights, x.shape[:1], "(M,)")
    inputs, scoring = weighted((y, x, means, stds), weights, scoring, dtype)
    return _evaluate(logsumexp_of_weighted, inputs, scoring, losses, _ENTRIES_OF_ENTROPY)


def mutual_information_sub_batch(
    means_tensor: Tensor,
    stds_tensor: Tensor,
    noise_mask: Tensor,
    clean_input_embeddings: Tensor,
    noisy_input_embeddings: Tensor,
    combine_noise_masks_for_mutual_information_sub_batches: bool = True,
    losses: Losses | None = None,
    safety_factor: float = 100.0,
    *,
    estimator: Estimator = "jensen",
    reduction: Reduction = "sum",
    pairing: Pairing = "sub_batch",
    constant: Constant = "keep",
    eps: float | None = None,
) -> Tensor:
    """Mutual information, plus d/2, of embeddings x and y = x + mu + sigma * N(0, I).

    Samples are scored against the mixture of components built from other rows of the batch:
    `N * mean_il (q_il + g_il - k_il)`, which is
    `1/B sum_il [log |Sigma_i^-1 Sigma_l| + ||y_i - x_l - mu_l||^2_{Sigma_l^-1}]`. d, the number of
    active features of a sample, enters through h(Y|X) = k + d/2; training ignores the constant, a
    report of information in nats subtracts it.

    Args:
        means_tensor, stds_tensor: (B, S, E) mu and sigma; or (B, E), here and below, for S = 1.
        noise_mask: (B, S), non-zero = the position carries noise; or (B,).
        clean_input_embeddings, noisy_input_embeddings: (B, S, E) x and y.
        combine_noise_masks_for_mutual_information_sub_batches: a position counts where it is active
            in sample and component; otherwise where it is active in the sample.
        losses: receives the terms named in `ComponentLossesDict`, in the same reduction; they add
            up to the result.
        safety_factor: eps of each role is this times finfo(T).eps times its smallest positive
            active variance.
        estimator: "jensen", linear in B, or "logsumexp" over all pairs, never above it.
        reduction: "sum" over the N samples, "mean", nats per sample, or "none", one value each. Of
            "symmetric" these are the samples of the first half, then those of the second: they add
            up to twice the "sum".
        pairing: "sub_batch", the first half scored against the second (N = B/2); "symmetric", the
            mean of both directions; "leave_one_out", every row against all others (N = B; odd B
            allowed).
        constant: "subtract" takes off d/2, N d/2 for "sum", with the mean d of the scored pairs, or
            of those of each sample for "none"; of the entries "std_log_loss" takes it, and then is
            -h(Y|X). The difference is rounded as the result that keeps it.
        eps: the stabiliser of both roles itself, for a value that does not depend on the other
            rows; then `safety_factor` plays no part.

    Returns:
        0-dim in T, in nats; for the reduction "none" (B/2,), "symmetric" and "leave_one_out" (B,).

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: B < 2, B odd (not for "leave_one_out"), shapes do not match, devices differ, or
            an option is unknown.
    """
    mu, stds, x, y, noise_mask = _checks.with_positions(
        (means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings), noise_mask
    )
    active = noise_mask
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
    combine = _checks.flag(
        "combine_noise_masks_for_mutual_information_sub_batches",
        combine_noise_masks_for_mutual_information_sub_batches,
    )
    _checks.mapping("losses", losses)
    safety_factor = _checks.factor_or_fixed(safety_factor, eps)
    _checks.option("estimator", estimator, Estimator)
    _checks.option("reduction", reduction, Reduction)
    _checks.option("pairing", pairing, Pairing)
    _checks.option("constant", constant, Constant)
    batch = mu.shape[0]
    if batch < 2:
        raise ValueError(f"means_tensor: expected a batch of at least 2, got B = {batch}")
    if pairing != "leave_one_out" and batch % 2:
        raise ValueError(
            f"means_tensor: expected an even batch for pairing={pairing!r}, got B = {batch}"
        )
    component_mask = active if combine else None
    scoring = Scoring(
        active,
        component_mask,
        pairing=pairing,
        own_stds=True,
        reduction=reduction,
        safety_factor=safety_factor,
    )
    inputs = y, x, mu, stds
    total = _evaluate(_ESTIMATORS[estimator], inputs, scoring, losses, _ENTRIES_OF_INFORMATION)
    return total if constant == "keep" else _less_constant(total, inputs, scoring, losses)


def _less_constant(
    total: Tensor, inputs: Inputs, scoring: Scoring, losses: Losses | None
) -> Tensor:
    """Without d/2, in the loss and in the entries that have it."""
    (N, _, E), M = inputs[0].shape, inputs[1].shape[0]
    of_samples = positions_of_samples(scoring, N, M) * E / 2
    if scoring.reduction == "none":
        half = of_samples.flatten()
    else:
        half = of_samples.mean()
        if scoring.reduction == "sum":
            half = half * of_samples.shape[1]
    if losses is not None:
        for term in ("std_log", "total"):
            name = _ENTRIES_OF_INFORMATION[term]
            losses[name] = (losses[name] - half).to(total.dtype)
    return (total - half).to(total.dtype)


def _evaluate(
    estimate: Estimate,
    inputs: AnyInputs,
    scoring: Scoring,
    losses: Losses | None,
    entries: Mapping[str, str],
) -> Tensor:
    """The loss; its terms go into `losses`."""
    total: Tensor
    if losses is None:
        total = estimate(inputs, scoring, True)
        return total
    total, terms = estimate(inputs, scoring, False)
    # Copies: who writes into one entry must not write into another.
    copies: tuple[Tensor, ...] = torch.unbind_copy(terms)  # type: ignore
    for term, value in zip(TERMS, copies, strict=True):
        if term == "assignment" and estimate is jensen:
            losses.pop(entries[term], None)  # of another estimator, in a mapping used again
        elif term in entries:
            losses[entries[term]] = value
    return total
