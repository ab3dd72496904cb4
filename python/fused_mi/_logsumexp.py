"""The estimator "logsumexp": all pairs, of which a block at most is in memory at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._terms import Terms
from .ops.logsumexp import logsumexp
from .ops.pairs import pairs
from .reference.mixture import Mixture, Rows

PAIRS_AT_ONCE = 1 << 24
"""Energies of more pairs are found by blocks of samples, and once more for their gradients: memory
stays at some hundred bytes for each pair of a block, time grows by one more forward pass."""


def logsumexp_terms(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, *mixtures: Mixture) -> Terms:
    """The mean over the mixtures; the arguments are those of `ops.moments.moments`."""
    first = mixtures[0]
    if first.samples * first.components > PAIRS_AT_ONCE:
        terms = torch.cat([_by_blocks(y, x, mu, stds, mixture) for mixture in mixtures])
    else:
        own = 0 if first.exclude_diagonal else None
        terms = logsumexp(pairs(y, x, mu, stds, *mixtures), own)
    return Terms(*terms.mean(0).unbind())


def _by_blocks(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor, mixture: Mixture) -> Tensor:
    """A row of energies is all that a sample's part of the loss needs."""
    exclude = mixture.exclude_diagonal
    if exclude:
        # A block holds only a part of the diagonal, so here `logsumexp` alone leaves it out; what
        # `exclude_diagonal` does for positions that have no other partner, the masks do.
        samples, components = mixture.contributing()
        mixture = mixture._replace(
            sample_mask=samples, component_mask=components, exclude_diagonal=False
        )
    start, stop = mixture.sample_rows
    step = max(1, PAIRS_AT_ONCE // mixture.components)

    def of_block(rows: Rows, y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> Tensor:
        found = [
            pairs(y, x, mu, stds, mixture._replace(sample_rows=rows, component_rows=c))
            for c in _columns(rows, mixture.component_rows)
        ]
        energies = found[0] if len(found) == 1 else torch.cat(found, -1)
        return logsumexp(energies, rows[0] if exclude else None) * (rows[1] - rows[0])

    blocks = [(row, min(row + step, stop)) for row in range(start, stop, step)]
    sums = [
        checkpoint(of_block, b, y, x, mu, stds, use_reentrant=False, preserve_rng_state=False)
        for b in blocks
    ]
    return torch.cat(sums).sum(0, keepdim=True) / mixture.samples


def _columns(rows: Rows, components: Rows) -> list[Rows]:
    """Components in parts that are `rows` or share none with them, as the operators want it."""
    start, stop = components
    if rows[1] <= start or stop <= rows[0]:
        return [components]
    parts = (start, rows[0]), rows, (rows[1], stop)
    return [part for part in parts if part[0] < part[1]]
