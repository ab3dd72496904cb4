"""How many rows each rank has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._layout import Sizes
from ._peers import Peers


def sizes_of(rows: Peers, y: Tensor, x: Tensor, given: Sequence[int]) -> Sizes:
    """Samples and components, `given` one pair after the other, or asked.

    Raises:
        ValueError: those of this rank are given wrong; its peers do not know.
    """
    if len(given):
        numbers = list(given)
        here, said = [y.shape[0], x.shape[0]], numbers[2 * rows.rank : 2 * rows.rank + 2]
        if here != said:
            raise ValueError(f"group: expected the rows of this rank in sizes, {here}, got {said}")
    else:
        mine = torch.tensor([y.shape[0], x.shape[0]], dtype=torch.int64, device=y.device)
        numbers = rows.gather(mine).flatten().tolist()
    return list(zip(numbers[::2], numbers[1::2], strict=True))
