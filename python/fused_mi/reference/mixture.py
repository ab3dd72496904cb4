"""Who meets whom: the rows, masks and eps of samples and components."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ALL = slice(None)


class Mixture(NamedTuple):
    """The constants of a mixture: N samples scored against M components, each a range of rows of
    its tensors.

    A position has weight 1 in a pair where the masks of both are active, and 0 elsewhere.
    """

    sample_mask: Tensor  # (rows, S) bool
    component_mask: Tensor  # (rows, S) bool
    component_eps: Tensor  # 0-dim, added to the variance of the components
    sample_eps: Tensor | None = None  # 0-dim, the same for the samples' own; None leaves k at 0
    sample_rows: slice = ALL
    component_rows: slice = ALL
    exclude_diagonal: bool = False  # leave the pairs (i, i) out (N = M)

    def contributing(self) -> tuple[Tensor, Tensor]:
        """Positions of samples (N, S) and of components (M, S) that have weight in some pair.

        A position counts when it is active in its own row and in a partner's; with
        `exclude_diagonal` a row is no partner of itself. The rest is deselected, so that no value
        there, NaN included, has any influence.
        """
        sample_mask, component_mask = (
            self.sample_mask[self.sample_rows],
            self.component_mask[self.component_rows],
        )
        samples, components = sample_mask.long(), component_mask.long()
        partners_of_samples, partners_of_components = components.sum(0), samples.sum(0)
        if self.exclude_diagonal:
            partners_of_samples = partners_of_samples - components
            partners_of_components = partners_of_components - samples
        return sample_mask & (partners_of_samples > 0), component_mask & (
            partners_of_components > 0
        )


def first_active_row(values: Tensor, mask: Tensor) -> Tensor:
    """Row of `values` (rows, S, E) that is the first active one at each position of `mask` (rows,
    S): (S, E), else 0.

    A constant to autograd: every use of it as a shift cancels.
    """
    if values.shape[0] == 0:
        return values.new_zeros(values.shape[1:])
    row = mask.long().argmax(0)
    first = values.detach()[row, torch.arange(values.shape[1], device=values.device)]
    return torch.where(mask.any(0)[:, None], first, 0)
