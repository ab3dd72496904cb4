"""The collectives of one group, each of which adds nothing: floats are added by us, in rank order,
so that all ranks have the same bits, whatever the library chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Peers:
    """The ranks of a group by its name; "" is this process alone."""

    def __init__(self, name: str) -> None:
        # By name: an operator takes no group.
        resolve: Any = torch._C._distributed_c10d._resolve_process_group
        self.group: Any = resolve(name) if name else None
        self.size = 1 if self.group is None else dist.get_world_size(self.group)
        self.rank = 0 if self.group is None else dist.get_rank(self.group)

    def gather(self, t: Tensor) -> Tensor:
        """(size, *t.shape), the same on every rank."""
        if self.size == 1:
            return t[None]
        out = t.new_empty(self.size * t.numel())
        # Under its new name from torch 2.13 on.
        into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        into(out, t.contiguous().view(-1), group=self.group)
        return out.view(self.size, *t.shape)

    def gather_rows(self, t: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, of which each has as many as `sizes` says."""
        padded = t.new_zeros((max(sizes), *t.shape[1:]))
        padded[: len(t)] = t
        every = self.gather(padded)
        return torch.cat([of_rank[:size] for of_rank, size in zip(every, sizes, strict=True)])

    def least(self, t: Tensor) -> Tensor:
        """Elementwise over the ranks."""
        return self._reduce(t, dist.ReduceOp.MIN)

    def count(self, t: Tensor) -> Tensor:
        """The sum of integers over the ranks."""
        return self._reduce(t, dist.ReduceOp.SUM)

    def _reduce(self, t: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return t
        t = t.clone()
        dist.all_reduce(t, operation, group=self.group)
        return t

    def sum(self, t: Tensor) -> Tensor:
        """Of floats, in rank order."""
        return in_order(self.gather(t))

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """`parts[r]` goes to rank r, and from rank r come `sizes[r]` elements: vectors of one
        dtype."""
        if self.size == 1:
            return list(parts)
        return self.exchange_joined(torch.cat(list(parts)), [p.numel() for p in parts], sizes)

    def exchange_joined(
        self, send: Tensor, sent: Sequence[int], sizes: Sequence[int]
    ) -> list[Tensor]:
        """The same, of a vector of all parts, `sent[r]` elements for rank r."""
        if self.size == 1:
            return [send]
        out = send.new_empty(sum(sizes))
        dist.all_to_all_single(out, send, list(sizes), list(sent), group=self.group)
        return list(out.split(list(sizes)))


def in_order(parts: Tensor) -> Tensor:
    """The sum of (ranks, ...) one after the other."""
    total = torch.zeros_like(parts[0])
    for part in parts:
        total = total + part
    return total


def cuts(count: int, parts: int) -> list[tuple[int, int]]:
    """[0, count) in nearly equal ranges."""
    return [(count * r // parts, count * (r + 1) // parts) for r in range(parts)]
