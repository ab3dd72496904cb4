"""Bounds of the information of a batch that is all there is, from divergences of its rows' noise
distributions: no sample is drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks
from ._precision import working_dtype
from ._types import Bound, Reduction
from .ops.variance import stabiliser
from .reference.streaming import Block, blocks, differentiable_sum_over_blocks
from .reference.variance import stabilised_root

_FARTHEST = 1e150  # standard deviations: its square is in range, where exp(-D) is long 0
_LARGEST_LOG = 700.0  # of a ratio of variances: likewise


def kolchinsky_tracey(
    means_tensor: Tensor,
    stds_tensor: Tensor,
    noise_mask: Tensor | None,
    clean_input_embeddings: Tensor,
    *,
    bound: Bound = "upper",
    reduction: Reduction = "mean",
    safety_factor: float = 100.0,
    eps: float | None = None,
) -> Tensor:
    """Bounds of the information that y = x + mu + sigma * N(0, I) has of its row, where x is drawn
    from the rows of this batch alone: `mean_i -log(1/M sum_l exp(-D_il))`.

    D is a divergence of the noise distributions of two rows, with v = sigma^2 and c = x + mu:

    - "upper": Kullback-Leibler, `1/2 sum_se [v_i / v_l - 1 - log(v_i / v_l) + (c_i - c_l)^2 / v_l]`
    - "lower": Bhattacharyya, `1/8 sum_se (c_i - c_l)^2 / v + 1/2 sum_se log(v / sqrt(v_i v_l))`
      with v = (v_i + v_l) / 2

    No noise is drawn, so neither has an error of sampling, and both are between 0 and log M. Of
    what the rows are a sample of they say as much as M rows can. O(M^2 S E) work in plain PyTorch,
    O(M^2) memory.

    Args:
        means_tensor, stds_tensor, clean_input_embeddings: (M, S, E) mu, sigma and x; or (M, E).
        noise_mask: (S,), the positions that all rows have, non-zero = active. None: all.
        bound: "upper" or "lower".
        reduction: "mean" over the rows, "sum", or "none", one value each.
        safety_factor: eps of the variances is this times finfo(T).eps times the smallest positive
            active one.
        eps: the stabiliser itself; then `safety_factor` plays no part.

    Returns:
        0-dim in T (float64 if any input is, else float32), in nats; (M,) for the reduction "none".

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: the batch is empty, shapes do not match, devices differ, or an option is
            unknown.

    Source: Kolchinsky, Tracey: Estimating mixture entropy with pairwise distances. Entropy 19(7),
    2017.
    """
    mu, stds, x = _checks.with_positions((means_tensor, stds_tensor, clean_input_embeddings))
    dtype = _checks.floating(means_tensor=mu, stds_tensor=stds, clean_input_embeddings=x)
    safety_factor = _checks.factor_or_fixed(safety_factor, eps)
    _checks.option("bound", bound, Bound)
    _checks.option("reduction", reduction, Reduction)
    _checks.dimensions("means_tensor", mu, "(M, S, E)")
    _checks.shape("stds_tensor", stds, mu.shape, "(M, S, E)")
    _checks.shape("clean_input_embeddings", x, mu.shape, "(M, S, E)")
    _checks.not_empty("means_tensor", mu)
    if noise_mask is None:
        active = mu.new_ones((), dtype=torch.bool).expand(mu.shape[1])
    else:
        active = _checks.activity("noise_mask", noise_mask, mu)
        _checks.shape("noise_mask", active, mu.shape[1:2], "(S,)")
    active = active.expand(mu.shape[:2])
    stabilised = stabiliser(stds, active, (0, len(stds)), dtype, safety_factor)
    divergences = _divergences(bound, x, mu, stds, active, stabilised)
    # Of the own row exp(-D) is 1: the mean never vanishes, and where all D are 0 the log is 0.
    values = -torch.log1p(torch.expm1(-divergences).mean(1))
    if reduction != "none":
        values = values.mean() if reduction == "mean" else values.sum()
    return values.to(dtype)


def _divergences(
    bound: Bound, x: Tensor, mu: Tensor, stds: Tensor, active: Tensor, eps: Tensor
) -> Tensor:
    """D of all pairs (M, M) in the working dtype, over the active positions."""
    dtype = working_dtype(x.device)
    of_pairs = _kullback_leibler if bound == "upper" else _bhattacharyya

    def of_block(block: Block, x: Tensor, mu: Tensor, stds: Tensor) -> tuple[Tensor]:
        here = active[:, block[0]]
        root = stabilised_root(stds, here, eps, dtype)
        x, mu = (torch.where(here[..., None], t, 0).to(dtype) for t in (x, mu))
        # Differences first: they keep the digits that an offset takes from the sums.
        distance = (x[:, None] - x) + (mu[:, None] - mu)
        return (of_pairs(distance, root[:, None], root).sum((-2, -1)),)

    rows = 4 * len(x) ** 2  # that many temporaries at a time
    cut = blocks(rows, x.shape[1], x.shape[2], x.device, min_features=1)
    found = differentiable_sum_over_blocks(of_block, cut, x, mu, stds)[0]
    return found.clamp(min=0)  # less is rounding


def _kullback_leibler(distance: Tensor, root_i: Tensor, root_l: Tensor) -> Tensor:
    """Of each feature, KL(N_i || N_l) of Gaussians whose centres are `distance` apart."""
    log_ratio = 2 * (root_i.log() - root_l.log())
    of_variances = log_ratio.clamp(max=_LARGEST_LOG).expm1() - log_ratio
    return (of_variances + _squared(distance / root_l)) / 2


def _bhattacharyya(distance: Tensor, root_i: Tensor, root_l: Tensor) -> Tensor:
    """The same of the Bhattacharyya distance; v / sqrt(v_i v_l) is the hyperbolic cosine of the log
    of the ratio of stds."""
    log_ratio = root_i.log() - root_l.log()
    log_cosh = torch.logaddexp(log_ratio, -log_ratio) - math.log(2)
    return _squared(distance / torch.hypot(root_i, root_l)) / 4 + log_cosh / 2


def _squared(standardised: Tensor) -> Tensor:
    return standardised.clamp(-_FARTHEST, _FARTHEST).square()
