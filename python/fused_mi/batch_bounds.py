"""Bounds of the information from one batch whose noise is known: every row is scored against its
own component and those of all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _calls, _checks
from ._mixture import Scoring
from ._types import Reduction
from .ops.estimators import logsumexp


def l1out(
    means_tensor: Tensor,
    stds_tensor: Tensor,
    noise_mask: Tensor,
    clean_input_embeddings: Tensor,
    noisy_input_embeddings: Tensor,
    *,
    reduction: Reduction = "mean",
    safety_factor: float = 100.0,
    eps: float | None = None,
) -> Tensor:
    """Leave-one-out upper bound of the mutual information of x and y = x + mu + sigma * N(0, I):
    `mean_i [log p(y_i|x_i) - log(1/(B-1) sum_{l != i} p(y_i|x_l))]`.

    In expectation it is not below the information. It takes the tensors of
    `mutual_information_sub_batch`, whose "logsumexp" of "leave_one_out", less d/2, has the same
    expectation: there k + d/2 stands for `-log p(y_i|x_i)`, here the noise that was drawn. That
    varies less, because noise that is large is far from all components.

    Args:
        means_tensor, stds_tensor: (B, S, E) mu and sigma; or (B, E), here and below, for S = 1.
        noise_mask: (B, S), non-zero = the position carries noise; or (B,). Row i of all densities
            is over the positions that are active in sample i, whatever the masks of the others.
        clean_input_embeddings, noisy_input_embeddings: (B, S, E) x and y.
        reduction: "mean" over the rows, "sum", or "none", one value each.
        safety_factor: eps of the variances is this times finfo(T).eps times the smallest positive
            one, over the positions that some row uses.
        eps: the stabiliser itself; then `safety_factor` plays no part.

    Returns:
        0-dim in T (float64 if any input is, else float32), in nats; (B,) for the reduction "none".
        `standard_error(l1out, *tensors)` is how sure the mean is.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: B < 2, shapes do not match, devices differ, or an option is unknown.

    Source: Poole, Ozair, van den Oord, Alemi, Tucker: On variational bounds of mutual information.
    ICML 2019.
    """
    embeddings = means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings
    return _of_batch(embeddings, noise_mask, reduction, safety_factor, eps, others=True)


def infonce(
    means_tensor: Tensor,
    stds_tensor: Tensor,
    noise_mask: Tensor,
    clean_input_embeddings: Tensor,
    noisy_input_embeddings: Tensor,
    *,
    reduction: Reduction = "mean",
    safety_factor: float = 100.0,
    eps: float | None = None,
) -> Tensor:
    """InfoNCE with the known density, a lower bound of the mutual information of x and y = x + mu +
    sigma * N(0, I): `mean_i [log p(y_i|x_i) - log(1/B sum_l p(y_i|x_l))]`.

    In expectation it is not above the information; no row is above log B, so that a batch shows
    no more than that. Arguments, result and source are those of `l1out`.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: B < 1, shapes do not match, devices differ, or an option is unknown.
    """
    embeddings = means_tensor, stds_tensor, clean_input_embeddings, noisy_input_embeddings
    return _of_batch(embeddings, noise_mask, reduction, safety_factor, eps, others=False)


def _of_batch(
    embeddings: tuple[Any, Any, Any, Any],
    noise_mask: Any,
    reduction: Any,
    safety_factor: Any,
    eps: Any,
    others: bool,
) -> Tensor:
    """The log-ratio of the own density to the mean of all, or of the `others`."""
    inputs, active = _calls.batch(*embeddings, noise_mask)
    safety_factor = _checks.factor_or_fixed(safety_factor, eps)
    _checks.option("reduction", reduction, Reduction)
    rows, least = len(active), 2 if others else 1
    if rows < least:
        raise ValueError(f"means_tensor: expected a batch of at least {least}, got B = {rows}")
    scoring = Scoring(
        active,
        active.any(0).expand_as(active),  # what no sample uses has no influence
        torch.arange(rows, device=active.device),
        reduction=reduction,
        safety_factor=safety_factor,
        leave_origins_out=others,
    )
    total: Tensor = logsumexp(inputs, scoring, True)  # of a mean over B, with or without the own
    if not others:
        return total
    share = total.new_full((), -1 / rows).log1p()  # no number: a graph serves every batch
    return total + (share * rows if reduction == "sum" else share)
