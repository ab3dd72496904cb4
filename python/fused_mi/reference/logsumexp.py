"""The loss of all pairs from their energies: softmax over components, means over samples."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class _Rows(NamedTuple):
    """What value and gradient share."""

    responsibilities: Tensor  # (D, N, M)
    log_sums: Tensor  # (D, N, 1), -inf where hopeless
    means: Tensor  # (D, 3, N, 1): of q, g and k, weighted by the responsibilities
    deviations: Tensor  # (D, 3, N, M) from them; 0 where the gradient has no use for them


def logsumexp(energies: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
    """The terms of `-log(1/M sum_l exp(-e_il))`, of energies e = q + g - k: see
    `ops.logsumexp.logsumexp`.

    Returns:
        The terms (D, 5), and for the gradient (D, 4, N): the log of the sum over the components,
        and the means of q, g and k weighted by the responsibilities. A row is hopeless where every
        density is 0: its log is -inf, its responsibilities are equal.
    """
    rows = _rows(energies, own)
    log_partners = math.log(max(energies.shape[-1] - int(own is not None), 1))
    state = torch.cat((rows.log_sums[:, None], rows.means), 1)[..., 0]
    log_sums, q, g, k = state.unbind(1)
    # Minus the entropy of the responsibilities is their mean log: of k - q - g - log_sums.
    assignment = torch.where(log_sums == -math.inf, 0, log_partners + (k - q - g - log_sums))
    terms = torch.stack((log_partners - log_sums, q, g, assignment, -k), 1)
    return terms.mean(-1), state


def logsumexp_backward(
    upstream: Tensor, energies: Tensor, state: Tensor | None, own: int | None
) -> Tensor:
    """Gradient (D, 3, N, M) of the energies, given `upstream` (D, 5) of the terms; the state is
    found anew. With grad mode on the result is differentiable."""
    rows = _rows(energies, own)
    total, q, g, assignment, std_log = upstream[..., None, None].unbind(1)
    slopes = torch.stack((q - assignment, g - assignment, assignment - std_log), 1)
    # Of the log-density, relative to r / N: a hopeless row has none.
    of_density = (slopes * rows.deviations).sum(1)
    of_density = of_density - torch.where(rows.log_sums == -math.inf, 0, total)
    found = torch.stack((q - of_density, g - of_density, of_density - std_log), 1)
    weights = (rows.responsibilities / energies.shape[-2])[:, None]
    return torch.where(weights == 0, 0, weights * found)


def _rows(energies: Tensor, own: int | None) -> _Rows:
    q, g, k = energies.unbind(1)
    densities = k - q - g
    equal = torch.zeros_like(densities[0])  # log-densities of a hopeless row
    if own is not None:
        samples, components = (torch.arange(n, device=energies.device) for n in equal.shape)
        equal = equal.masked_fill(samples[:, None] + own == components, -math.inf)
    not_met = equal < 0
    densities = densities.masked_fill(not_met, -math.inf)
    # Where every energy overflowed there is nothing to compare: equal responsibilities, not NaN.
    hopeless = densities.detach().amax(-1, keepdim=True) == -math.inf
    log_sums = densities.masked_fill(hopeless, 0).logsumexp(-1, keepdim=True)
    responsibilities = torch.where(hopeless, equal.softmax(-1), (densities - log_sums).exp())
    # 0 * inf: a component that is never chosen adds nothing, to no gradient either.
    chosen = energies.masked_fill((responsibilities == 0)[:, None], 0)
    means = (responsibilities[:, None] * chosen).sum(-1, keepdim=True)
    unused = hopeless | (responsibilities == 0)
    deviations = (chosen - means).masked_fill(unused[:, None], 0)
    return _Rows(responsibilities, log_sums.masked_fill(hopeless, -math.inf), means, deviations)
