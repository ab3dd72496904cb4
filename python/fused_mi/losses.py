"""The losses of the mixture: from checked arguments to operators, and their results in order."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from . import _calls
from ._mixture import AnyInputs, Scoring, half_of_positions
from ._precision import accumulation_dtype
from ._terms import TERMS
from ._types import Constant, Estimator, Pairing, Reduction, SmallBatch
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
    group: Any = None,
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
        group: samples and components of all its ranks, see `mutual_information_sub_batch`; weights
            are those of the components that are here, and have no part in shards.

    Returns:
        0-dim in T, in nats; (N,) for the reduction "none".

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: shapes do not match, a batch is empty, devices differ, an option is unknown, or
            weights under "jensen" or of a group with shards.
    """
    embeddings = (clean_embeddings, transformed_embeddings, means, stds)
    if _any_distributed(embeddings):
        if component_log_weights is not None:
            raise ValueError(
                "component_log_weights: expected None beside distributed tensors, got a tensor"
            )
        group, embeddings, (mask, component_mask) = _local(group, embeddings, mask, component_mask)
    check = functools.partial(
        _calls.entropy,
        *(*embeddings, mask, losses, safety_factor),
        *(component_mask, component_log_weights, estimator, reduction, eps),
    )
    where = _group_of(group, of_pairs=True)
    if where is not None:
        if component_log_weights is not None and where.shards:
            raise ValueError(
                "component_log_weights: expected None for a group with shards, got a tensor"
            )
        total, _ = _of_ranks(where, check, _calls.rows_of_entropy, estimator, losses)
        return total
    inputs, scoring = check()
    _calls.rows_of_entropy(inputs[0].shape[0], inputs[1].shape[0])
    estimate = logsumexp_of_weighted if len(inputs) > 4 else _ESTIMATORS[estimator]
    return _evaluate(estimate, inputs, scoring, losses, _ENTRIES_OF_ENTROPY)


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
    small_batch: SmallBatch = "raise",
    group: Any = None,
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
        small_batch: of fewer than two rows, "raise" or "skip": 0, whose gradients are 0, for the
            remainder of an epoch.
        group: a `torch.distributed.ProcessGroup`, a one-dimensional `DeviceMesh`, or `Ranks`: the
            batch is that of all its ranks, their rows in rank order, however many each has. Value
            and `losses` are the same bits on all ranks. The gradient is that of the loss of all
            ranks, times the number of ranks, for a trainer that averages gradients over them; see
            `Ranks`. It takes the gradient of the result to be the same on all ranks. Of the
            reduction "none" the values of the rows that are here, without gradients.

    Returns:
        0-dim in T, in nats; for the reduction "none" (B/2,), "symmetric" and "leave_one_out" (B,).

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: B < 2, B odd (not for "leave_one_out"), shapes do not match, devices differ, or
            an option is unknown; of a group: on any rank, raised on all of them.
    """
    embeddings = (means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings)
    if _any_distributed(embeddings):
        group, embeddings, (noise_mask,) = _local(group, embeddings, noise_mask)
    check = functools.partial(
        _calls.information,
        *(*embeddings, noise_mask),
        combine_noise_masks_for_mutual_information_sub_batches,
        *(losses, safety_factor, estimator, reduction, pairing, constant, eps, small_batch),
    )
    where = _group_of(group)
    if where is not None:
        rows = functools.partial(_rows_of_ranks, pairing=pairing, small_batch=small_batch)
        options = constant, small_batch
        total, half = _of_ranks(where, check, rows, estimator, losses, options)
        return total if constant == "keep" else less_half(half, total, losses)
    inputs, scoring = check()
    batch = inputs[0].shape[0]
    if batch < 2 and small_batch == "skip":
        return skipped(inputs, estimator, losses)
    _calls.rows_of_information(batch, pairing)
    estimate = _ESTIMATORS[estimator]
    total = _evaluate(estimate, inputs, scoring, losses, _ENTRIES_OF_INFORMATION)
    if constant == "keep":
        return total
    return less_half(half_of_positions(scoring, inputs), total, losses)


def less_half(half: Tensor, total: Tensor, losses: Losses | None) -> Tensor:
    """Without d/2, in the loss and in the entries that have it."""
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
    enter(losses, terms, estimate is jensen, entries)
    return total


def enter(
    losses: Losses,
    terms: Tensor,
    of_jensen: bool,
    entries: Mapping[str, str] = _ENTRIES_OF_INFORMATION,
) -> None:
    """The terms of an operator, by the names of a loss."""
    # Copies: who writes into one entry must not write into another.
    copies: tuple[Tensor, ...] = torch.unbind_copy(terms)  # type: ignore
    for term, value in zip(TERMS, copies, strict=True):
        if term == "assignment" and of_jensen:
            losses.pop(entries[term], None)  # of another estimator, in a mapping used again
        elif term in entries:
            losses[entries[term]] = value


def skipped(inputs: AnyInputs, estimator: Estimator, losses: Losses | None) -> Tensor:
    """0 with a graph, of which every gradient is 0."""
    total = torch.stack([t[:0].sum(dtype=accumulation_dtype(*inputs)) for t in inputs]).sum()
    if losses is not None:
        terms = total.expand(len(TERMS))
        enter(losses, terms, estimator == "jensen")
    return total


def _any_distributed(tensors: tuple[Tensor, ...]) -> bool:
    """Whether any is a `DTensor`."""
    module = sys.modules.get("torch.distributed.tensor")  # else there is none
    return module is not None and any(isinstance(t, module.DTensor) for t in tensors)


def _local(group: Any, embeddings: Any, *masks: Any) -> tuple[Any, Any, Any]:
    """The ranks of distributed tensors, and what is here of each."""
    from .ranks._dtensors import local

    return local(group, embeddings, masks)


def _group_of(group: Any, of_pairs: bool = False) -> Any:
    """What operators take of a group, None for this process alone."""
    if group is None:
        return None
    from .ranks import group_of  # here: few need torch.distributed

    return group_of(group, of_pairs)


def _of_ranks(
    where: Any,
    check: Callable[[], tuple[AnyInputs, Scoring]],
    rows: Callable[[int, int], bool | None],
    estimator: Estimator,
    losses: Losses | None,
    options: tuple[str, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of the batch of all ranks, and d/2; its terms go into `losses`."""
    from .ranks._evaluate import evaluate

    entries = _ENTRIES_OF_ENTROPY if options is None else _ENTRIES_OF_INFORMATION
    inputs, found = evaluate(where, check, rows, estimator, options)
    if found is None:
        total = skipped(inputs, estimator, losses)
        return total, torch.zeros_like(total)
    total, terms, half = found
    if losses is not None:
        enter(losses, terms, estimator == "jensen", entries)
    return total, half


def _rows_of_ranks(samples: int, components: int, pairing: str, small_batch: str) -> bool:
    """Whether there are enough rows, and not too few to count."""
    if samples < 2 and small_batch == "skip":
        return False
    _calls.rows_of_information(samples, pairing)
    return True
