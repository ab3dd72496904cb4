"""The moments in T, where that is enough: what plain torch does on a CPU, with as few operations as
it can be written in. `reference.moments` has the mathematics.

Deviations are from the first contributing row, as in the fused kernels, so that the state serves
the gradients. What T has no room or no digits for is noticed, and left to `reference.moments`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Mixture
from .._precision import careful
from .rows import RowsOfRole
from .streaming import Block, blocks
from .variance import LOG_2PI

# Bounds of variances and of sums, so that the parts of gradients stay in range.
_RANGES = {
    torch.float32: (2.0**-62, 2.0**62, 2.0**80),
    torch.float64: (2.0**-300, 2.0**300, 2.0**600),
}
_FARTHEST = 16.0  # root mean squares from the shift; see `Moments.shift`


class _Direction:
    """Moments, sums and gradients of one mixture, block by block."""

    def __init__(self, mixture: Mixture, dtype: torch.dtype) -> None:
        self.mixture, self.dtype = mixture, dtype
        self.least, self.largest, self.most = _RANGES[dtype]
        of_samples, of_components = mixture.contributing()
        self.samples = RowsOfRole(of_samples, mixture.sample_rows)
        self.components = RowsOfRole(of_components, mixture.component_rows)
        self.known = True  # so far; False: not in T

    def _variances(self, stds: Tensor, role: RowsOfRole, here: Tensor, eps: Tensor) -> Tensor:
        v = stds[role.rows].to(self.dtype).square().add_(eps)
        return role.fill(v, here, 1.0)

    def _look_at(self, v: Tensor) -> None:
        least, largest = torch.aminmax(v)
        self.known &= self.least < least.item() and largest.item() < self.largest

    def _logs(self, v: Tensor, count: Tensor | int) -> Tensor:
        """`sum (log v + log 2 pi)` of each position (b, 1), where `count` rows contribute."""
        return v.log().sum((0, 2))[:, None] + (LOG_2PI * v.shape[2]) * count

    def sums(self, block: Block, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> list[Tensor]:
        """Of q, g and k in float64, and the state (4, b, e)."""
        here_i, here_l = self.samples.at(block[0]), self.components.at(block[0])
        n, m = self.samples.count(here_i, self.dtype), self.components.count(here_l, self.dtype)
        samples, components = (
            y[self.samples.rows].to(self.dtype),
            x[self.components.rows].to(self.dtype),
        )
        y_shift = self.samples.first(samples, here_i)
        x_shift = self.components.first(components, here_l)

        of_y = self.samples.fill(samples - y_shift, here_i, 0.0)
        mean_y = of_y.sum(0) / (n if self.samples.everywhere else n.clamp(min=1))  # type: ignore[union-attr]
        m2_y = self.samples.fill(of_y.sub_(mean_y).square_(), here_i, 0.0).sum(0)

        v = self._variances(stds, self.components, here_l, self.mixture.component_eps)
        self._look_at(v)
        log_l = self._logs(v, m)
        weights = self.components.fill(v.reciprocal_(), here_l, 0.0)
        weight = weights.sum(0)
        of_c = (components - x_shift).add_(mu[self.components.rows])
        of_c = self.components.fill(of_c, here_l, 0.0)
        everywhere = self.components.everywhere
        divisor = weight if everywhere else torch.where(weight > 0, weight, 1)
        mean_c = (weights * of_c).sum(0) / divisor
        m2_c = of_c.sub_(mean_c).square_().mul_(weights).sum(0)

        distance = (y_shift - x_shift) + (mean_y - mean_c)
        q = m2_y * weight + (n * weight * distance) * distance + n * m2_c
        centre = x_shift + mean_c
        # A sample is about sqrt v away from its component: the weights times that are their number.
        size = weight * centre.square() + m2_c + m
        far = weight * mean_c.square() > _FARTHEST**2 * size
        q = q.sum(dtype=torch.float64)
        self.known &= not far.any().item() and q.item() <= self.most

        g, k = (n * log_l).sum(dtype=torch.float64), torch.zeros_like(q)
        if self.mixture.sample_eps is not None:
            own = self._variances(stds, self.samples, here_i, self.mixture.sample_eps)
            self._look_at(own)
            k = (m * self._logs(own, n)).sum(dtype=torch.float64)
        return [torch.stack((q, g, k)) / 2, torch.stack((mean_y, m2_y, mean_c, weight))]

    def gradients(
        self,
        block: Block,
        upstream: Sequence[float],
        state: Tensor,
        inputs: Sequence[Tensor],
        into: Sequence[Tensor | None],
    ) -> None:
        """Those of y, x and mu into their rows of `into`, and that of stds added to it."""
        y, x, mu, stds = inputs
        d_y, d_x, d_mu, d_stds = into
        of_q, of_g, of_k = upstream
        here_i, here_l = self.samples.at(block[0]), self.components.at(block[0])
        n, m = self.samples.count(here_i, self.dtype), self.components.count(here_l, self.dtype)
        mean_y, m2_y, mean_c, weight = state
        samples, components = (
            y[self.samples.rows].to(self.dtype),
            x[self.components.rows].to(self.dtype),
        )
        if d_y is not None:
            x_shift = self.components.first(components, here_l)
            pull = (samples - x_shift).sub_(mean_c).mul_(of_q * weight)
            d_y[self.samples.rows] = self.samples.fill(pull, here_i, 0.0)
        if d_x is not None or d_mu is not None or d_stds is not None:
            y_shift = self.samples.first(samples, here_i)
            v = self._variances(stds, self.components, here_l, self.mixture.component_eps)
            precision = v.reciprocal_()
            from_mean = (components - y_shift).add_(mu[self.components.rows]).sub_(mean_y)
            over = from_mean * precision
            if d_x is not None or d_mu is not None:
                pull = self.components.fill(over * (of_q * n), here_l, 0.0)
                for of_centre in (d_x, d_mu):
                    if of_centre is not None:
                        of_centre[self.components.rows] = pull
            if d_stds is not None:
                squares = over.mul_(from_mean).mul_(n).addcmul_(m2_y.expand_as(over), precision)
                pull = squares.mul_(-of_q).add_(of_g * n).mul_(precision)
                pull = pull.mul_(stds[self.components.rows])
                d_stds[self.components.rows] += self.components.fill(pull, here_l, 0.0)
        if d_stds is not None and self.mixture.sample_eps is not None:
            own = self._variances(stds, self.samples, here_i, self.mixture.sample_eps)
            pull = own.reciprocal_().mul_(stds[self.samples.rows]).mul_(of_k * m)
            d_stds[self.samples.rows] += self.samples.fill(pull, here_i, 0.0)


def serves(y: Tensor, x: Tensor, mixtures: Sequence[Mixture]) -> bool:
    """Whether T may be enough: not for a difference of sums, and where asking is cheap."""
    some = y.numel() > 0 and x.numel() > 0
    cheap = y.device.type == "cpu" and not mixtures[0].exclude_diagonal
    return some and cheap and not careful()


def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor,
) -> Tensor | None:
    """The sums (D, 3) of `reference.moments.moments`, and `state` filled; None: not in T."""
    total = torch.zeros((len(mixtures), 3), dtype=torch.float64)
    directions = [_Direction(mixture, state.dtype) for mixture in mixtures]
    for block in _blocks(y, x):
        slices = [t[..., block[0], block[1]] for t in (y, x, mu, stds)]
        for d, direction in enumerate(directions):
            sums, state[d, :, block[0], block[1]] = direction.sums(block, *slices)
            total[d] += sums
            if not direction.known:
                return None
    return total


def moments_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    state: Tensor,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Those of `reference.moments.moments_backward`, from a state that `moments` has filled."""
    inputs = (y, x, mu, stds)
    directions = [_Direction(mixture, state.dtype) for mixture in mixtures]
    found: list[Tensor | None] = [None] * 4
    roles = directions[0].samples, directions[0].components, directions[0].components
    for i, role in enumerate(roles):
        if wanted[i]:  # each row has this role in one of the mixtures
            several = len(mixtures) > 1
            found[i] = torch.empty_like(inputs[i]) if several else role.empty(inputs[i])
    if wanted[3]:  # a row may have both roles
        found[3] = torch.zeros(stds.shape, dtype=state.dtype)
    for block in _blocks(y, x):
        at = (..., block[0], block[1])
        for direction, of_sums, of_roles in zip(directions, upstream.tolist(), state, strict=True):
            direction.gradients(
                block,
                of_sums,
                of_roles[at],
                [t[at] for t in inputs],
                [None if t is None else t[at] for t in found],
            )
    if found[3] is not None:
        found[3] = found[3].to(stds.dtype)
    return found


def _blocks(y: Tensor, x: Tensor) -> list[Block]:
    return blocks(max(y.shape[0], x.shape[0]), y.shape[1], y.shape[2], y.device)
