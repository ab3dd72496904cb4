"""What a noise layer that sees one token at a time tells about that token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks
from ._mixture import Scoring
from ._types import Reduction
from ._weighted import weighted
from .ops.estimators import logsumexp_of_weighted


def token_information(
    noisy: Tensor,
    tokens: Tensor,
    centers: Tensor,
    stds: Tensor,
    token_log_probabilities: Tensor,
    *,
    leave_own_out: bool = False,
    reduction: Reduction = "mean",
    safety_factor: float = 100.0,
    eps: float | None = None,
) -> Tensor:
    """What a noisy embedding tells about its token: `mean_i [log N(y_i; t_i) - log sum_v p_v N(y_i;
    v)]`, of a noise layer that sees one token at a time.

    With the true frequencies p this is the mutual information of token and embedding: how much
    lower, in nats, the expected log-loss of whoever knows layer and p, sees one embedding and names
    its token is than that of guessing from p. It is never above `-mean_i log p(t_i)`. With other p
    it is the information plus the divergence of the embeddings from the mixture with that p: an
    upper bound. Where every token is told apart it has no gradient: train from much noise towards
    less, or leave the own token out.

    Args:
        noisy: (N, E) the noisy embeddings.
        tokens: (N,) integers, the row of each one's token in `centers`.
        centers, stds: (M, E) of the noise of each token: `embedding + mu` and sigma.
        token_log_probabilities: (M,) log p, normalised; -inf takes a token out of the sum.
        leave_own_out: the sum over v leaves t_i out, its weights renormalised by 1 - p(t_i): how
            far the token is from all others.
        reduction: "mean" over the samples, "sum", or "none", one value each.
        safety_factor: as in `pairwise_square_mahalanobis_distance`, of tokens in the sum.
        eps: the stabiliser itself; then `safety_factor` plays no part.

    Returns:
        0-dim in T, in nats; (N,) for the reduction "none". inf where `leave_own_out` leaves
        nothing; NaN for a token outside of [0, M) where that is no error.

    Raises:
        TypeError: no dense tensor, another dtype than float16, bfloat16, float32 and float64, or
            `tokens` are no integers.
        ValueError: shapes do not match, a batch is empty, devices differ, a token is outside of
            [0, M) (on a CPU), or an option is unknown.
    """
    dtype = _checks.floating(
        noisy=noisy,
        centers=centers,
        stds=stds,
        token_log_probabilities=token_log_probabilities,
    )
    leave_own_out = _checks.flag("leave_own_out", leave_own_out)
    safety_factor = _checks.factor_or_fixed(safety_factor, eps)
    _checks.option("reduction", reduction, Reduction)
    _checks.dimensions("noisy", noisy, "(N, E)")
    _checks.dimensions("centers", centers, "(M, E)")
    _checks.shape("centers", centers, (centers.shape[0], noisy.shape[1]), "(M, E)")
    _checks.shape("stds", stds, centers.shape, "(M, E)")
    _checks.not_empty("noisy", noisy)
    _checks.not_empty("centers", centers)
    weights = token_log_probabilities
    _checks.shape("token_log_probabilities", weights, centers.shape[:1], "(M,)")
    origins = _checks.rows_of("tokens", tokens, noisy, len(centers))
    y, x, stds = (t.unsqueeze(1) for t in (noisy, centers, stds))
    active = y.new_ones((), dtype=torch.bool).expand(len(y), 1)
    scoring = Scoring(
        active,
        None,
        origins,
        reduction=reduction,
        safety_factor=safety_factor,
        leave_origins_out=leave_own_out,
    )
    mu = x.new_zeros(()).expand_as(x)
    inputs, scoring = weighted((y, x, mu, stds), weights, scoring, dtype)
    total: Tensor = logsumexp_of_weighted(inputs, scoring, True)
    if not leave_own_out:
        return total
    others = _log_of_rest(weights.to(dtype))[origins.clamp(0, len(centers) - 1)]
    if reduction != "none":
        others = others.mean() if reduction == "mean" else others.sum()
    return torch.where(total == math.inf, total, total + others)


def _log_of_rest(weights: Tensor) -> Tensor:
    """`log(1 - exp(w))`."""
    return torch.log(-torch.expm1(weights))
