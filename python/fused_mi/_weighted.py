"""Mixtures whose components have weights, as the operators take them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._mixture import AnyInputs, Inputs, Scoring


def weighted(
    inputs: Inputs, weights: Tensor, scoring: Scoring, dtype: torch.dtype
) -> tuple[AnyInputs, Scoring]:
    """With the weights of the components, in T; those of weight 0 are not there, unless a sample
    comes from them."""
    y, x, mu, stds = inputs
    present = weights.detach() != -math.inf
    if scoring.origins is not None:
        present = present.index_fill(0, scoring.origins.clamp(0, len(x) - 1), True)
    if dtype not in (t.dtype for t in inputs):
        y = y.to(dtype)  # one is enough
    components = scoring.components(x) & present[:, None]
    return (y, x, mu, stds, weights), scoring._replace(component_mask=components)
