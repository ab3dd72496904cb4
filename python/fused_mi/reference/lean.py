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

from .._building_blocks import Gradients
from .._estimators import HEADER, jensen_state, keep_stabilisers, kept_mixtures, moments_in
from .._mixture import Inputs, Mixture, Role, Rows, Scoring, mixtures_of
from .._precision import careful
from .._terms import Upstream, jensen_divisor, terms_of_numbers
from .rows import RowsOfRole, all_full, gradients_in_rows, roles_of
from .streaming import Block, blocks, slices
from .variance import LOG_2PI, min_positive_variance, stabiliser_factor
from .variance import least as least
from .variance import variance as careful_variance

# Bounds of variances and of sums, so that the parts of gradients stay in range.
_RANGES = {
    torch.float32: (2.0**-62, 2.0**62, 2.0**80),
    torch.float64: (2.0**-300, 2.0**300, 2.0**600),
}
_FARTHEST = 16.0  # root mean squares from the shift; see `Moments.shift`


class _Direction:
    """Moments, sums and gradients of one mixture, block by block."""

    def __init__(self, mixture: Mixture, dtype: torch.dtype) -> None:
        self.mixture = mixture
        self.least, self.largest, self.most = _RANGES[dtype]
        self.samples, self.components = roles_of(mixture, dtype)
        self.known = True  # so far; False: not in T

    def _logs(self, v: Tensor, role: RowsOfRole, partners: Tensor | int) -> float:
        """`sum (log v + log 2 pi)` over all pairs; v is looked at, too."""
        least, largest = torch.aminmax(v)
        self.known &= self.least < least.item() and largest.item() < self.largest
        logs = v.log()
        if isinstance(partners, int) and role.mask is None:
            return partners * (logs.sum().item() + LOG_2PI * v.numel())
        of_positions = logs.sum((0, 2))[:, None] + LOG_2PI * v.shape[2] * role.count
        return (partners * of_positions).sum(dtype=torch.float64).item()

    def sums(
        self, block: Block, state: Tensor, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor
    ) -> tuple[float, float, float]:
        """Of q, g and k, and the state (4, b, e) filled."""
        role_i, role_l = self.samples.at(block[0]), self.components.at(block[0])
        n, m = role_i.count, role_l.count
        mean_y, m2_y, mean_c, weight = state.unbind()
        samples, components = role_i.take(y), role_l.take(x)
        y_shift, x_shift = role_i.first(samples), role_l.first(components)

        of_y = role_i.keep(samples - y_shift)
        torch.sum(of_y, 0, out=mean_y).div_(n if isinstance(n, int) else n.clamp(min=1))
        of_y.sub_(mean_y)
        torch.sum(role_i.keep(of_y.mul_(of_y)), 0, out=m2_y)

        v = role_l.variances(stds, self.mixture.component_eps)
        g = self._logs(v, role_l, n)
        weights = role_l.keep(v.reciprocal_())
        torch.sum(weights, 0, out=weight)
        of_c = role_l.keep((components - x_shift).add_(mu[role_l.rows]))
        sum_c = (weights * of_c).sum(0)
        torch.div(sum_c, weight if role_l.mask is None else weight.where(weight > 0, 1), out=mean_c)
        of_c.sub_(mean_c)
        m2_c = of_c.mul_(of_c).mul_(weights).sum(0)

        # A sample is about sqrt v away from its component: the weights times that are their number.
        near = torch.addcmul(m2_c, sum_c, mean_c, value=-(_FARTHEST**-2))
        if not near.amin().item() >= -1:  # most are, already with one component
            near.add_(m).addcmul_((x_shift + mean_c).square_(), weight)
            self.known &= near.amin().item() >= 0  # NaN is not
        distance = (y_shift - x_shift).add_(mean_y).sub_(mean_c)
        q = torch.addcmul(m2_c, distance * weight, distance).mul_(n).addcmul_(m2_y, weight)
        sum_of_q = q.sum().item()
        self.known &= sum_of_q <= self.most

        k = 0.0
        if self.mixture.sample_eps is not None:
            k = self._logs(role_i.variances(stds, self.mixture.sample_eps), role_i, m)
        return sum_of_q / 2, g / 2, k / 2

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
        role_i, role_l = self.samples.at(block[0]), self.components.at(block[0])
        mean_y, m2_y, mean_c, weight = state.unbind()
        samples, components = role_i.take(y), role_l.take(x)
        if d_y is not None:
            role_i.put(d_y, (samples - role_l.first(components)).sub_(mean_c), weight * of_q)
        if d_x is not None or d_mu is not None or d_stds is not None:
            precision = role_l.variances(stds, self.mixture.component_eps).reciprocal_()
            to_mean = (role_i.first(samples) - components).sub_(mu[role_l.rows]).add_(mean_y)
            over = role_l.keep((to_mean * precision).mul_(-of_q * role_i.count))
            for d_centre in (d_x, d_mu):
                if d_centre is not None:
                    d_centre[role_l.rows] = over
            if d_stds is not None:
                pull = over.mul_(to_mean).addcmul_(precision, m2_y * -of_q)
                pull.add_(role_i.count * of_g).mul_(precision)
                role_l.put(d_stds, pull, stds[role_l.rows], add)
        if d_stds is not None and self.mixture.sample_eps is not None:
            own = role_i.variances(stds, self.mixture.sample_eps)
            role_i.put(d_stds, torch.div(stds[role_i.rows], own, out=own), role_l.count * of_k, add)


def variance(
    stds: Tensor, roles: Sequence[Role], dtype: torch.dtype, safety_factor: float
) -> list[Tensor]:
    """See `reference.variance.variance`."""
    if stds.device.type != "cpu" or stds.numel() == 0:
        return careful_variance(stds, roles, dtype, safety_factor)
    factor, least = stabiliser_factor(dtype, safety_factor)
    most = torch.finfo(dtype).max
    full = all_full(*(mask for mask, _ in roles))
    eps = [
        min(max(factor * _smallest(stds, None if full else mask, rows, dtype), least), most)
        for mask, rows in roles
    ]
    return list(torch.tensor(eps, dtype=dtype).unbind())


def _smallest(stds: Tensor, mask: Tensor | None, rows: Rows, dtype: torch.dtype) -> float:
    here = slice(*rows)
    of_rows = None if mask is None else mask[here]
    smallest = RowsOfRole(of_rows, here, dtype).least_square(stds)
    if 0 < smallest < math.inf:  # NaN is not: some do not count
        return smallest
    return min_positive_variance(stds[here], of_rows, dtype).item()


def serves(inputs: Inputs, scoring: Scoring) -> bool:
    """Whether T may be enough: not for a difference of sums, and where asking is cheap."""
    y, x, *_ = inputs
    some = y.numel() > 0 and x.numel() > 0
    cheap = y.device.type == "cpu" and scoring.pairing != "leave_one_out"
    return some and cheap and not careful()


def jensen(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor] | None:
    """Those of `Estimators.jensen`; None: not in T."""
    mixtures = mixtures_of(scoring, inputs, variance)
    state = jensen_state(inputs, scoring)
    keep_stabilisers(state, mixtures)
    moments = moments_in(state, scoring, inputs)
    state[HEADER + moments.numel() :].zero_()
    total = [[0.0] * 3 for _ in mixtures]
    directions = [_Direction(mixture, state.dtype) for mixture in mixtures]
    for block in _blocks(inputs):
        parts, into = slices(block, inputs), slices(block, moments.unbind())
        for direction, of_mixture, to in zip(directions, total, into, strict=True):
            found = direction.sums(block, to, *parts)
            of_mixture[:] = map(sum, zip(of_mixture, found, strict=True))
            if not direction.known:
                return None
    return *terms_of_numbers(total, scoring, inputs), state


def jensen_backward(
    upstream: Upstream,
    inputs: Inputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """Those of `Estimators.jensen_backward`, from a state that `jensen` has filled."""
    mixtures = kept_mixtures(state, scoring, inputs)
    directions = [_Direction(mixture, state.dtype) for mixture in mixtures]
    of_mixtures = moments_in(state, scoring, inputs).unbind()
    of_sums = _of_sums(upstream, jensen_divisor(scoring, inputs))

    def write(
        block: Block, parts: Sequence[Tensor], into: Sequence[Tensor | None], add: bool
    ) -> None:
        for direction, moments in zip(directions, slices(block, of_mixtures), strict=True):
            direction.gradients(block, of_sums, moments, parts, into, add)

    return gradients_in_rows(write, _blocks(inputs), inputs, wanted, mixtures, state.dtype)


def _of_sums(upstream: Upstream, divisor: int) -> tuple[float, float, float]:
    """Gradients of the sums of q, g and k over all pairs."""
    of_total, of_terms = upstream
    total, q, g, _, entropy, std_log = [0.0] * 6 if of_terms is None else of_terms.tolist()
    if of_total is not None:
        total += of_total.item()
    of_entropy = total + entropy
    return (of_entropy + q) / divisor, (of_entropy + g) / divisor, -(total + std_log) / divisor


def _blocks(inputs: Inputs) -> list[Block]:
    y, x, *_ = inputs
    return blocks(max(y.shape[0], x.shape[0]), y.shape[1], y.shape[2], y.device)
