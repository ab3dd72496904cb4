"""The two estimators: how they are built from a backend's kernels, and what their states hold.

A backend that has nothing faster makes its operators of four building blocks, `variance`,
`moments`, `pairs` and `logsumexp`: see `Estimators`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._blocks import Block, blocks
from ._building_blocks import BuildingBlocks, Gradients, Online, Own
from ._mixture import AnyInputs, Inputs, Mixture, Scoring, Sizes, mixtures_of
from ._precision import accumulation_dtype, moments_dtype, working_dtype
from ._terms import (
    Upstream,
    jensen_divisor,
    jensen_terms,
    logsumexp_terms,
    logsumexp_terms_of_numbers,
    logsumexp_terms_of_samples,
    terms_of_numbers,
    upstream_of_energies,
    upstream_of_samples,
)

HEADER = 16
"""Elements at the beginning of a state: eps of the components of D mixtures, of their samples, and
what else a backend keeps there. A multiple of a cache line, in any dtype."""

ROWS = 5
"""Numbers of each sample that "logsumexp" keeps, see `reference.logsumexp.logsumexp`."""

PAIRS_AT_ONCE = 1 << 24
"""Energies of more pairs are found by blocks of samples, and once more for their gradients: memory
stays at some hundred bytes for each pair of a block, time grows by one more forward pass."""


SHORT_ROW = 4096
"""Positions times features up to which energies are found, and forgotten, tile by tile."""

PAIRS_KEPT = 1 << 19
"""Of short rows, the most pairs whose energies are kept: both ways together take as long then."""


def online(inputs: AnyInputs, scoring: Scoring) -> bool:
    """Whether no energy is kept, for many pairs of short rows: the backward pass finds them again.
    Where the device has no float64 there is nothing that does so, and beside a CPU it is float32
    that is worth it."""
    y, (_, n, m) = inputs[0], Sizes.of(scoring, inputs)
    on_cpu, narrow = y.device.type == "cpu", accumulation_dtype(*inputs) == torch.float32
    served = on_cpu or (narrow and working_dtype(y.device) == torch.float64)
    return short(y) and served and n * m > PAIRS_KEPT


def short(y: Tensor) -> bool:
    """Whether its rows are, and there is something in them."""
    return 0 < y.shape[1] * y.shape[2] <= SHORT_ROW


def jensen_state(inputs: Inputs, scoring: Scoring) -> Tensor:
    """An empty state of `jensen`: a header, (D, 4, S, E), see `reference.moments.moments`, and room
    for (D, 4, S) integers of 32 bits that a backend may keep, else 0. Of each sample for itself: a
    header."""
    if scoring.reduction == "none":
        return inputs[0].new_empty(HEADER, dtype=working_dtype(inputs[0].device))
    _, S, E = inputs[0].shape
    dtype = moments_dtype(*inputs, exact=scoring.pairing == "leave_one_out")
    count = Sizes.of(scoring, inputs).mixtures * 4 * S
    return inputs[0].new_empty(HEADER + count * E + count * 4 // dtype.itemsize, dtype=dtype)


def logsumexp_state(inputs: AnyInputs, scoring: Scoring) -> Tensor:
    """An empty state of `logsumexp`: a header, (D, 5, N) see `reference.logsumexp.logsumexp`, and
    the energies (D, 3, N, M) unless they are too many, or soon found again, see `online`."""
    d, n, m = Sizes.of(scoring, inputs)
    kept = n * m <= PAIRS_AT_ONCE and not online(inputs, scoring)
    energies = d * 3 * n * m if kept else 0
    dtype = working_dtype(inputs[0].device)
    return inputs[0].new_empty(HEADER + d * ROWS * n + energies, dtype=dtype)


class Estimators:
    """`jensen` and `logsumexp`, each way, from the modules of a backend's building blocks."""

    def __init__(self, of: BuildingBlocks) -> None:
        self._variance = of.variance.variance
        self._moments, self._moments_backward = of.moments.moments, of.moments.moments_backward
        self._pairs, self._pairs_backward = of.pairs.pairs, of.pairs.pairs_backward
        self._logsumexp, self._means = of.logsumexp.logsumexp, of.logsumexp.means
        self._logsumexp_backward = of.logsumexp.logsumexp_backward
        self._online = of.online

    def jensen(self, inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
        """`mean_il e_il` of the energies e = q + g - k, and its terms.

        Returns:
            The loss (), its terms (6,) in the order of `TERMS`, both in T, and the state.
        """
        state = jensen_state(inputs, scoring)
        mixtures = mixtures_of(scoring, inputs, self._variance)
        keep_stabilisers(state, mixtures)
        counts_in(state, scoring, inputs).zero_()
        sums, _ = self._moments(*inputs, mixtures, moments_in(state, scoring, inputs))
        if sums.device.type == "cpu":
            return *terms_of_numbers(sums.tolist(), scoring, inputs), state
        return *jensen_terms(sums, scoring, inputs), state

    def jensen_backward(
        self,
        upstream: Upstream,
        inputs: Inputs,
        scoring: Scoring,
        state: Tensor,
        wanted: Sequence[bool],
    ) -> Gradients:
        """Gradients of y, x, mu and stds, None where `wanted` is false."""
        mixtures = kept_mixtures(state, scoring, inputs)
        of_means = upstream_of_energies(upstream, working_dtype(inputs[0].device))
        of_sums = (of_means / jensen_divisor(scoring, inputs)).expand(len(mixtures), 3)
        moments = moments_in(state, scoring, inputs)
        y, x, mu, stds = inputs
        return self._moments_backward(of_sums, y, x, mu, stds, moments, mixtures, wanted)

    def logsumexp(self, inputs: AnyInputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
        """`mean_i -log(1/M sum_l exp(-e_il))` of the energies e = q + g - k; as `jensen`."""
        state = logsumexp_state(inputs, scoring)
        rows, energies = logsumexp_parts(state, scoring, inputs)
        mixtures = mixtures_of(scoring, inputs, self._variance)
        keep_stabilisers(state, mixtures)
        own = Own.of(scoring)
        self.rows_of(inputs, mixtures, own, rows, energies)
        if scoring.reduction == "none":
            return *logsumexp_terms_of_samples(rows, scoring, inputs), state
        means = self._means(rows, Own.partners(own, mixtures[0].components)).mean(0)
        if means.device.type == "cpu":
            return *logsumexp_terms_of_numbers(means.tolist(), scoring, inputs), state
        return *logsumexp_terms(means, scoring, inputs), state

    def rows_of(
        self,
        inputs: AnyInputs,
        mixtures: Sequence[Mixture],
        own: Own | None,
        rows: Tensor,
        energies: Tensor | None,
    ) -> None:
        """Writes `rows` (D, 5, N) of mixtures, see `reference.logsumexp.logsumexp`, and `energies`
        (D, 3, N, M) unless they are not kept."""
        if energies is not None:
            self._pairs(*inputs[:4], mixtures, energies)
            weigh(energies, inputs)
            rows.copy_(self._logsumexp(energies, own))
            return
        if (fused := self._fused(inputs)) is not None:
            fused.online(inputs[:4], mixtures, own, log_weights(inputs, rows.dtype), rows)
            return
        for d, block in blocks(mixtures, PAIRS_AT_ONCE):
            of_block = own and own.of_rows(block.of_rows)
            found = self._logsumexp(self._block(inputs, block), of_block)
            rows[d, :, slice(*block.of_rows)] = found[0]

    def logsumexp_backward(
        self,
        upstream: Upstream,
        inputs: AnyInputs,
        scoring: Scoring,
        state: Tensor,
        wanted: Sequence[bool],
    ) -> Gradients:
        """Gradients of the inputs, None where `wanted` is false."""
        rows, energies = logsumexp_parts(state, scoring, inputs)
        mixtures = kept_mixtures(state, scoring, inputs)
        of_samples = upstream_of_samples(upstream, scoring, inputs)
        return self.gradients_of_rows(
            of_samples, inputs, mixtures, Own.of(scoring), rows, energies, wanted
        )

    def gradients_of_rows(
        self,
        of_samples: Tensor,
        inputs: AnyInputs,
        mixtures: Sequence[Mixture],
        own: Own | None,
        rows: Tensor,
        energies: Tensor | None,
        wanted: Sequence[bool],
    ) -> Gradients:
        """Gradients of the inputs, given those of the terms of each sample, (D, 5, N) or (D, 5,
        1), and what `rows_of` has written."""
        embeddings = inputs[:4]
        if energies is not None:
            of_energies = self._logsumexp_backward(of_samples, energies, rows.contiguous(), own)
            of_inputs = self._pairs_backward(of_energies, *embeddings, None, mixtures, wanted[:4])
            if len(inputs) > 4:
                of_weights = of_energies[0, 2].sum(0).to(inputs[4].dtype) if wanted[4] else None
                return [*of_inputs, of_weights]
            return of_inputs
        if (fused := self._fused(inputs)) is not None:
            weights = log_weights(inputs, rows.dtype)
            arguments = embeddings, mixtures, own, weights, rows
            found = fused.online_backward(of_samples, *arguments, wanted)
            return [g if g is None else g.to(t.dtype) for g, t in zip(found, inputs, strict=True)]
        # Blocks share components: their gradients add up in T.
        dtype = accumulation_dtype(*inputs)
        totals = [
            torch.zeros(t.shape, dtype=dtype, device=t.device) if needed else None
            for t, needed in zip(inputs, wanted, strict=True)
        ]
        for d, block in blocks(mixtures, PAIRS_AT_ONCE):
            here = slice(d, d + 1), slice(None), slice(*block.of_rows)
            of_block = own and own.of_rows(block.of_rows)
            of_energies = self._logsumexp_backward(
                of_samples[d : d + 1] if of_samples.shape[-1] == 1 else of_samples[here],
                self._block(inputs, block),
                rows[here].contiguous(),
                of_block,
            )
            if len(totals) > 4 and totals[4] is not None:
                totals[4] += of_energies[0, 2].sum(0)
            for columns, mixture in block.mixtures:
                part = of_energies[..., slice(*columns)].contiguous()
                found = self._pairs_backward(part, *embeddings, None, [mixture], wanted[:4])
                for total, more in zip(totals, found, strict=False):
                    if total is not None and more is not None:
                        total += more
        return [
            None if total is None else total.to(t.dtype)
            for total, t in zip(totals, inputs, strict=True)
        ]

    def _fused(self, inputs: AnyInputs) -> Online | None:
        """What needs no energies in memory, where it serves."""
        narrow = accumulation_dtype(*inputs) == torch.float32
        return self._online if narrow and short(inputs[0]) else None

    def _block(self, inputs: AnyInputs, block: Block) -> Tensor:
        """Energies (1, 3, n, M) of a block of samples."""
        found = [self._pairs(*inputs[:4], [mixture]) for _, mixture in block.mixtures]
        energies = found[0] if len(found) == 1 else torch.cat(found, -1)
        weigh(energies, inputs)
        return energies


def log_weights(inputs: AnyInputs, dtype: torch.dtype) -> Tensor | None:
    """Those of the components (M,), relative to equal ones: what they have in place of k."""
    if len(inputs) == 4:
        return None
    weights = inputs[4]
    return weights.to(dtype) + math.log(max(len(weights), 1))


def weigh(energies: Tensor, inputs: AnyInputs) -> None:
    """Puts the weights of the components, where they have any, into their energies (1, 3, n, M)."""
    weights = log_weights(inputs, energies.dtype)
    if weights is not None:
        energies[:, 2] = weights


def keep_stabilisers(state: Tensor, mixtures: Sequence[Mixture]) -> None:
    """In the header of the state."""
    eps = [m.component_eps for m in mixtures]
    eps += [m.sample_eps for m in mixtures if m.sample_eps is not None]
    if state.device.type == "cpu":
        numbers = [e.item() for e in eps] + [0.0] * (HEADER - len(eps))
        state[:HEADER] = torch.tensor(numbers, dtype=state.dtype)
    else:
        state[:HEADER].zero_()
        state[: len(eps)] = torch.stack(eps)


def kept_mixtures(state: Tensor, scoring: Scoring, inputs: AnyInputs) -> list[Mixture]:
    """The mixtures whose stabilisers `keep_stabilisers` has written."""
    mixtures = mixtures_of(scoring, inputs, lambda _, roles, *__: [None] * len(roles))
    count = len(mixtures)
    eps = state[: 2 * count].to(accumulation_dtype(*inputs)).unbind()
    return [
        m._replace(component_eps=eps[d], sample_eps=eps[count + d] if scoring.own_stds else None)
        for d, m in enumerate(mixtures)
    ]


def moments_in(state: Tensor, scoring: Scoring, inputs: Inputs) -> Tensor:
    """(D, 4, S, E) of a state of `jensen`."""
    shape = Sizes.of(scoring, inputs).mixtures, 4, *inputs[0].shape[1:]
    return state[HEADER : HEADER + math.prod(shape)].view(shape)


def counts_in(state: Tensor, scoring: Scoring, inputs: Inputs) -> Tensor:
    """(D, 4, S) int32, in the room of a state of `jensen`."""
    d, S, E = Sizes.of(scoring, inputs).mixtures, *inputs[0].shape[1:]
    return state[HEADER + d * 4 * S * E :].view(torch.int32).view(d, 4, S)


def logsumexp_parts(
    state: Tensor, scoring: Scoring, inputs: AnyInputs
) -> tuple[Tensor, Tensor | None]:
    """(D, 5, N) of the rows, and the energies (D, 3, N, M) where they are kept."""
    d, n, m = Sizes.of(scoring, inputs)
    rows, energies = state[HEADER : HEADER + d * ROWS * n], state[HEADER + d * ROWS * n :]
    return rows.view(d, ROWS, n), energies.view(d, 3, n, m) if energies.numel() else None
