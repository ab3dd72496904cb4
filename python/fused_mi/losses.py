"""The losses of the mixture: checks of arguments, roles of samples and components, reductions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._broadcast import outer_pattern, used_by
from ._estimators import TERMS
from ._mixture import Inputs, Scoring, positions_of_pairs
from ._types import Constant, Estimator, Pairing, Reduction
from .ops.distances import distances
from .ops.estimators import Estimate, jensen, logsumexp
from .ops.variance import stabiliser
from .reference import variance
from .reference.distance import square_distance

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


def square_mahalanobis_distance(
    x: Tensor, y: Tensor, stds: Tensor, mask: Tensor, safety_factor: float = 100.0
) -> Tensor:
    """Half the squared Mahalanobis distance, `1/2 sum_s mask_s sum_e (x - y)^2 / (stds^2 + eps)`.

    Args:
        x, y, stds: (..., S, E) floating tensors; leading dimensions broadcast.
        mask: (..., S), non-zero = active; broadcasts against the leading dimensions and S.
        safety_factor: eps is this times finfo(T).eps times the smallest positive variance that an
            active position uses.

    Returns:
        The broadcast leading shape in T (float64 if any input is, else float32), in nats. The outer
        pattern (N, 1, S, E) with (1, M, S, E) takes the path of all pairs; no N*M*S*E tensor is
        built in any pattern.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not broadcast, or devices differ.
    """
    dtype = _checks.floating(x=x, y=y, stds=stds)
    safety_factor = _checks.factor(safety_factor)
    active = _checks.activity("mask", mask, x)
    for name, tensor in (("x", x), ("y", y), ("stds", stds)):
        if tensor.dim() < 2:
            raise ValueError(f"{name}: expected shape (..., S, E), got {tuple(tensor.shape)}")
        _checks.shape(name, tensor, (*tensor.shape[:-2], *x.shape[-2:]), "(..., S, E)")
    if active.dim() < 1 or active.shape[-1] not in (1, x.shape[-2]):
        raise ValueError(
            f"mask: expected shape (..., S) with S = {x.shape[-2]}, got {tuple(active.shape)}"
        )
    active = active.expand(*active.shape[:-1], x.shape[-2])
    try:
        torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], stds.shape[:-2], active.shape[:-1])
    except RuntimeError as error:
        raise ValueError(
            f"x, y, stds, mask: expected leading shapes that broadcast, got {tuple(x.shape[:-2])}, "
            f"{tuple(y.shape[:-2])}, {tuple(stds.shape[:-2])}, {tuple(active.shape[:-1])}"
        ) from error
    eps = variance.stabiliser(stds, used_by(active, stds), dtype, safety_factor)
    outer = outer_pattern(x, y, stds, active)
    if outer is None:
        return square_distance(x, y, stds, active, eps).to(dtype)
    q = distances(outer.y, outer.centers, outer.stds, outer.y_mask, outer.mask, eps)
    return (q.T if outer.transposed else q).to(dtype)


def pairwise_square_mahalanobis_distance(
    y: Tensor,
    centers: Tensor,
    stds: Tensor,
    mask: Tensor,
    component_mask: Tensor | None = None,
    safety_factor: float = 100.0,
) -> Tensor:
    """Half the squared Mahalanobis distance of every sample to every component.

    Args:
        y: (N, S, E) samples; or (N, E), with the others (M, E), for S = 1.
        centers, stds: (M, S, E) centres and standard deviations of the components.
        mask: (N, S), non-zero = active; or (N,).
        component_mask: (M, S); if given, a position weighs 1 in the pairs where both are active.
        safety_factor: as in `square_mahalanobis_distance`; the minimum runs over the active
            positions of the components, or over all of them without `component_mask`.

    Returns:
        (N, M) in T, in nats.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not match, or devices differ.
    """
    y, centers, stds, mask, component_mask = _checks.with_positions(
        (y, centers, stds), mask, component_mask
    )
    dtype = _checks.floating(y=y, centers=centers, stds=stds)
    safety_factor = _checks.factor(safety_factor)
    _checks.dimensions("y", y, "(N, S, E)")
    _checks.dimensions("centers", centers, "(M, S, E)")
    _checks.shape("centers", centers, (centers.shape[0], *y.shape[1:]), "(M, S, E)")
    _checks.shape("stds", stds, centers.shape, "(M, S, E)")
    active = _sample_mask(mask, y)
    components = _component_mask(component_mask, stds)
    if components is None:
        components = active.new_ones(()).expand(stds.shape[:2])
    eps = stabiliser(stds, components, (0, stds.shape[0]), dtype, safety_factor)
    return distances(y, centers, stds, active, components, eps).to(dtype)


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
    estimator: Estimator = "jensen",
    reduction: Reduction = "mean",
    eps: float | None = None,
) -> Tensor:
    """Monte Carlo entropy of a mixture of diagonal Gaussians at samples from another batch.

    With the energies `q + g = -log N(y_i; x_l + mu_l, diag(stds_l^2 + eps))` over the active
    positions, "jensen" is their mean over all pairs, an upper bound of "logsumexp",
    `mean_i -log(1/M sum_l exp(-(q_il + g_il)))`.

    Args:
        clean_embeddings, means, stds: (M, S, E); component l is centred at clean + means.
        transformed_embeddings: (N, S, E) samples; or (N, E), with the others (M, E), for S = 1.
        mask: (N, S) of the samples, non-zero = active; or (N,).
        losses: receives the terms named in `ComponentLossesDict`, in the same reduction; they add
            up to the result.
        safety_factor: as in `pairwise_square_mahalanobis_distance`.
        component_mask: (M, S); a position weighs 1 in a pair where both masks are active. Under
            "logsumexp", densities over different numbers of features then meet in one sum.
        estimator: "jensen", O(N S E) work, or "logsumexp", O(N M S E) work.
        reduction: "mean" over the samples or "sum", N times that.
        eps: the stabiliser itself, for a value that does not depend on the other rows; then
            `safety_factor` plays no part.

    Returns:
        0-dim in T, in nats.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not match, a batch is empty, devices differ, or an option is unknown.
    """
    x, y, means, stds, mask, component_mask = _checks.with_positions(
        (clean_embeddings, transformed_embeddings, means, stds), mask, component_mask
    )
    _checks.floating(clean_embeddings=x, transformed_embeddings=y, means=means, stds=stds)
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
    active = _sample_mask(mask, y)
    components = _component_mask(component_mask, stds)
    scoring = Scoring(active, components, "all", False, reduction == "sum", safety_factor)
    return _evaluate(estimator, (y, x, means, stds), scoring, losses, _ENTRIES_OF_ENTROPY)


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
        reduction: "sum" over the N samples, or "mean", nats per sample.
        pairing: "sub_batch", the first half scored against the second (N = B/2); "symmetric", the
            mean of both directions; "leave_one_out", every row against all others (N = B; odd B
            allowed).
        constant: "subtract" takes off d/2, N d/2 for "sum", with the mean d of the scored pairs; of
            the entries "std_log_loss" takes it, and then is -h(Y|X). The difference is rounded as
            the result that keeps it.
        eps: the stabiliser of both roles itself, for a value that does not depend on the other
            rows; then `safety_factor` plays no part.

    Returns:
        0-dim in T, in nats.

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
    scoring = Scoring(active, component_mask, pairing, True, reduction == "sum", safety_factor)
    inputs = y, x, mu, stds
    total = _evaluate(estimator, inputs, scoring, losses, _ENTRIES_OF_INFORMATION)
    return total if constant == "keep" else _less_constant(total, inputs, scoring, losses)


def _less_constant(
    total: Tensor, inputs: Inputs, scoring: Scoring, losses: Losses | None
) -> Tensor:
    """Without d/2, in the loss and in the entries that have it."""
    (N, _, E), M = inputs[0].shape, inputs[1].shape[0]
    half = positions_of_pairs(scoring, N, M) * E / 2
    if scoring.sum:
        (first, last), _ = scoring.rows(N, M)[0]
        half = half * (last - first)
    if losses is not None:
        for term in ("std_log", "total"):
            name = _ENTRIES_OF_INFORMATION[term]
            losses[name] = (losses[name] - half).to(total.dtype)
    return (total - half).to(total.dtype)


def _sample_mask(mask: Tensor, y: Tensor) -> Tensor:
    active = _checks.activity("mask", mask, y)
    _checks.shape("mask", active, y.shape[:2], "(N, S)")
    return active


def _component_mask(mask: Tensor | None, stds: Tensor) -> Tensor | None:
    if mask is None:
        return None
    active = _checks.activity("component_mask", mask, stds)
    _checks.shape("component_mask", active, stds.shape[:2], "(M, S)")
    return active


def _evaluate(
    estimator: Estimator,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    scoring: Scoring,
    losses: Losses | None,
    entries: Mapping[str, str],
) -> Tensor:
    """The loss; its terms go into `losses`."""
    estimate = _ESTIMATORS[estimator]
    total: Tensor
    if losses is None:
        total = estimate(inputs, scoring, True)
        return total
    total, terms = estimate(inputs, scoring, False)
    # Copies: who writes into one entry must not write into another.
    copies: tuple[Tensor, ...] = torch.unbind_copy(terms)  # type: ignore
    for term, value in zip(TERMS, copies, strict=True):
        if term == "assignment" and estimator == "jensen":
            losses.pop(entries[term], None)  # of another estimator, in a mapping used again
        elif term in entries:
            losses[entries[term]] = value
    return total
