"""Rows travel to who needs them, and their gradients back to who has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._mixture import Rows
from ._peers import Peers


def overlap(a: Rows, b: Rows) -> Rows:
    """What both have; empty where nothing."""
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


class Travel:
    """Rows of the batch of all ranks, of which each rank has a range."""

    def __init__(self, peers: Peers, owned: Sequence[Rows]) -> None:
        self.peers, self.owned = peers, list(owned)
        self.own = self.owned[peers.rank]

    def fetch(self, t: Tensor, need: Sequence[Rows]) -> Tensor:
        """The rows `need[rank]` of a tensor of which every rank has its own rows."""
        per_row = math.prod(t.shape[1:])
        start, mine = self.own[0], need[self.peers.rank]
        sent = [overlap(self.own, of_rank) for of_rank in need]
        got = [overlap(of_rank, mine) for of_rank in self.owned]
        parts = [t[a - start : b - start].reshape(-1) for a, b in sent]
        found = self.peers.exchange(parts, [(b - a) * per_row for a, b in got])
        return torch.cat(found).view(-1, *t.shape[1:])

    def give_back(self, t: Tensor, need: Sequence[Rows]) -> Tensor:
        """The reverse: `t` has the rows `need[rank]`; the sums over all who had a row, in rank
        order, and 0 where nobody had."""
        per_row = math.prod(t.shape[1:])
        first, mine = need[self.peers.rank][0], need[self.peers.rank]
        sent = [overlap(of_rank, mine) for of_rank in self.owned]
        got = [overlap(self.own, of_rank) for of_rank in need]
        parts = [t[a - first : b - first].reshape(-1) for a, b in sent]
        found = self.peers.exchange(parts, [(b - a) * per_row for a, b in got])
        start, stop = self.own
        total = t.new_zeros((stop - start, *t.shape[1:]))
        for (a, b), part in zip(got, found, strict=True):
            total[a - start : b - start] += part.view(b - a, *t.shape[1:])
        return total
