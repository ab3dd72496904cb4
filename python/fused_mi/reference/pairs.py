"""Energies of all N x M pairs: squared distances by true differences, log-determinants by row
sums."""

from __future__ import annotations

import torch
from torch import Tensor

from .mixture import Mixture, first_active_row
from .streaming import Block, blocks, sum_over_blocks, working_dtype
from .variance import log_determinant_terms, stabilised_variance


def pairs(
    y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor, mixture: Mixture
) -> tuple[Tensor, Tensor, Tensor]:
    """q, g and k of every pair, in nats: three (N, M) tensors in the working dtype, O(N M S E)
    work.

    The arguments are those of `moments.moments`, whose results are the sums of these matrices; `mu`
    None is 0. With `exclude_diagonal`, the diagonal entries are finite but mean nothing: the caller
    leaves them out.
    """
    m = mixture
    masks = m.contributing()
    dtype = working_dtype(y.device)

    def energies(
        block: Block, y: Tensor, x: Tensor, stds: Tensor, *means: Tensor
    ) -> tuple[Tensor, ...]:
        active_i, active_l = masks[0][:, block[0]], masks[1][:, block[0]]
        y, x = y[m.sample_rows], x[m.component_rows]
        shift = first_active_row(x, active_l).to(dtype)
        deviation = x.to(dtype) - shift
        for offset in means:  # mu, if there is one
            deviation = deviation + offset[m.component_rows]
        sample = torch.where(active_i[..., None], y.to(dtype) - shift, 0)
        centre = torch.where(active_l[..., None], deviation, 0)
        variance = stabilised_variance(stds[m.component_rows], active_l, m.component_eps, dtype)

        standardised = (sample[:, None] - centre) * variance.rsqrt()
        shared = active_i[:, None] & active_l
        q = torch.where(shared, standardised.square().sum(-1), 0).sum(-1) / 2
        g = active_i.to(dtype) @ log_determinant_terms(variance, active_l).T
        k = torch.zeros_like(g)
        if m.sample_eps is not None:
            own_variance = stabilised_variance(stds[m.sample_rows], active_i, m.sample_eps, dtype)
            k = log_determinant_terms(own_variance, active_i) @ active_l.to(dtype).T
        return q, g, k

    # Two large temporaries at a time: the standardised differences and their squares.
    rows = 2 * masks[0].shape[0] * masks[1].shape[0]
    cut = blocks(rows, y.shape[1], y.shape[2], y.device, min_features=1)
    q, g, k = sum_over_blocks(energies, cut, y, x, stds, *(() if mu is None else (mu,)))
    return q, g, k
