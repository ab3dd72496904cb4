"""Losses of single samples: every rank has all rows, and keeps what is its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .._mixture import AnyInputs, Scoring, half_of_positions
from ..ops.estimators import jensen, logsumexp, logsumexp_of_weighted
from . import Group
from ._layout import Layout
from ._peers import Peers
from ._sizes import sizes_of


@torch.no_grad()
def of_samples(
    inputs: AnyInputs, scoring: Scoring, estimator: str, where: Group
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (n,), its terms (6, n) and d/2 (n,) of the n samples that are here, without
    gradients.

    Raises:
        ValueError: rows are shared out.
    """
    if where.shards:
        raise ValueError('reduction: expected "mean" or "sum" for a group with shards, got "none"')
    peers, y, x = Peers(where.rows), inputs[0], inputs[1]
    layout = Layout.of(peers.rank, sizes_of(peers, y, x, where.sizes), scoring.pairing)
    samples, components = zip(*layout.sizes, strict=True)

    def of_all(t: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return peers.gather_rows(t.detach(), sizes)

    everything = [of_all(y, samples), *(of_all(t, components) for t in inputs[1:])]
    mask = of_all(scoring.sample_mask.to(torch.uint8), samples).bool()
    component_mask = scoring.component_mask
    if component_mask is not None:
        component_mask = of_all(component_mask.to(torch.uint8), components).bool()
    of_batch = scoring._replace(sample_mask=mask, component_mask=component_mask)
    estimate = jensen if estimator == "jensen" else logsumexp
    if len(inputs) > 4:
        estimate = logsumexp_of_weighted
    total, terms = estimate(tuple(everything), of_batch, False)  # type: ignore[arg-type]
    half = half_of_positions(of_batch, tuple(everything))  # type: ignore[arg-type]
    start, _ = layout.rows(peers.rank, 0)
    here = torch.cat(
        [
            torch.arange(start + first, start + last, device=y.device) - of_mixture[0] + offset
            for (first, last), of_mixture, offset in zip(
                [rows for rows, _ in layout.local(peers.rank)],
                layout.samples,
                _offsets(layout),
                strict=True,
            )
        ]
    )
    return total[here], terms[:, here], half[here]


def _offsets(layout: Layout) -> list[int]:
    """Of the samples of each mixture in the result."""
    return [d * layout.samples_of_mixture for d in range(len(layout.samples))]
