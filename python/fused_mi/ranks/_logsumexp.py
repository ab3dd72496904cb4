"""The log-sum-exp loss of the batch of all ranks: its N x M pairs are spread over them.

- By features, of long rows: every rank gets all rows, of its share of the positions (or features),
  and finds a part of every energy; these meet where a block of the samples is.
- By samples, of short rows or many components: every rank gets its share of the samples, and all
  components.

Either way the operators of one process do the work. The backward pass sends as well: every rank has
to come to it, also where nothing of its own needs a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._mixture import AnyInputs, Scoring
from .._terms import logsumexp_terms_of_means, terms_of_rows, upstream_of_terms
from . import Group
from ._pairs import Pairs
from ._peers import Peers
from ._refuse import refuse_second_derivative
from ._spread import ByFeatures, BySamples

_FEATURES = 3
"""Rows of at least this many features for each component travel less by features."""


def logsumexp(inputs: AnyInputs, scoring: Scoring, where: Group) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), its terms (6,), and d/2 ().

    Raises:
        RuntimeError: inside of a compiled function.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            'group: estimator="logsumexp" of several ranks cannot be compiled; call it outside of '
            "the compiled function"
        )
    recorded = torch.is_grad_enabled()
    peers = Peers(where.rows)
    bits = [recorded and t.requires_grad for t in inputs]
    mine = torch.tensor(bits, dtype=torch.int32, device=inputs[0].device)
    wanted = [n > 0 for n in peers.count(mine).tolist()]
    # A node of the graph, also where nothing here needs a gradient: the others wait in it.
    anchor = torch.zeros((), requires_grad=recorded and any(wanted))
    total, terms, half = _OfRanks.apply(anchor, scoring, where, wanted, *inputs)
    return total, terms, half


class _OfRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        scoring: Scoring,
        where: Group,
        wanted: list[bool],
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        given: AnyInputs = inputs  # type: ignore[assignment]
        pairs = Pairs.of(given, scoring, where)
        _, S, E = inputs[0].shape
        long = _FEATURES * pairs.layout.components_of_mixture <= S * E
        spread = ByFeatures(pairs) if long else BySamples(pairs)
        rows = spread.forward(given[:4])
        means = pairs.rows.sum(terms_of_rows(rows, pairs.partners).sum(-1)).mean(0)
        if scoring.reduction == "mean":
            means = means / pairs.layout.samples_of_mixture
        total, terms = logsumexp_terms_of_means(means, given)
        ctx.spread, ctx.pairs, ctx.wanted, ctx.rows = spread, pairs, wanted, rows
        ctx.save_for_backward(*inputs)  # an edit in place is found
        ctx.mark_non_differentiable(pairs.half)
        ctx.set_materialize_grads(False)
        return total, terms, pairs.half

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_terms: Tensor | None, _: None) -> Any:
        refuse_second_derivative()
        inputs, pairs = ctx.saved_tensors, ctx.pairs
        parts = upstream_of_terms((of_total, of_terms), torch.float64, len(inputs) > 4)
        D = len(pairs.mixtures)
        count = 1 if pairs.scoring.reduction == "sum" else pairs.layout.samples_of_mixture
        upstream = torch.stack(parts) * (pairs.averaged / (D * count))
        found = ctx.spread.backward(upstream[:, None].expand(D, 5, 1), ctx.rows, ctx.wanted)
        given = [
            g.to(t.dtype) if g is not None and needed else None
            for g, t, needed in zip(found, inputs, ctx.needs_input_grad[4:], strict=True)
        ]
        return None, None, None, None, *given
