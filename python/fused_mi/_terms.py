"""From sums over pairs, or from numbers of each sample, to the terms of a loss; and from gradients
of the terms back to theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._building_blocks import Own
from ._mixture import AnyInputs, Inputs, Scoring, Sizes
from ._precision import accumulation_dtype, working_dtype

TERMS = (
    "total",  # the loss
    "mahalanobis",  # its part in q
    "log_determinant",  # in g
    "assignment",  # the divergence of the responsibilities from the weights; 0 for "jensen"
    "entropy",  # the sum of the three before
    "std_log",  # its part in k
)
"""Terms of a loss, in the order of the operators' result."""

Upstream = Sequence[Tensor | None]
"""Gradients of the two results of an estimator, the loss () and its terms (6,); with the reduction
"none" they are (D N,) and (6, D N)."""


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
    return terms_of_means(sums.sum(0) / jensen_divisor(scoring, inputs), inputs)


def jensen_terms_of_samples(energies: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss (D N,) and its terms (6, D N), in T, from means (D, 3, N) of q, g and k."""
    return terms_of_means(energies.transpose(0, 1).flatten(1), inputs)


def terms_of_means(energies: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The loss and its terms, in T, from means (3, ...) of q, g and k."""
    q, g, k = energies.unbind()
    terms = torch.stack(_in_order(q, g, k, torch.zeros_like(q)))
    terms = terms.to(accumulation_dtype(*inputs))
    return terms[0].clone(), terms


def upstream_of_energies(upstream: Upstream, dtype: torch.dtype) -> Tensor:
    """Gradients (3,) of the means of q, g and k under "jensen"; of each sample (3, D N)."""
    total, q, g, _, std_log = upstream_of_terms(upstream, dtype)
    return torch.stack((total + q, total + g, -total - std_log))


def logsumexp_terms(means: Tensor, scoring: Scoring, inputs: AnyInputs) -> tuple[Tensor, Tensor]:
    """The loss and its terms, in T, from the means (5,) of `terms_of_rows` over all samples."""
    if scoring.reduction == "sum":
        means = means * Sizes.of(scoring, inputs).samples
    return logsumexp_terms_of_means(means, inputs)


def logsumexp_terms_of_means(means: Tensor, inputs: AnyInputs) -> tuple[Tensor, Tensor]:
    """The same, of means or sums as they are."""
    terms = torch.stack(_logsumexp_in_order(means.unbind(), inputs))
    terms = terms.to(accumulation_dtype(*inputs))
    return terms[0].clone(), terms


def logsumexp_terms_of_numbers(
    means: Sequence[float], scoring: Scoring, inputs: AnyInputs
) -> tuple[Tensor, Tensor]:
    """`logsumexp_terms` on a CPU, see `terms_of_numbers`."""
    factor = Sizes.of(scoring, inputs).samples if scoring.reduction == "sum" else 1
    terms = _logsumexp_in_order([factor * mean for mean in means], inputs)
    dtype = accumulation_dtype(*inputs)
    return torch.tensor(terms[0], dtype=dtype), torch.tensor(terms, dtype=dtype)


def _logsumexp_in_order(means: Sequence[Any], inputs: AnyInputs) -> tuple[Any, ...]:
    value, q, g, assignment, std_log = means
    if len(inputs) > 4:  # of the weights, not of equal ones
        assignment = assignment + std_log
    return value, q, g, assignment, q + g + assignment, std_log


def logsumexp_terms_of_samples(
    rows: Tensor, scoring: Scoring, inputs: AnyInputs
) -> tuple[Tensor, Tensor]:
    """The loss (D N,) and its terms (6, D N), in T, of each sample."""
    partners = Own.partners(Own.of(scoring), Sizes.of(scoring, inputs).components)
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
    dtype = working_dtype(inputs[0].device)
    found = torch.stack(upstream_of_terms(upstream, dtype, len(inputs) > 4))
    if scoring.reduction == "none":
        return found.view(5, d, n).transpose(0, 1)
    return (found / (d if scoring.reduction == "sum" else d * n))[:, None].expand(d, 5, 1)


def upstream_of_terms(
    upstream: Upstream, dtype: torch.dtype, weighted: bool = False
) -> list[Tensor]:
    """Gradients of the total, and of q, g, the assignment and -k beside it. `weighted`: the
    assignment is a divergence from weights, which are where k is, see `logsumexp_terms`."""
    of_total, of_terms = upstream
    if of_terms is None:
        assert of_total is not None
        zero = torch.zeros_like(of_total, dtype=dtype)
        return [of_total.to(dtype), zero, zero, zero, zero]
    total, q, g, assignment, entropy, std_log = of_terms.to(dtype).unbind()
    if of_total is not None:
        total = total + of_total
    assignment = assignment + entropy
    return [
        *(total, q + entropy, g + entropy, assignment),
        std_log + assignment if weighted else std_log,
    ]
