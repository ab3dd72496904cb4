"""The two estimators in plain torch: as operators, and as formulas for every kind of derivative."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._building_blocks import BuildingBlocks, Gradients, Own
from .._estimators import (
    HEADER,
    Estimators,
    jensen_state,
    keep_stabilisers,
    kept_mixtures,
    log_weights,
    moments_in,
)
from .._mixture import AnyInputs, Inputs, Scoring, mixtures_of
from .._terms import (
    Upstream,
    jensen_terms,
    jensen_terms_of_samples,
    logsumexp_terms,
    logsumexp_terms_of_samples,
    upstream_of_energies,
)
from . import expanded as _expanded
from . import lean as _lean
from . import logsumexp as _logsumexp
from . import moments as _moments
from . import pairs as _pairs
from . import parts as _parts
from . import samples as _samples
from . import variance as _variance

building_blocks = BuildingBlocks(_lean, _moments, _expanded, _logsumexp, _parts)
_estimators = Estimators(building_blocks)
logsumexp, logsumexp_backward = _estimators.logsumexp, _estimators.logsumexp_backward


def jensen(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    """With few operations in T where that is enough, else with care: then the state is infinite. Of
    each sample for itself: with care."""
    if scoring.reduction == "none":
        return _jensen_of_samples(inputs, scoring)
    lean = _lean.serves(inputs, scoring)
    found = _lean.jensen(inputs, scoring) if lean else None
    if found is not None:
        return found
    total, terms, state = _estimators.jensen(inputs, scoring)
    moments = moments_in(state, scoring, inputs)
    if lean and not _moments.by_pairs(moments):
        moments.fill_(math.inf)
    return total, terms, state


def jensen_backward(
    upstream: Upstream,
    inputs: Inputs,
    scoring: Scoring,
    state: Tensor,
    wanted: Sequence[bool],
) -> Gradients:
    """See `Estimators.jensen_backward`."""
    if scoring.reduction == "none":
        return _jensen_of_samples_backward(upstream, inputs, scoring, state, wanted)
    # A mark fills all moments.
    lean = _lean.serves(inputs, scoring) and math.isfinite(state[HEADER].item())
    backward = _lean.jensen_backward if lean else _estimators.jensen_backward
    return backward(upstream, inputs, scoring, state, wanted)


def _jensen_of_samples(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor]:
    state = jensen_state(inputs, scoring)
    mixtures = mixtures_of(scoring, inputs, _lean.variance)
    keep_stabilisers(state, mixtures)
    return *jensen_terms_of_samples(_samples.samples(*inputs, mixtures), inputs), state


def _jensen_of_samples_backward(
    upstream: Upstream, inputs: Inputs, scoring: Scoring, state: Tensor, wanted: Sequence[bool]
) -> Gradients:
    mixtures = kept_mixtures(state, scoring, inputs)
    of_energies = upstream_of_energies(upstream, state.dtype)
    of_energies = of_energies.view(3, len(mixtures), -1).transpose(0, 1)
    return _samples.samples_backward(of_energies, *inputs, mixtures, wanted)


def jensen_formula(inputs: Inputs, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Total and terms as `jensen` has them; differentiable as often as wanted, in any mode."""
    mixtures = mixtures_of(scoring, inputs, _variance.variance)
    if scoring.reduction == "none":
        energies = torch.stack([_samples.energies(mixture, *inputs) for mixture in mixtures])
        return jensen_terms_of_samples(energies, inputs)
    sums = torch.stack([_moments.sums(mixture, *inputs) for mixture in mixtures])
    return jensen_terms(sums, scoring, inputs)


def logsumexp_formula(inputs: AnyInputs, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Total and terms as `logsumexp` has them; differentiable as often as wanted, in any mode."""
    mixtures = mixtures_of(scoring, inputs, _variance.variance)
    energies = torch.stack([_pairs.energies(mixture, *inputs[:4]) for mixture in mixtures])
    weights = log_weights(inputs, energies.dtype)
    if weights is not None:
        q, g, k = energies.unbind(1)
        energies = torch.stack((q, g, weights.expand_as(k)), 1)
    own = Own.of(scoring)
    rows = _logsumexp.logsumexp(energies, own)
    if scoring.reduction == "none":
        return logsumexp_terms_of_samples(rows, scoring, inputs)
    means = _logsumexp.means(rows, Own.partners(own, mixtures[0].components))
    return logsumexp_terms(means.mean(0), scoring, inputs)
