"""Which positions of which rows take part in at least one pair."""

from __future__ import annotations

import torch
from torch import Tensor


def contributing(sample_mask: Tensor, component_mask: Tensor, exclude_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Positions of samples (N, S) and of components (M, S) that have weight in some pair (bool in, bool out).

    A position counts when it is active in its own row and in a partner's; with `exclude_diagonal` (N = M) a row is no
    partner of itself. Everything else is deselected, so that no value there, NaN included, has any influence.
    """
    samples, components = sample_mask.long(), component_mask.long()
    partners_of_samples, partners_of_components = components.sum(0), samples.sum(0)
    if exclude_diagonal:
        partners_of_samples = partners_of_samples - components
        partners_of_components = partners_of_components - samples
    return sample_mask & (partners_of_samples > 0), component_mask & (partners_of_components > 0)


def first_active_row(values: Tensor, mask: Tensor) -> Tensor:
    """Row of `values` (rows, S, E) that is the first active one at each position of `mask` (rows, S): (S, E), else 0.

    A constant to autograd: every use of it as a shift cancels.
    """
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    row = mask.long().argmax(0)
    first = values.detach()[row, torch.arange(values.shape[1], device=values.device)]
    return torch.where(mask.any(0)[:, None], first, 0)
