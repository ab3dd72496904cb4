"""The moments in T, where that is enough: what plain torch does on a CPU, with as few operations as
it can be written in. `reference.moments` has the mathematics.

Deviations are from the first contributing row, as in the fused kernels, so that the state serves
the gradients. What T has no room or no digits for is noticed, and left to `reference.moments`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Mixture, Role
from .._precision import careful
from .rows import RowsOfRole, gradients_in_rows, roles_of
from .streaming import Block, blocks, slices
from .variance import LOG_2PI, of_roles, stabiliser, stabiliser_of

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
        self.samples, self.components = roles_of(mixture)
        self.known = True  # so far; False: not in T

    def _variances(self, stds: Tensor, role: RowsOfRole, here: Tensor, eps: Tensor) -> Tensor:
        v = stds[role.rows].to(self.dtype).square().add_(eps)
        return role.fill(v, here, 1.0)

    def _logs(self, v: Tensor, role: RowsOfRole, here: Tensor, partners: Tensor | int) -> float:
        """`sum (log v + log 2 pi)` over all pairs; v is looked at, too."""
        least, largest = torch.aminmax(v)
        self.known &= self.least < least.item() and largest.item() < self.largest
        if isinstance(partners, int) and role.everywhere:
            return partners * (v.log().sum().item() + LOG_2PI * v.numel())
        logs = v.log().sum((0, 2))[:, None] + (LOG_2PI * v.shape[2]) * role.count(here, self.dtype)
        return (partners * logs).sum(dtype=torch.float64).item()

    def sums(
        self, block: Block, state: Tensor, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor
    ) -> tuple[float, float, float]:
        """Of q, g and k, and the state (4, b, e) filled."""
        here_i, here_l = self.samples.at(block[0]), self.components.at(block[0])
        n, m = self.samples.count(here_i, self.dtype), self.components.count(here_l, self.dtype)
        samples, components = self._centres(y, x)
        y_shift = self.samples.first(samples, here_i)
        x_shift = self.components.first(components, here_l)

        of_y = self.samples.fill(samples - y_shift, here_i, 0.0)
        mean_y = of_y.sum(0).div_(n if isinstance(n, int) else n.clamp(min=1))
        m2_y = self.samples.fill(of_y.sub_(mean_y).square_(), here_i, 0.0).sum(0)

        v = self._variances(stds, self.components, here_l, self.mixture.component_eps)
        g = self._logs(v, self.components, here_l, n)
        weights = self.components.fill(v.reciprocal_(), here_l, 0.0)
        weight = weights.sum(0)
        of_c = (components - x_shift).add_(mu[self.components.rows])
        of_c = self.components.fill(of_c, here_l, 0.0)
        divisor = weight if self.components.everywhere else torch.where(weight > 0, weight, 1)
        mean_c = (weights * of_c).sum(0).div_(divisor)
        m2_c = of_c.sub_(mean_c).square_().mul_(weights).sum(0)

        # A sample is about sqrt v away from its component: the weights times that are their number.
        size = (x_shift + mean_c).square_().mul_(weight).add_(m2_c).add_(m)
        far = mean_c.square().mul_(weight).sub_(size, alpha=_FARTHEST**2)
        distance = (y_shift - x_shift).add_(mean_y).sub_(mean_c)
        q = distance.square_().mul_(weight).add_(m2_c).mul_(n).addcmul_(m2_y, weight)
        sum_of_q = q.sum(dtype=torch.float64).item()
        self.known &= far.amax().item() <= 0 and sum_of_q <= self.most  # NaN is neither

        k = 0.0
        if self.mixture.sample_eps is not None:
            own = self._variances(stds, self.samples, here_i, self.mixture.sample_eps)
            k = self._logs(own, self.samples, here_i, m)
        torch.stack((mean_y, m2_y, mean_c, weight), out=state)
        return sum_of_q / 2, g / 2, k / 2

    def _centres(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of both roles, in T."""
        return y[self.samples.rows].to(self.dtype), x[self.components.rows].to(self.dtype)

    def gradients(
        self,
        block: Block,
        upstream: Sequence[float],
        state: Tensor,
        inputs: Sequence[Tensor],
        into: Sequence[Tensor | None],
        add: bool,
    ) -> None:
        """Those of y, x, mu and stds into their rows of `into`; whether to `add` those of
        stds to what is there."""
        y, x, mu, stds = inputs
        d_y, d_x, d_mu, d_stds = into
        of_q, of_g, of_k = upstream
        here_i, here_l = self.samples.at(block[0]), self.components.at(block[0])
        n, m = self.samples.count(here_i, self.dtype), self.components.count(here_l, self.dtype)
        mean_y, m2_y, mean_c, weight = state
        samples, components = self._centres(y, x)
        if d_y is not None:
            x_shift = self.components.first(components, here_l)
            pull = (samples - x_shift).sub_(mean_c)
            self.samples.put(d_y, here_i, pull, weight * of_q)
        if d_x is not None or d_mu is not None or d_stds is not None:
            y_shift = self.samples.first(samples, here_i)
            v = self._variances(stds, self.components, here_l, self.mixture.component_eps)
            precision = v.reciprocal_()
            from_mean = (components - y_shift).add_(mu[self.components.rows]).sub_(mean_y)
            over = from_mean * precision
            for d_centre in (d_x, d_mu):
                if d_centre is not None:
                    self.components.put(d_centre, here_l, over, n * of_q)
            if d_stds is not None:
                squares = over.mul_(from_mean).mul_(n).addcmul_(m2_y.expand_as(over), precision)
                pull = squares.mul_(-of_q).add_(n * of_g).mul_(precision)
                self.components.put(d_stds, here_l, pull, stds[self.components.rows], add)
        if d_stds is not None and self.mixture.sample_eps is not None:
            own = self._variances(stds, self.samples, here_i, self.mixture.sample_eps)
            pull = own.reciprocal_().mul_(m * of_k)
            self.samples.put(d_stds, here_i, pull, stds[self.samples.rows], add)


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """See `reference.variance.variance`."""
    return of_roles(_stabiliser, stds, roles, dtype, safety_factor)


def _stabiliser(stds: Tensor, mask: Tensor, dtype: torch.dtype, safety_factor: float) -> Tensor:
    if stds.device.type == "cpu" and stds.numel() > 0:
        squares = stds.detach().to(dtype).square()
        if not mask.all():
            squares = torch.where(mask[..., None], squares, math.inf)
        smallest = squares.amin()
        if 0 < smallest.item() < math.inf:  # NaN is not: some do not count
            return stabiliser_of(smallest, safety_factor)
    return stabiliser(stds, mask, dtype, safety_factor)


def serves(y: Tensor, x: Tensor, mixtures: Sequence[Mixture]) -> bool:
    """Whether T may be enough: not for a difference of sums, and where asking is cheap."""
    some = y.numel() > 0 and x.numel() > 0
    cheap = y.device.type == "cpu" and not mixtures[0].exclude_diagonal
    return some and cheap and not careful()


@torch.no_grad()
def moments(
    y: Tensor,
    x: Tensor,
    mu: Tensor,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    state: Tensor,
) -> Tensor | None:
    """The sums (D, 3) of `reference.moments.moments`, and `state` filled; None: not in T."""
    total = [[0.0] * 3 for _ in mixtures]
    directions = [_Direction(mixture, state.dtype) for mixture in mixtures]
    for block in _blocks(y, x):
        parts, into = slices(block, (y, x, mu, stds)), slices(block, state.unbind())
        for direction, of_mixture, to in zip(directions, total, into, strict=True):
            found = direction.sums(block, to, *parts)
            of_mixture[:] = map(sum, zip(of_mixture, found, strict=True))
            if not direction.known:
                return None
    return torch.tensor(total, dtype=torch.float64)


@torch.no_grad()
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
    of_sums = upstream.tolist()

    def write(
        block: Block, parts: Sequence[Tensor], into: Sequence[Tensor | None], add: bool
    ) -> None:
        of_roles = slices(block, state.unbind())
        for direction, of_three, state_of in zip(directions, of_sums, of_roles, strict=True):
            direction.gradients(block, of_three, state_of, parts, into, add)

    return gradients_in_rows(write, _blocks(y, x), inputs, wanted, mixtures, state.dtype)


def _blocks(y: Tensor, x: Tensor) -> list[Block]:
    return blocks(max(y.shape[0], x.shape[0]), y.shape[1], y.shape[2], y.device)
