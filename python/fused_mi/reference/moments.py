"""The Jensen loss is linear in the batch: the double sum over pairs from two sets of mergeable moments.

Weighted moments of rows merge exactly: Welford (1962), Technometrics 4(3); Chan, Golub & LeVeque (1979), STAN-CS-79-773.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .masks import contributing, first_active_row
from .streaming import Block, blocks, sum_over_blocks, working_dtype
from .variance import log_determinant_terms, stabilised_variance


class Moments(NamedTuple):
    """Weighted moments of rows, per position and feature; the mean is `shift + delta`, never rounded into one number."""

    weight: Tensor  # (S, E) or (S, 1): sum of the weights
    shift: Tensor  # (S, E): a row's value near the mean
    delta: Tensor  # (S, E): mean - shift
    m2: Tensor  # (S, E): weighted sum of squared deviations from the mean


def weighted_moments(weights: Tensor, deviations: Tensor, shift: Tensor) -> Moments:
    """Moments of rows `shift + deviations` (rows, S, E) with `weights` (rows, S, E or 1) >= 0; all zero weights give 0."""
    weight = weights.sum(0)
    delta = (weights * deviations).sum(0) / torch.where(weight > 0, weight, 1)
    return Moments(weight, shift, delta, (weights * (deviations - delta).square()).sum(0))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the union of two disjoint sets of rows."""
    weight = a.weight + b.weight
    safe_weight = torch.where(weight > 0, weight, 1)
    shift = torch.where(a.weight > 0, a.shift, b.shift)
    to_a = torch.where(a.weight > 0, a.delta + (a.shift - shift), 0)
    to_b = torch.where(b.weight > 0, b.delta + (b.shift - shift), 0)
    distance = to_b - to_a
    m2 = a.m2 + b.m2 + distance.square() * (a.weight * b.weight / safe_weight)
    return Moments(weight, shift, (a.weight * to_a + b.weight * to_b) / safe_weight, m2)


def squared_distances(samples: Moments, components: Moments) -> Tensor:
    """`sum_il w_ils (y_i - c_l)^2 / v_l` per position and feature (S, E): three terms, none negative."""
    distance = (samples.shift - components.shift) + (samples.delta - components.delta)
    return (
        samples.m2 * components.weight
        + samples.weight * components.weight * distance.square()
        + samples.weight * components.m2
    )


def moments(
    y: Tensor,
    sample_stds: Tensor | None,
    sample_mask: Tensor,
    sample_eps: Tensor | None,
    x: Tensor,
    mu: Tensor,
    component_stds: Tensor,
    component_mask: Tensor,
    component_eps: Tensor,
    exclude_diagonal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over all pairs of q, g and k, in nats: three 0-dim tensors in the working dtype, O(N S E) work.

    Args:
        y: (N, S, E) samples.
        sample_stds: (N, S, E) their own stds, for k; None leaves k at 0.
        sample_mask: (N, S) bool.
        sample_eps: 0-dim, added to the variance of the samples.
        x, mu: (M, S, E); the component centre is x + mu.
        component_stds: (M, S, E) stds of the components.
        component_mask: (M, S) bool; a position weighs 1 in a pair where both masks are set.
        component_eps: 0-dim, added to the variance of the components.
        exclude_diagonal: leave the pairs (i, i) out (N = M).
    """
    dtype = working_dtype(y.device)
    sample_mask, component_mask = contributing(sample_mask, component_mask, exclude_diagonal)
    diagonal_mask = sample_mask & component_mask if exclude_diagonal else None

    def block_sums(
        block: Block, y: Tensor, x: Tensor, mu: Tensor, component_stds: Tensor, *own: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        active_i, active_l = sample_mask[:, block[0]], component_mask[:, block[0]]
        count_i, count_l = active_i.sum(0).to(dtype), active_l.sum(0).to(dtype)

        y_shift, c_shift = first_active_row(y, active_i).to(dtype), first_active_row(x, active_l).to(dtype)
        y_deviation = torch.where(active_i[..., None], y.to(dtype) - y_shift, 0)
        c_deviation = torch.where(active_l[..., None], (x.to(dtype) - c_shift) + mu, 0)
        variance = stabilised_variance(component_stds, active_l, component_eps, dtype)
        precision = torch.where(active_l[..., None], variance.reciprocal(), 0)

        samples = weighted_moments(active_i[..., None].to(dtype), y_deviation, y_shift)
        components = weighted_moments(precision, c_deviation, c_shift)
        q = squared_distances(samples, components).sum() / 2

        log_l = log_determinant_terms(variance, active_l)
        g = (count_i * log_l.sum(0)).sum()
        k = torch.zeros_like(g)
        if own:
            assert sample_eps is not None
            log_i = log_determinant_terms(stabilised_variance(own[0], active_i, sample_eps, dtype), active_i)
            k = (count_l * log_i.sum(0)).sum()

        if diagonal_mask is not None:
            both = diagonal_mask[:, block[0]]
            distance = (y_deviation - c_deviation) + (y_shift - c_shift)
            q = q - torch.where(both[..., None], distance.square() * precision, 0).sum() / 2
            g = g - torch.where(both, log_l, 0).sum()
            if own:
                k = k - torch.where(both, log_i, 0).sum()
        return q, g, k

    cut = blocks(max(y.shape[0], x.shape[0]), y.shape[1], y.shape[2], y.device)
    own = () if sample_stds is None else (sample_stds,)
    q, g, k = sum_over_blocks(block_sums, cut, y, x, mu, component_stds, *own)
    return q, g, k
