"""The two estimators: the terms of their losses, and how they are built from a backend's kernels.

A backend that has nothing faster makes its operators of four building blocks, `variance`,
`moments`, `pairs` and `logsumexp`: see `Estimators`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._blocks import Block, blocks
from ._building_blocks import Gradients, Logsumexp, Moments, Pairs, Variance
from ._mixture import Inputs, Mixture, Scoring, mixtures_of
from ._precision import accumulation_dtype, moments_dtype, working_dtype

TERMS = (
    "total",  # the loss
    "mahalanobis",  # its part in q
    "log_determinant",  # in g
    "assignment",  # log M minus the mean entropy of the responsibilities; 0 for "jensen"
    "entropy",  # the sum of the three before
    "std_log",  # its part in k
)
"""Terms of a loss, in the order of the operators' result."""

HEADER = 16
"""Elements at the beginning of a state: eps of the components of D mixtures, of their samples, and
what else a backend keeps there. A multiple of a cache line, in any dtype."""

Upstream = Sequence[Tensor | None]
"""Gradients of the two results of an estimator, the loss () and its terms (6,)."""

PAIRS_AT_ONCE = 1 << 24
"""Energies of more pairs are found by blocks of samples, and once more for their gradients: memory
stays at some hundred bytes for each pair of a block, time grows by one more forward pass."""


SHORT_ROW = 4096
"""Positions times features up to which a CPU finds energies, and forgets them, tile by tile."""

PAIRS_KEPT = 1 << 19
"""Of short rows, the most pairs whose energies are kept: both ways together take as long then."""


class Sizes(NamedTuple):
    """How many mixtures there are, and the samples and components of each."""

    mixtures: int
    samples: int
    components: int

    @classmethod
    def of(cls, scoring: Scoring, inputs: Inputs) -> Sizes:
        rows = scoring.rows(inputs[0].shape[0], inputs[1].shape[0])
        (start, stop), (first, last) = rows[0]
        return cls(len(rows), stop - start, last - first)


def online(inputs: Inputs, scoring: Scoring) -> bool:
    """Whether the backward pass finds the energies again, on CPUs for many pairs of short rows."""
    y, (_, n, m) = inputs[0], Sizes.of(scoring, inputs)
    short = y.shape[1] * y.shape[2] <= SHORT_ROW
    return short and y.device.type == "cpu" and n * m > PAIRS_KEPT


def jensen_state(inputs: Inputs, scoring: Scoring) -> Tensor:
    """An empty state of `jensen`: a header, (D, 4, S, E), see `reference.moments.moments`, and room
    for (D, 4, S) integers of 32 bits that a backend may keep, else 0."""
    _, S, E = inputs[0].shape
    dtype = moments_dtype(*inputs, exact=scoring.pairing == "leave_one_out")
    count = Sizes.of(scoring, inputs).mixtures * 4 * S
    return inputs[0].new_empty(HEADER + count * E + count * 4 // dtype.itemsize, dtype=dtype)


def logsumexp_state(inputs: Inputs, scoring: Scoring) -> Tensor:
    """An empty state of `logsumexp`: a header, (D, 4, N) see `reference.logsumexp.logsumexp`, and
    the energies (D, 3, N, M) unless they are too many, or soon found again, see `online`."""
    d, n, m = Sizes.of(scoring, inputs)
    kept = n * m <= PAIRS_AT_ONCE and not online(inputs, scoring)
    energies = d * 3 * n * m if kept else 0
    dtype = working_dtype(inputs[0].device)
    return inputs[0].new_empty(HEADER + d * 4 * n + energies, dtype=dtype)


class Estimators:
    """`jensen` and `logsumexp`, each way, from the modules of a backend's building blocks."""

    def __init__(
        self, variance: Variance, moments: Moments, pairs: Pairs, logsumexp: Logsumexp
    ) -> None:
        self._variance = variance.variance
        self._moments, self._moments_backward = moments.moments, moments.moments_backward
        self._pairs, self._pairs_backward = pairs.pairs, pairs.pairs_backward
        self._logsumexp = logsumexp.logsumexp
        self._logsumexp_backward = logsumexp.logsumexp_backward

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
        total, q, g, _, k = _of_terms(upstream, working_dtype(inputs[0].device))
        of_sums = torch.stack((total + q, total + g, -total - k)) / jensen_divisor(scoring, inputs)
        of_sums = of_sums.expand(len(mixtures), 3)
        moments = moments_in(state, scoring, inputs)
        y, x, mu, stds = inputs
        return self._moments_backward(of_sums, y, x, mu, stds, moments, mixtures, wanted)

    def logsumexp(self, inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
        """`mean_i -log(1/M sum_l exp(-e_il))` of the energies e = q + g - k; as `jensen`."""
        sizes = Sizes.of(scoring, inputs)
        state = logsumexp_state(inputs, scoring)
        rows, energies = _parts(state, sizes)
        mixtures = mixtures_of(scoring, inputs, self._variance)
        keep_stabilisers(state, mixtures)
        own = 0 if mixtures[0].exclude_diagonal else None
        if energies is not None:
            self._pairs(*inputs, mixtures, energies)
            found, of_rows = self._logsumexp(energies, own)
            rows.copy_(of_rows)
            means = found.mean(0)
        else:
            means = torch.zeros(5, dtype=state.dtype, device=state.device)
            for d, block in blocks(mixtures, PAIRS_AT_ONCE):
                found, of_rows = self._logsumexp(self._block(inputs, block), block.own)
                rows[d, :, slice(*block.of_rows)] = of_rows[0]
                means += found[0] * (block.samples / (sizes.samples * sizes.mixtures))
        return *logsumexp_terms(means, scoring, inputs), state

    def logsumexp_backward(
        self,
        upstream: Upstream,
        inputs: Inputs,
        scoring: Scoring,
        state: Tensor,
        wanted: Sequence[bool],
    ) -> Gradients:
        """Gradients of y, x, mu and stds, None where `wanted` is false."""
        sizes = Sizes.of(scoring, inputs)
        rows, energies = _parts(state, sizes)
        mixtures = kept_mixtures(state, scoring, inputs)
        of_means = torch.stack(_of_terms(upstream, state.dtype))
        of_means = of_means * (_logsumexp_scale(scoring, sizes) / sizes.mixtures)
        if energies is not None:
            own = 0 if mixtures[0].exclude_diagonal else None
            of_means = of_means.expand(sizes.mixtures, 5)
            of_energies = self._logsumexp_backward(of_means, energies, rows.contiguous(), own)
            of_inputs: list[Tensor | None] = self._pairs_backward(
                of_energies, *inputs, None, mixtures, wanted
            )
            return of_inputs
        # Blocks share components: their gradients add up in T.
        dtype = accumulation_dtype(*inputs)
        totals = [
            torch.zeros(t.shape, dtype=dtype, device=t.device) if needed else None
            for t, needed in zip(inputs, wanted, strict=True)
        ]
        for d, block in blocks(mixtures, PAIRS_AT_ONCE):
            of_rows = rows[d : d + 1, :, slice(*block.of_rows)].contiguous()
            scaled = (of_means * (block.samples / sizes.samples))[None]
            of_energies = self._logsumexp_backward(
                scaled, self._block(inputs, block), of_rows, block.own
            )
            for columns, mixture in block.mixtures:
                part = of_energies[..., slice(*columns)].contiguous()
                found = self._pairs_backward(part, *inputs, None, [mixture], wanted)
                for total, more in zip(totals, found, strict=True):
                    if total is not None and more is not None:
                        total += more
        return [
            None if total is None else total.to(t.dtype)
            for total, t in zip(totals, inputs, strict=True)
        ]

    def _block(self, inputs: Inputs, block: Block) -> Tensor:
        """Energies (1, 3, n, M) of a block of samples."""
        found = [self._pairs(*inputs, [mixture]) for _, mixture in block.mixtures]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


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


def kept_mixtures(state: Tensor, scoring: Scoring, inputs: Inputs) -> list[Mixture]:
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


def jensen_divisor(scoring: Scoring, inputs: Inputs) -> int:
    """Of the sums over all pairs."""
    d, n, m = Sizes.of(scoring, inputs)
    partners = m - int(scoring.pairing == "leave_one_out")
    return d * partners if scoring.sum else d * n * partners


def _logsumexp_scale(scoring: Scoring, sizes: Sizes) -> int:
    return sizes.samples if scoring.sum else 1


def _in_order(q: Any, g: Any, k: Any, zero: Any) -> tuple[Any, ...]:
    """The terms of "jensen" in the order of `TERMS`, as numbers or as tensors."""
    return q + g - k, q, g, zero, q + g, -k


def terms_of_numbers(
    sums: Sequence[Sequence[float]], scoring: Scoring, inputs: Inputs
) -> tuple[Tensor, Tensor]:
    """`jensen_terms` on a CPU, of numbers: a dozen operators of torch take as long as a small
    loss."""
    divisor = jensen_divisor(scoring, inputs)
    q, g, k = (sum(of_mixtures) / divisor for of_mixtures in zip(*sums, strict=True))
    dtype, terms = accumulation_dtype(*inputs), _in_order(q, g, k, 0.0)
    return torch.tensor(terms[0], dtype=dtype), torch.tensor(terms, dtype=dtype)


def jensen_terms(sums: Tensor, scoring: Scoring, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss and its terms, in T, from the sums (D, 3) of q, g and k over all pairs."""
    q, g, k = (sums.sum(0) / jensen_divisor(scoring, inputs)).unbind()
    terms = torch.stack(_in_order(q, g, k, torch.zeros_like(q)))
    terms = terms.to(accumulation_dtype(*inputs))
    return terms[0].clone(), terms


def logsumexp_terms(means: Tensor, scoring: Scoring, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss and its terms, in T, from their means (5,), see `reference.logsumexp.logsumexp`."""
    scale = _logsumexp_scale(scoring, Sizes.of(scoring, inputs))
    value, q, g, assignment, std_log = (means * scale).unbind()
    terms = torch.stack((value, q, g, assignment, q + g + assignment, std_log))
    terms = terms.to(accumulation_dtype(*inputs))
    return terms[0].clone(), terms


def _of_terms(upstream: Upstream, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of the total, and of q, g, the assignment and -k beside it."""
    of_total, of_terms = upstream
    if of_terms is None:
        assert of_total is not None
        zero = torch.zeros_like(of_total, dtype=dtype)
        return [of_total.to(dtype), zero, zero, zero, zero]
    total, q, g, assignment, entropy, std_log = of_terms.to(dtype).unbind()
    if of_total is not None:
        total = total + of_total
    return [total, q + entropy, g + entropy, assignment + entropy, std_log]


def _parts(state: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor | None]:
    """(D, 4, N) of the rows, and the energies (D, 3, N, M) where they are kept."""
    d, n, m = sizes
    rows, energies = state[HEADER : HEADER + d * 4 * n], state[HEADER + d * 4 * n :]
    return rows.view(d, 4, n), energies.view(d, 3, n, m) if energies.numel() else None
