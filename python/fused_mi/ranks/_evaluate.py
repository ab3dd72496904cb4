"""One call of a loss on all ranks: agreement, the operator, its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._mixture import AnyInputs, Scoring
from . import Group
from ._agreement import Checked, agree
from ._jensen import jensen
from ._logsumexp import logsumexp
from ._peers import Peers
from ._samples import of_samples

Found = tuple[Tensor, Tensor, Tensor]
"""The loss (), its terms (6,), and d/2; of the rows that are here, for the reduction "none"."""

_ESTIMATORS: dict[str, Callable[[Any, Scoring, Group], Found]] = {
    "jensen": jensen,
    "logsumexp": logsumexp,
}


def evaluate(
    where: Group,
    check: Callable[[], Checked],
    rows: Callable[[int, int], bool | None],
    estimator: str,
    options: object,
) -> tuple[AnyInputs, Found | None]:
    """The inputs that are here, and what was found; None where `rows`, of samples and components of
    all ranks, is False.

    Raises:
        TypeError, ValueError: see `agree`; and what `rows` raises.
    """
    sizes = where.sizes
    if torch.compiler.is_compiling() or sizes:
        inputs, scoring = check()
    else:
        asked = (estimator, options, where.averaged)
        (inputs, scoring), every = agree(Peers(where.rows), Peers(where.shards), check, asked)
        sizes = tuple(n for pair in every for n in pair)
    if sizes and rows(sum(sizes[::2]), sum(sizes[1::2])) is False:
        return inputs, None
    if scoring.reduction == "none":
        return inputs, of_samples(inputs, scoring, estimator, where._replace(sizes=sizes))
    found = _ESTIMATORS[estimator](inputs, scoring, where._replace(sizes=sizes))
    return inputs, found
