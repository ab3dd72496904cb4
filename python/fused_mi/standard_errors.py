"""How far an estimate is from what more rows would give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _checks
from ._precision import working_dtype


@torch.no_grad()
def standard_error(
    estimate: Callable[..., Tensor], *rows: Tensor, groups: int | None = None
) -> Tensor:
    """Standard error of `estimate(*rows)`, by a jackknife: the estimate without some rows, for all
    groups of rows in turn.

    The samples of one batch share their components, so the spread of their single values says too
    little about a mixture made of the same batch: leaving a row out takes it out of both roles. Of
    a mean of independent values, `standard_error(torch.mean, values)`, this is their standard
    deviation over the root of their number.

    Args:
        estimate: a function of tensors with fewer rows, for example a loss with the reduction
            "mean" and its options.
        rows: tensors of B rows each, which the estimate takes in this order.
        groups: how many; group j are the rows j, j + groups, j + 2 groups and so on. None: each row
            by itself, B calls. `B // 2` leaves row i of both halves out at a time, as the pairing
            "sub_batch" wants it; fewer groups take fewer calls and are less exact.

    Returns:
        The shape and the dtype of the estimate, on its device, detached.

    Raises:
        TypeError: what should be a tensor is none.
        ValueError: there are no tensors, their rows differ in number, or `groups` is not in
            [2, B].

    Source: Busing, Meijer, van der Leeden: Delete-m jackknife for unequal m. Statistics and
    Computing 9(1), 1999.
    """
    if not rows:
        raise ValueError("rows: expected at least one tensor, got none")
    for i, t in enumerate(rows):
        _checks.tensor(f"rows[{i}]", t)
    counts = [t.shape[0] if t.dim() else 0 for t in rows]
    count = counts[0]
    if any(c != count for c in counts):
        raise ValueError(f"rows: expected as many of each, got {counts}")
    groups = count if groups is None else groups
    if not 2 <= groups <= count:
        raise ValueError(f"groups: expected 2 to {count}, the number of rows, got {groups}")
    whole = estimate(*rows)
    _checks.tensor("estimate", whole)
    group_of = torch.arange(count) % groups
    without = torch.stack([_without(estimate, rows, group_of != j) for j in range(groups)])
    wide = working_dtype(whole.device)
    theta, without = whole.to(wide), without.to(wide)
    shares = torch.tensor([count / len(range(j, count, groups)) for j in range(groups)])
    h = shares.to(without).view(-1, *[1] * whole.dim())
    pseudo = h * theta - (h - 1) * without
    mean = groups * theta - ((1 - 1 / h) * without).sum(0)
    return ((pseudo - mean).square() / (h - 1)).mean(0).sqrt().to(whole.dtype)


def _without(estimate: Callable[..., Tensor], rows: Sequence[Tensor], kept: Tensor) -> Tensor:
    return estimate(*(t[kept.to(t.device)] for t in rows))
