"""Energies of all N x M pairs: squared distances by true differences, log-determinants by row
sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._mixture import Mixture
from .._precision import working_dtype
from .rows import in_rows
from .streaming import WHOLE, Block, blocks, sum_of_gradients, sum_over_blocks
from .variance import log_determinant_terms, stabilised_root


class _Roles(NamedTuple):
    """What value and gradient of one block share; b is the number of positions in it, e of
    features."""

    sample_mask: Tensor  # (N, b)
    component_mask: Tensor  # (M, b)
    standardised: Tensor  # (N, M, b, e): (y_i - c_l) / sqrt(v_l)
    root: Tensor  # (M, b, e): sqrt(v_l)
    own_root: Tensor | None  # (N, b, e)


class Direction:
    """Energies of the pairs of one mixture and their gradient, for a block of (y, x, mu, stds)."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.masks = mixture.contributing()
        self.sample_rows = slice(*mixture.sample_rows)
        self.component_rows = slice(*mixture.component_rows)

    def _roles(self, block: Block, y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor) -> _Roles:
        m, dtype = self.mixture, working_dtype(y.device)
        active_i, active_l = (mask[:, block[0]] for mask in self.masks)
        spare = all(t is None or t.dtype != dtype for t in (y, x, mu))  # digits
        y, x = y[self.sample_rows], x[self.component_rows]
        sample = torch.where(active_i[..., None], y.to(dtype), 0)
        centre = torch.where(active_l[..., None], x.to(dtype), 0)
        offset = None
        if mu is not None:
            offset = torch.where(active_l[..., None], mu[self.component_rows], 0).to(dtype)
            if spare:
                centre, offset = centre + offset, None
        difference = sample[:, None] - centre
        if offset is not None:
            difference = difference - offset
        root = stabilised_root(stds[self.component_rows], active_l, m.component_eps, dtype)
        own_root = None
        if m.sample_eps is not None:
            own_root = stabilised_root(stds[self.sample_rows], active_i, m.sample_eps, dtype)
        return _Roles(active_i, active_l, difference / root, root, own_root)

    def energies(
        self, block: Block, y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor
    ) -> tuple[Tensor, ...]:
        r = self._roles(block, y, x, mu, stds)
        shared = r.sample_mask[:, None] & r.component_mask
        q = torch.where(shared, r.standardised.square().sum(-1), 0).sum(-1) / 2
        g = r.sample_mask.to(q.dtype) @ log_determinant_terms(r.root, r.component_mask).T
        k = torch.zeros_like(g)
        if r.own_root is not None:
            own = log_determinant_terms(r.own_root, r.sample_mask)
            k = own @ r.component_mask.to(q.dtype).T
        return q, g, k

    def gradient(
        self,
        block: Block,
        upstream: tuple[Tensor, ...],
        wanted: Sequence[bool],
        y: Tensor,
        x: Tensor,
        mu: Tensor | None,
        stds: Tensor,
    ) -> Sequence[Tensor | None]:
        r = self._roles(block, y, x, mu, stds)
        upstream_q, upstream_g, upstream_k = upstream
        shared = (r.sample_mask[:, None] & r.component_mask)[..., None]
        # Select after the product: neither value nor upstream of another position gets through.
        pull = torch.where(shared, upstream_q[..., None, None] * r.standardised, 0)
        result: list[Tensor | None] = [None] * 4
        if wanted[0]:
            result[0] = in_rows((pull / r.root).sum(1), self.sample_rows, y)
        if wanted[1] or wanted[2]:
            d_c = -pull.sum(0) / r.root  # in this order infinities do not meet
            result[1] = in_rows(d_c, self.component_rows, x) if wanted[1] else None
            if mu is not None and wanted[2]:
                result[2] = in_rows(d_c, self.component_rows, mu)
        if wanted[3]:
            dtype = pull.dtype
            of_logs = upstream_g.T @ r.sample_mask.to(dtype)
            of_squares = torch.where(shared, pull * r.standardised, 0).sum(0)
            active_l = r.component_mask[..., None]
            sigma = torch.where(active_l, stds[self.component_rows], 0)
            d_stds = (sigma / r.root) * ((of_logs[..., None] - of_squares) / r.root)
            d_stds = torch.where(active_l, d_stds, 0)
            total = in_rows(d_stds, self.component_rows, stds)
            if r.own_root is not None:
                of_own = (upstream_k @ r.component_mask.to(dtype))[..., None]
                active_i = r.sample_mask[..., None]
                sigma = torch.where(active_i, stds[self.sample_rows], 0)
                d_own = torch.where(active_i, (sigma / r.own_root) * (of_own / r.own_root), 0)
                total = total + in_rows(d_own, self.sample_rows, stds)
            result[3] = total
        return result


def energies(mixture: Mixture, y: Tensor, x: Tensor, mu: Tensor | None, stds: Tensor) -> Tensor:
    """q, g and k of every pair of one mixture (3, N, M), differentiable; without blocks."""
    return torch.stack(Direction(mixture).energies(WHOLE, y, x, mu, stds))


def pairs(
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    energies: Tensor | None = None,
) -> Tensor:
    """q, g and k of every pair, in nats: (D, 3, N, M) in the working dtype, O(N M S E) work.

    The arguments are those of `moments.moments`, whose results are the sums of these matrices; `mu`
    None is 0. With `exclude_diagonal`, the diagonal entries are finite but mean nothing: the caller
    leaves them out. `energies` is memory for the result, if there is any.
    """
    cut = _blocks(mixtures[0], y)
    if energies is None:
        shape = len(mixtures), 3, mixtures[0].samples, mixtures[0].components
        energies = torch.empty(shape, dtype=working_dtype(y.device), device=y.device)
    for of_mixture, mixture in zip(energies, mixtures, strict=True):
        found = sum_over_blocks(Direction(mixture).energies, cut, y, x, mu, stds)
        for to, matrix in zip(of_mixture, found, strict=True):
            to.copy_(matrix)
    return energies


def pairs_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    state: None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of y, x, mu and stds, None where `wanted` is false, given `upstream` (D, 3, N, M).

    With grad mode on the result is differentiable, and holds its whole graph."""
    directions = [Direction(mixture).gradient for mixture in mixtures]
    cut = _blocks(mixtures[0], y)
    return sum_of_gradients(directions, cut, upstream, wanted, y, x, mu, stds)


def _blocks(mixture: Mixture, y: Tensor) -> list[Block]:
    # Two large temporaries at a time: the standardised differences and their squares.
    rows = 2 * mixture.samples * mixture.components
    return blocks(rows, y.shape[1], y.shape[2], y.device, min_features=1)
