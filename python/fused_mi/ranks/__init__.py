"""Losses of the batch of all ranks: which ranks, and what their gradients are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks whose rows are one batch, and those that share each row.

    Attributes:
        rows: a `torch.distributed.ProcessGroup` or one-dimensional `DeviceMesh` of the ranks whose
            rows, in rank order, are the batch; None: this process has all of them.
        shards: the same of the ranks that have the same rows, each other positions or features.
        averaged: the gradient is that of the loss of all ranks times this. None: the number of
            ranks in `rows`, for a trainer that averages gradients over them (DDP, FSDP); over rows
            times shards, where it averages over these as well; 1, where gradients are added.
        sizes: how many rows each rank has, in rank order; for an entropy pairs of samples and
            components. Then nobody asks, and a mismatch is not found. None: they are asked.
    """

    rows: Any = None
    shards: Any = None
    averaged: float | None = None
    sizes: Sequence[int | tuple[int, int]] | None = None

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # a group is no data

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Ranks: a process group cannot be pickled; save state_dict(), and give the group to "
            "the loss anew"
        )


class Group(NamedTuple):
    """What operators take in place of groups."""

    rows: str  # names; "" is nobody else
    shards: str
    averaged: float
    sizes: tuple[int, ...]  # samples and components of each rank; none: asked
    told: bool  # by the caller, so that nobody waits for the device


def ranks_of(group: Any) -> Ranks | None:
    """`group` as an argument of a loss, or None."""
    return group if group is None or isinstance(group, Ranks) else Ranks(group)


def group_of(group: Any, of_pairs: bool = False) -> Group | None:
    """The group of a call, None for this process alone. `of_pairs`: samples and components are
    different rows.

    Raises:
        TypeError: it is no group.
        ValueError: of several dimensions, without this process, or with other sizes than ranks.
    """
    ranks = ranks_of(group)
    if ranks is None:
        return None
    rows, shards = _resolved("rows", ranks.rows), _resolved("shards", ranks.shards)
    count = 1 if rows is None else dist.get_world_size(rows)
    averaged = count if ranks.averaged is None else ranks.averaged
    if isinstance(averaged, bool) or not isinstance(averaged, (int, float)):
        raise TypeError(f"group: expected a number averaged, got {averaged!r}")
    if count == 1 and averaged == 1 and (shards is None or dist.get_world_size(shards) == 1):
        return None
    sizes = _numbers(ranks.sizes, count, of_pairs)
    return Group(_name(rows), _name(shards), float(averaged), sizes, bool(sizes))


def _numbers(
    sizes: Sequence[int | tuple[int, int]] | None, ranks: int, of_pairs: bool
) -> tuple[int, ...]:
    if sizes is None:
        return ()
    if len(sizes) != ranks:
        raise ValueError(f"group: expected {ranks} sizes, one for each rank, got {len(sizes)}")
    numbers: list[Any] = []
    for size in sizes:
        numbers += size if isinstance(size, (tuple, list)) and of_pairs else [size, size]
    if len(numbers) != 2 * ranks or not all(type(n) is int and n >= 0 for n in numbers):
        what = "pairs of samples and components" if of_pairs else "numbers of rows"
        raise ValueError(f"group: expected sizes to be {what}, got {list(sizes)}")
    return tuple(numbers)


def _resolved(name: str, group: Any) -> Any:
    if group is None:
        return None
    if not dist.is_available():
        raise ValueError(f"group: {name} needs torch.distributed, which this PyTorch lacks")
    from torch.distributed.device_mesh import DeviceMesh

    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(f"group: expected a mesh of one dimension, got {group.ndim}")
        return group.get_group()
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"group: this process is not among its {name}")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "group: expected a ProcessGroup, a one-dimensional DeviceMesh or Ranks, got "
            f"{type(group).__name__}"
        )
    return group


def _name(group: Any) -> str:
    if group is None or dist.get_world_size(group) == 1:
        return ""
    name: str = group.group_name
    return name


__all__ = ["Group", "Ranks", "group_of", "ranks_of"]
