"""The Jensen loss is linear in the batch: the double sum over pairs from two sets of mergeable
moments.

Weighted moments of rows merge exactly: Welford (1962), Technometrics 4(3); Chan, Golub & LeVeque
(1979), STAN-CS-79-773.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._mixture import Mixture
from .._precision import moments_dtype, working_dtype
from . import pairs
from .rows import first_active_row, heaviest_row, in_rows
from .streaming import WHOLE, Block, blocks, sum_of_gradients
from .variance import (
    log_determinant_terms,
    range_scale,
    stabilised_root,
)


class Moments(NamedTuple):
    """Weighted moments of rows, per position and feature; the mean is `shift + delta`, never
    rounded into one number."""

    weight: Tensor  # (S, E) or (S, 1): sum of the weights
    shift: Tensor  # (S, E): a row's value near the mean
    delta: Tensor  # (S, E): mean - shift
    m2: Tensor  # (S, E): weighted sum of squared deviations from the mean


def weighted_moments(weights: Tensor, deviations: Tensor, shift: Tensor) -> Moments:
    """Moments of rows `shift + deviations` (rows, S, E) with `weights` (rows, S, E or 1) >= 0; all
    zero weights give 0."""
    weight = weights.sum(0)
    # Shares of the weight: a product with the weight itself may overflow.
    delta = (weights / torch.where(weight > 0, weight, 1) * deviations).sum(0)
    m2 = (weights * (deviations - delta).square()).sum(0)
    return Moments(weight, shift, delta, torch.where(delta.isinf(), math.inf, m2))


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
    """`sum_il w_ils (y_i - c_l)^2 / v_l` per position and feature (S, E): three terms, none
    negative."""
    distance = (samples.shift - components.shift) + (samples.delta - components.delta)
    return (
        samples.m2 * components.weight
        + samples.weight * components.weight * distance.square()
        + samples.weight * components.m2
    )


class _Roles(NamedTuple):
    """What value and gradient of one block share; b is the number of positions in it, e of
    features."""

    sample_mask: Tensor  # (N, b)
    component_mask: Tensor  # (M, b)
    scale: Tensor | float  # (b, e): of the shifts, y, c and the precision, see `range_scale`
    y: Tensor  # (N, b, e): y - samples.shift, 0 where not active
    c: Tensor  # (M, b, e): x + mu - components.shift, 0 where not active
    root: Tensor  # (M, b, e): sqrt(v_l), without the scale
    precision: Tensor  # (M, b, e): 1 / v_l, 0 where not active
    samples: Moments
    components: Moments


class _Direction:
    """Value and gradient of the sums over the pairs of one mixture, for one block of (y, x, mu,
    stds)."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self.sample_rows = slice(*mixture.sample_rows)
        self.component_rows = slice(*mixture.component_rows)
        self.masks = mixture.contributing()
        self.both = self.masks[0] & self.masks[1] if mixture.exclude_diagonal else None

    def _roles(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> _Roles:
        m, dtype = self.mixture, working_dtype(y.device)
        sample_mask, component_mask = (mask[:, block[0]] for mask in self.masks)
        active_i, active_l = sample_mask[..., None], component_mask[..., None]
        samples, components = y[self.sample_rows], x[self.component_rows]
        root = stabilised_root(stds[self.component_rows], component_mask, m.component_eps, dtype)
        y_shift = first_active_row(samples, sample_mask).to(dtype)
        x_shift = heaviest_row(components, root, component_mask).to(dtype)
        of_y = torch.where(active_i, samples.to(dtype) - y_shift, 0)
        deviation = (components.to(dtype) - x_shift) + mu[self.component_rows]
        of_c = torch.where(active_l, deviation, 0)
        scale: Tensor | float = 1.0
        scaled = root
        if len(root) and any(t.dtype == dtype for t in (y, x, mu, stds)):  # narrower: in range
            scale = range_scale(torch.where(active_l, root, root.detach().amax(0)))
            y_shift, x_shift = y_shift * scale, x_shift * scale
            of_y, of_c, scaled = of_y * scale, of_c * scale, root * scale
        precision = torch.where(active_l, scaled.square().reciprocal(), 0)
        return _Roles(
            sample_mask,
            component_mask,
            scale,
            of_y,
            of_c,
            root,
            precision,
            weighted_moments(active_i.to(dtype), of_y, y_shift),
            weighted_moments(precision, of_c, x_shift),
        )

    def sums(
        self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(3,) sums of q, g and k, and (4, b, e) the moments of both roles."""
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        log_l = log_determinant_terms(r.root, r.component_mask)
        q = squared_distances(r.samples, r.components).sum() / 2
        g = (r.sample_mask.sum(0) * log_l.sum(0)).sum()
        k = torch.zeros_like(g)
        if m.sample_eps is not None:
            own_root = stabilised_root(
                stds[self.sample_rows], r.sample_mask, m.sample_eps, r.y.dtype
            )
            log_i = log_determinant_terms(own_root, r.sample_mask)
            k = (r.component_mask.sum(0) * log_i.sum(0)).sum()
        if self.both is not None:
            diagonal = self.both[:, block[0]]
            distance = self._own_distance(r, diagonal[..., None], y, x, mu)
            q = q - (distance.square() * r.precision).sum() / 2
            g = g - torch.where(diagonal, log_l, 0).sum()
            if m.sample_eps is not None:
                k = k - torch.where(diagonal, log_i, 0).sum()
        # Other backends measure from the first row.
        first = first_active_row(x[self.component_rows], r.component_mask).to(r.y.dtype)
        of_roles = torch.stack(
            (
                r.samples.delta / r.scale,
                r.samples.m2 / r.scale / r.scale,
                r.components.delta / r.scale + (r.components.shift / r.scale - first),
                (r.components.weight * r.scale * r.scale).expand(r.y.shape[1:]),
            )
        )
        return torch.stack((q, g, k)), of_roles

    def _own_distance(
        self, r: _Roles, diagonal: Tensor, y: Tensor, x: Tensor, mu: Tensor
    ) -> Tensor:
        """Of the pairs (i, i), scaled, where `diagonal` (N, b, 1) is true; else 0."""
        of_rows = y[self.sample_rows], x[self.component_rows], mu[self.component_rows]
        of_y, of_x, of_mu = (torch.where(diagonal, t, 0).to(r.y.dtype) for t in of_rows)
        return ((of_y - of_x) - of_mu) * r.scale

    def loses_digits(self, block: Block, *inputs: Tensor) -> bool:
        """Whether a row that is left out is nearly all of some sum it is taken from."""
        if self.both is None:
            return False
        r = self._roles(block, *inputs)
        samples, components = r.samples, r.components
        count = samples.weight.clamp(min=2)
        own = (r.y - samples.delta).square() * (count / (count - 1))
        # Of a sum from which a row is taken; all arithmetic has, where inputs are narrower.
        spare = all(t.dtype != r.y.dtype for t in inputs)
        most = 1 - (2.0**-28 if spare else 2.0**-2)
        outlier = torch.where(r.sample_mask[..., None], own, 0) > most * samples.m2
        heavy = r.precision > most * components.weight
        alone = (samples.m2 > 0, components.weight > 0)
        return bool(((outlier & alone[0]).any() | (heavy & alone[1]).any()).item())

    def gradient(
        self,
        block: Block,
        upstream: tuple[Tensor, ...],
        wanted: Sequence[bool],
        y: Tensor,
        x: Tensor,
        mu: Tensor,
        stds: Tensor,
    ) -> Sequence[Tensor | None]:
        m, r = self.mixture, self._roles(block, y, x, mu, stds)
        upstream_q, upstream_g, upstream_k = upstream
        active_i, active_l = r.sample_mask[..., None], r.component_mask[..., None]
        shift = r.samples.shift - r.components.shift
        diagonal = None if self.both is None else self.both[:, block[0], None]
        if diagonal is not None:
            own_distance = self._own_distance(r, diagonal, y, x, mu)
        result: list[Tensor | None] = [None] * 4
        if wanted[0]:
            samples = torch.where(active_i, y[self.sample_rows], 0).to(r.y.dtype) * r.scale
            d_y = r.components.weight * ((samples - r.components.shift) - r.components.delta)
            if diagonal is not None:
                d_y = d_y - r.precision * own_distance
            result[0] = in_rows(
                torch.where(active_i, upstream_q * d_y * r.scale, 0), self.sample_rows, y
            )
        from_mean = r.c - (shift + r.samples.delta)
        if wanted[1] or wanted[2]:
            d_c = r.samples.weight * from_mean
            if diagonal is not None:
                d_c = d_c + own_distance
            d_c = torch.where(active_l, upstream_q * (r.precision * d_c) * r.scale, 0)
            result[1] = in_rows(d_c, self.component_rows, x) if wanted[1] else None
            result[2] = in_rows(d_c, self.component_rows, mu) if wanted[2] else None
        if wanted[3]:
            squares = r.samples.m2 + r.samples.weight * from_mean.square()
            count_i, count_l = r.samples.weight, r.component_mask.sum(0)[:, None]
            if diagonal is not None:
                squares = squares - own_distance.square()
                count_i, count_l = count_i - diagonal.long(), count_l - diagonal.long()
            # One root at a time: they stay in range where v does not, and meet no 0 too early.
            ratio = torch.where(active_l, stds[self.component_rows], 0) / r.root
            of_log = upstream_g * count_i - upstream_q * (squares * r.precision)
            d_stds = ratio * (of_log / r.root)
            d_stds_total = in_rows(torch.where(active_l, d_stds, 0), self.component_rows, stds)
            if m.sample_eps is not None:
                own = torch.where(active_i, stds[self.sample_rows], 0)
                own_root = stabilised_root(own, r.sample_mask, m.sample_eps, r.y.dtype)
                d_own = (own / own_root) * (upstream_k * count_l / own_root)
                d_own = torch.where(active_i, d_own, 0)
                d_stds_total = d_stds_total + in_rows(d_own, self.sample_rows, stds)
            result[3] = d_stds_total
        return result


def sums(mixture: Mixture, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> Tensor:
    """Those of one mixture (3,), differentiable; without blocks."""
    found, _ = _Direction(mixture).sums(WHOLE, y, x, mu, stds)
    return found


def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over all pairs of q, g and k for each mixture, in one pass, O((N + M) S E) work.

    Args:
        y: (rows, S, E) samples.
        x, mu, stds: (rows, S, E); component l is centred at x + mu with the standard deviations
            stds. Where `sample_eps` is given, stds holds those of the samples too, in their rows.
        mixtures: D of them over the same masks: which rows and positions meet.
        state: memory for the second result, if there is any.

    Returns:
        (D, 3) the sums, in nats, in the working dtype, and (D, 4, S, E) what the backward pass of
        any backend needs: the samples' delta and m2, the components' delta and weight, see
        `Moments`; shifts are the first contributing rows of y and x (on GPUs, of x + mu). NaN where
        the sums are those of the pairs, one by one.
    """
    directions = [_Direction(mixture) for mixture in mixtures]
    cut, inputs = _blocks(y, x), (y, x, mu, stds)
    if state is None:
        shape = len(mixtures), 4, *y.shape[1:]
        dtype = moments_dtype(y, x, mu, stds, exact=mixtures[0].exclude_diagonal)
        state = torch.empty(shape, dtype=dtype, device=y.device)
    total = torch.zeros((len(mixtures), 3), dtype=working_dtype(y.device), device=y.device)
    lost = False
    for block in cut:
        slices = [t[..., block[0], block[1]] for t in inputs]
        for d, direction in enumerate(directions):
            sums, state[d, :, block[0], block[1]] = direction.sums(block, *slices)
            total[d] += sums
            lost = lost or (y.device.type == "cpu" and direction.loses_digits(block, *slices))
    if y.device.type == "cpu" and (lost or total.isnan().any()) and _few(mixtures, y):
        state.fill_(math.nan)
        return _sums_of_pairs(inputs, mixtures), state
    return total, state


def moments_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    state: Tensor | None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of y, x, mu and stds, None where `wanted` is false, given `upstream` (D, 3).

    Computes the moments anew, in the working dtype; of `state` only NaN is of interest: there
    the gradients are those of the pairs as well. With grad mode on the result is differentiable,
    and holds its whole graph."""
    inputs = (y, x, mu, stds)
    if by_pairs(state) and _few(mixtures, y):
        of_pairs = upstream[..., None, None] * _met(mixtures, upstream.dtype)
        return pairs.pairs_backward(of_pairs, *inputs, None, mixtures, wanted)
    directions = [_Direction(mixture).gradient for mixture in mixtures]
    return sum_of_gradients(directions, _blocks(y, x), upstream, wanted, *inputs)


def by_pairs(state: Tensor | None) -> bool:
    """Whether the sums of this state are those of the pairs."""
    given = state is not None and state.device.type == "cpu" and state.numel() > 0
    return given and bool(state.flatten()[0].isnan())  # type: ignore[union-attr]


def _few(mixtures: Sequence[Mixture], y: Tensor) -> bool:
    """Whether the pairs, one by one, take no longer than a second or so."""
    count = mixtures[0].samples * mixtures[0].components
    return len(mixtures) * count * y.shape[1] * y.shape[2] <= 1 << 28


def _met(mixtures: Sequence[Mixture], dtype: torch.dtype) -> Tensor:
    """1 for the pairs (N, M) that meet, else 0."""
    met = torch.ones(mixtures[0].samples, mixtures[0].components, dtype=dtype)
    return met.fill_diagonal_(0) if mixtures[0].exclude_diagonal else met


def _sums_of_pairs(inputs: Sequence[Tensor], mixtures: Sequence[Mixture]) -> Tensor:
    """Where moments have no room for the values, or would lose their digits."""
    y, x, mu, stds = inputs
    energies = pairs.pairs(y, x, mu, stds, mixtures)
    return energies.masked_fill(_met(mixtures, energies.dtype) == 0, 0).sum((-2, -1))


def _blocks(y: Tensor, x: Tensor) -> list[Block]:
    return blocks(max(y.shape[0], x.shape[0]), y.shape[1], y.shape[2], y.device)
