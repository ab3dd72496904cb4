"""The estimator "logsumexp": all pairs, of which a block at most is in memory at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._terms import Terms, mean
from .ops.pairs import pairs
from .reference.mixture import Mixture, Rows

PAIRS_AT_ONCE = 1 << 24
"""Energies of more pairs are found by blocks of samples, and once more for their gradients: memory
stays at some hundred bytes for each pair of a block, time grows by one more forward pass."""


def logsumexp_terms(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, *mixtures: Mixture, parts: bool
) -> list[Terms]:
    """Of each mixture; the arguments are those of `ops.moments.moments`.

    `parts`: all of the terms and not `total` alone, at several times the work on each pair.
    """
    first = mixtures[0]
    if first.samples * first.components > PAIRS_AT_ONCE:
        return [_by_blocks(y, x, mu, stds, mixture, parts) for mixture in mixtures]
    own = 0 if first.exclude_diagonal else None
    return [_terms(*energies, own, parts) for energies in pairs(y, x, mu, stds, *mixtures)]


def _by_blocks(
    y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, mixture: Mixture, parts: bool
) -> Terms:
    """A row of energies is all that a sample's part of the loss needs."""
    exclude = mixture.exclude_diagonal
    if exclude:
        # A block holds only a part of the diagonal, so here it is left out by `_terms` alone; what
        # `exclude_diagonal` does for positions that have no other partner, the masks do.
        samples, components = mixture.contributing()
        mixture = mixture._replace(
            sample_mask=samples, component_mask=components, exclude_diagonal=False
        )
    start, stop = mixture.sample_rows
    step = max(1, PAIRS_AT_ONCE // mixture.components)
    blocks = [(row, min(row + step, stop)) for row in range(start, stop, step)]

    def of_block(rows: Rows, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> Terms:
        found = [
            pairs(y, x, mu, stds, mixture._replace(sample_rows=rows, component_rows=c))[0]
            for c in _columns(rows, mixture.component_rows)
        ]
        q, g, k = (torch.cat(columns, 1) for columns in zip(*found, strict=True))
        return _terms(q, g, k, rows[0] if exclude else None, parts)

    terms: list[Terms] = [
        checkpoint(of_block, b, y, x, mu, stds, use_reentrant=False, preserve_rng_state=False)
        for b in blocks
    ]
    return mean(terms, [b[1] - b[0] for b in blocks])


def _columns(rows: Rows, components: Rows) -> list[Rows]:
    """Components in parts that are `rows` or share none with them, as the operators want it."""
    start, stop = components
    if rows[1] <= start or stop <= rows[0]:
        return [components]
    parts = (start, rows[0]), rows, (rows[1], stop)
    return [part for part in parts if part[0] < part[1]]


def _terms(q: Tensor, g: Tensor, k: Tensor, own: int | None, parts: bool) -> Terms:
    """`own`: component that sample 0 must not meet, the next one sample 1, ...; or None."""
    log_densities = k - q
    log_densities -= g
    # A tensor: a Python number would make the batch size a constant of a compiled graph.
    partners = q.shape[1] - (own is not None)
    log_partners = torch.full((), partners, dtype=q.dtype, device=q.device).log()
    if own is not None:
        samples, components = (torch.arange(n, device=q.device) for n in q.shape)
        log_densities.masked_fill_(samples[:, None] + own == components, -math.inf)
    # Where every energy overflowed there is nothing to compare: equal responsibilities, not NaN.
    hopeless = log_densities.detach().amax(1, keepdim=True) == -math.inf
    log_densities.masked_fill_(hopeless, 0)
    log_sums = torch.logsumexp(log_densities, dim=1)
    total = (log_partners - torch.where(hopeless[:, 0], -math.inf, log_sums)).mean()
    if not parts:
        return Terms(total)

    log_responsibilities = log_densities - log_sums[:, None]
    responsibilities = log_responsibilities.exp()
    # 0 * inf: a component that is never chosen adds nothing, to no gradient either.
    never = responsibilities == 0

    def weighted_mean(values: Tensor) -> Tensor:
        return (responsibilities * values.masked_fill(never, 0)).sum(1).mean()

    return Terms(
        total,
        weighted_mean(q),
        weighted_mean(g),
        log_partners + weighted_mean(log_responsibilities),
        -weighted_mean(k),
    )
