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
from ._building_blocks import Gradients, Logsumexp, Moments, Own, Pairs, Variance
from ._mixture import AnyInputs, Inputs, Mixture, Scoring, mixtures_of
from ._precision import accumulation_dtype, moments_dtype, working_dtype

TERMS = (
    "total",  # the loss
    "mahalanobis",  # its part in q
    "log_determinant",  # in g
    "assignment",  # the divergence of the responsibilities from the weights; 0 for "jensen"
    "entropy",  # the sum of the three before
    "std_log",  # its part in k
)
"""Terms of a loss, in the order of the operators' result."""

HEADER = 16
"""Elements at the beginning of a state: eps of the components of D mixtures, of their samples, and
what else a backend keeps there. A multiple of a cache line, in any dtype."""

ROWS = 5
"""Numbers of each sample that "logsumexp" keeps, see `reference.logsumexp.logsumexp`."""

Upstream = Sequence[Tensor | None]
"""Gradients of the two results of an estimator, the loss () and its terms (6,); with the reduction
"none" they are (D N,) and (6, D N)."""

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
    def of(cls, scoring: Scoring, inputs: AnyInputs) -> Sizes:
        rows = scoring.rows(inputs[0].shape[0], inputs[1].shape[0])
        (start, stop), (first, last) = rows[0]
        return cls(len(rows), stop - start, last - first)


def online(inputs: AnyInputs, scoring: Scoring) -> bool:
    """Whether the backward pass finds the energies again, on CPUs for many pairs of short rows."""
    y, (_, n, m) = inputs[0], Sizes.of(scoring, inputs)
    short = y.shape[1] * y.shape[2] <= SHORT_ROW
    return short and y.device.type == "cpu" and n * m > PAIRS_KEPT


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

    def __init__(
        self, variance: Variance, moments: Moments, pairs: Pairs, logsumexp: Logsumexp
    ) -> None:
        self._variance = variance.variance
        self._moments, self._moments_backward = moments.moments, moments.moments_backward
        self._pairs, self._pairs_backward = pairs.pairs, pairs.pairs_backward
        self._logsumexp, self._means = logsumexp.logsumexp, logsumexp.means
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

    def logsumexp(self, inputs: AnyInputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
        """`mean_i -log(1/M sum_l exp(-e_il))` of the energies e = q + g - k; as `jensen`."""
        state = logsumexp_state(inputs, scoring)
        rows, energies = logsumexp_parts(state, scoring, inputs)
        mixtures = mixtures_of(scoring, inputs, self._variance)
        keep_stabilisers(state, mixtures)
        own = own_of(scoring)
        if energies is not None:
            self._pairs(*inputs[:4], mixtures, energies)
            weigh(energies, inputs)
            rows.copy_(self._logsumexp(energies, own))
        else:
            for d, block in blocks(mixtures, PAIRS_AT_ONCE):
                of_block = own and own.of_rows(block.of_rows)
                found = self._logsumexp(self._block(inputs, block), of_block)
                rows[d, :, slice(*block.of_rows)] = found[0]
        if scoring.reduction == "none":
            return *logsumexp_terms_of_samples(rows, scoring, inputs), state
        means = self._means(rows, Own.partners(own, mixtures[0].components))
        return *logsumexp_terms(means.mean(0), scoring, inputs), state

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
        own, embeddings = own_of(scoring), inputs[:4]
        if energies is not None:
            of_energies = self._logsumexp_backward(of_samples, energies, rows.contiguous(), own)
            of_inputs = self._pairs_backward(of_energies, *embeddings, None, mixtures, wanted[:4])
            if len(inputs) > 4:
                of_weights = of_energies[0, 2].sum(0).to(inputs[4].dtype) if wanted[4] else None
                return [*of_inputs, of_weights]
            return of_inputs
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

    def _block(self, inputs: AnyInputs, block: Block) -> Tensor:
        """Energies (1, 3, n, M) of a block of samples."""
        found = [self._pairs(*inputs[:4], [mixture]) for _, mixture in block.mixtures]
        energies = found[0] if len(found) == 1 else torch.cat(found, -1)
        weigh(energies, inputs)
        return energies


def own_of(scoring: Scoring) -> Own | None:
    """Which component is a sample's own, where that matters."""
    if scoring.pairing == "leave_one_out":
        return Own()
    if scoring.origins is None:
        return None
    return Own(of_samples=scoring.origins, left_out=scoring.leave_origins_out)


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


def jensen_divisor(scoring: Scoring, inputs: Inputs) -> int:
    """Of the sums over all pairs."""
    d, n, m = Sizes.of(scoring, inputs)
    partners = m - int(scoring.pairing == "leave_one_out")
    return d * partners if scoring.reduction == "sum" else d * n * partners


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
    return _jensen_terms(sums.sum(0) / jensen_divisor(scoring, inputs), inputs)


def jensen_terms_of_samples(energies: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss (D N,) and its terms (6, D N), in T, from means (D, 3, N) of q, g and k."""
    return _jensen_terms(energies.transpose(0, 1).flatten(1), inputs)


def _jensen_terms(energies: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    q, g, k = energies.unbind()
    terms = torch.stack(_in_order(q, g, k, torch.zeros_like(q)))
    terms = terms.to(accumulation_dtype(*inputs))
    return terms[0].clone(), terms


def upstream_of_energies(upstream: Upstream, scoring: Scoring, inputs: Inputs) -> Tensor:
    """Gradients (D, 3, N) of what `jensen_terms_of_samples` takes."""
    d, n, _ = Sizes.of(scoring, inputs)
    total, q, g, _, std_log = _of_terms(upstream, working_dtype(inputs[0].device))
    of_energies = torch.stack((total + q, total + g, -total - std_log))
    return of_energies.view(3, d, n).transpose(0, 1)


def logsumexp_terms(means: Tensor, scoring: Scoring, inputs: AnyInputs) -> tuple[Tensor, Tensor]:
    """The loss and its terms, in T, from the means (5,) of `terms_of_rows` over all samples."""
    if scoring.reduction == "sum":
        means = means * Sizes.of(scoring, inputs).samples
    value, q, g, assignment, std_log = means.unbind()
    if len(inputs) > 4:  # of the weights, not of equal ones
        assignment = assignment + std_log
    terms = torch.stack((value, q, g, assignment, q + g + assignment, std_log))
    terms = terms.to(accumulation_dtype(*inputs))
    return terms[0].clone(), terms


def logsumexp_terms_of_samples(
    rows: Tensor, scoring: Scoring, inputs: AnyInputs
) -> tuple[Tensor, Tensor]:
    """The loss (D N,) and its terms (6, D N), in T, of each sample."""
    partners = Own.partners(own_of(scoring), Sizes.of(scoring, inputs).components)
    of_samples = terms_of_rows(rows, partners).transpose(0, 1).flatten(1)
    return logsumexp_terms(of_samples, scoring, inputs)


def terms_of_rows(rows: Tensor, partners: int) -> Tensor:
    """Of each sample (D, 5, N) the total, its parts in q and in g, the assignment, and the part in
    k; of `rows` see `reference.logsumexp.logsumexp`."""
    log_sums, q, g, k, of_own = rows.unbind(1)
    log_partners = math.log(max(partners, 1))
    hopeless = log_sums == -math.inf
    # Minus the entropy of the responsibilities is their mean log: of k - q - g - log_sums.
    assignment = torch.where(hopeless, 0, log_partners + (k - q - g - log_sums))
    # Where nothing is near, and the own component is not either, nothing is known.
    unknown = hopeless & (of_own == math.inf)
    total = log_partners - log_sums - of_own.masked_fill(unknown, 0)
    return torch.stack((total.masked_fill(unknown, 0), q, g, assignment, -k), 1)


def upstream_of_samples(upstream: Upstream, scoring: Scoring, inputs: AnyInputs) -> Tensor:
    """Gradients (D, 5, N) of `terms_of_rows`; (D, 5, 1) where all samples have the same."""
    d, n, _ = Sizes.of(scoring, inputs)
    of_terms = _of_terms(upstream, working_dtype(inputs[0].device))
    if len(inputs) > 4:
        of_terms[4] = of_terms[4] + of_terms[3]
    found = torch.stack(of_terms)
    if scoring.reduction == "none":
        return found.view(5, d, n).transpose(0, 1)
    return (found / (d if scoring.reduction == "sum" else d * n))[:, None].expand(d, 5, 1)


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


def logsumexp_parts(
    state: Tensor, scoring: Scoring, inputs: AnyInputs
) -> tuple[Tensor, Tensor | None]:
    """(D, 5, N) of the rows, and the energies (D, 3, N, M) where they are kept."""
    d, n, m = Sizes.of(scoring, inputs)
    rows, energies = state[HEADER : HEADER + d * ROWS * n], state[HEADER + d * ROWS * n :]
    return rows.view(d, ROWS, n), energies.view(d, 3, n, m) if energies.numel() else None
