"""Batches of upstream gradients: `torch.autograd.grad(..., is_grads_batched=True)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

is_batched = torch._C._functorch.is_legacy_batchedtensor


def element_by_element(
    pull: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]],
    upstream: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """What `pull` makes of `upstream`, some of which are batches: torch joins the elements in a
    tensor of its own kind, which no kernel can read."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batched = [g is not None and is_batched(g) for g in upstream]
    whole = [
        torch._remove_batch_dim(g, level, 1, 0) if is_one else g  # type: ignore[arg-type]
        for g, is_one in zip(upstream, batched, strict=True)
    ]
    size = len(whole[batched.index(True)])  # type: ignore[arg-type]
    elements = [
        pull([g[i] if is_one else g for g, is_one in zip(whole, batched, strict=True)])  # type: ignore[index]
        for i in range(size)
    ]
    return [
        None if column[0] is None else torch._add_batch_dim(torch.stack(column), 0, level)
        for column in zip(*elements, strict=True)
    ]
