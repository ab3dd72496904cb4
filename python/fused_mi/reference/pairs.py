"""Energies of all N x M pairs: squared distances by true differences, log-determinants by row sums."""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import contributing, first_active_row
from .streaming import Block, blocks, sum_over_blocks, working_dtype
from .variance import log_determinant_terms, stabilised_variance


def pairs(
    y: Tensor,
    sample_stds: Tensor | None,
    sample_mask: Tensor,
    sample_eps: Tensor | None,
    x: Tensor,
    mu: Tensor | None,
    component_stds: Tensor,
    component_mask: Tensor,
    component_eps: Tensor,
    exclude_diagonal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, g and k of every pair, in nats: three (N, M) tensors in the working dtype, O(N M S E) work.

    The arguments are those of `moments.moments`, whose result is the sums of these matrices; `mu` None is 0. With
    `exclude_diagonal`, the diagonal entries are finite but mean nothing: the caller leaves them out.
    """
    dtype = working_dtype(y.device)
    sample_mask, component_mask = contributing(sample_mask, component_mask, exclude_diagonal)

    def block_energies(block: Block, y: Tensor, x: Tensor, component_stds: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        active_i, active_l = sample_mask[:, block[0]], component_mask[:, block[0]]
        shift = first_active_row(x, active_l).to(dtype)
        deviation = x.to(dtype) - shift
        if mu is not None:
            mu_block, *rest = rest  # type: ignore[assignment]
            deviation = deviation + mu_block
        sample = torch.where(active_i[..., None], y.to(dtype) - shift, 0)
        centre = torch.where(active_l[..., None], deviation, 0)
        variance = stabilised_variance(component_stds, active_l, component_eps, dtype)

        standardised = (sample[:, None] - centre) * variance.rsqrt()
        shared = active_i[:, None] & active_l
        q = torch.where(shared, standardised.square().sum(-1), 0).sum(-1) / 2
        g = active_i.to(dtype) @ log_determinant_terms(variance, active_l).T
        k = torch.zeros_like(g)
        if rest:
            assert sample_eps is not None
            own_variance = stabilised_variance(rest[0], active_i, sample_eps, dtype)
            k = log_determinant_terms(own_variance, active_i) @ active_l.to(dtype).T
        return q, g, k

    cut = blocks(y.shape[0] * x.shape[0], y.shape[1], y.shape[2], y.device, min_features=1)
    optional = [t for t in (mu, sample_stds) if t is not None]
    q, g, k = sum_over_blocks(block_energies, cut, y, x, component_stds, *optional)
    return q, g, k
