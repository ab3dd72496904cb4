"""Distributed tensors: their placements say who has which rows, positions and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from . import Ranks

_SHARDS = (Shard(1), Shard(2))


def local(
    group: Any, tensors: Sequence[Any], masks: Sequence[Any]
) -> tuple[Ranks, list[Any], list[Any]]:
    """The ranks, and what each has of tensors (rows, S, E) and masks (rows, S) or None. Gradients
    come back as distributed tensors, of the loss of all ranks itself: nobody averages them.

    Raises:
        TypeError: distributed tensors beside others.
        ValueError: beside a group; of several meshes or placements; or a placement that is no
            `Shard` or `Replicate`, or is there twice.
    """
    if group is not None:
        raise ValueError("group: expected None beside distributed tensors, which have their own")
    given = [*tensors, *(m for m in masks if m is not None)]
    if not all(isinstance(t, DTensor) for t in given):
        raise TypeError("embeddings, masks: expected all of them to be DTensors, or none")
    mesh, placements = tensors[0].device_mesh, tuple(tensors[0].placements)
    if any(t.device_mesh != mesh for t in given):
        raise ValueError("embeddings, masks: expected DTensors of one mesh")
    if any(tuple(t.placements) != placements for t in tensors):
        raise ValueError(
            "embeddings: expected DTensors of the same placements, got "
            f"{[tuple(t.placements) for t in tensors]}"
        )
    of_masks = tuple(Replicate() if p == Shard(2) else p for p in placements)
    if any(m is not None and tuple(m.placements) != of_masks for m in masks):
        raise ValueError(
            f"masks: expected placements {of_masks}, got "
            f"{[tuple(m.placements) for m in masks if m is not None]}"
        )
    ranks = Ranks(_of(mesh, placements, (Shard(0),)), _of(mesh, placements, _SHARDS), averaged=1)
    known = (Shard(0), *_SHARDS, Replicate())
    if any(p not in known for p in placements):
        raise ValueError(
            "embeddings: expected DTensors of the placements Shard(0), Shard(1), Shard(2) and "
            f"Replicate(), got {placements}"
        )
    return (
        ranks,
        [t.to_local() for t in tensors],
        [None if m is None else m.to_local() for m in masks],
    )


def _of(mesh: Any, placements: Sequence[Placement], wanted: Sequence[Placement]) -> Any:
    """The group of the dimension of the mesh that has one of these placements."""
    found = [i for i, p in enumerate(placements) if p in wanted]
    if len(found) > 1:
        raise ValueError(
            f"embeddings: expected one dimension of the mesh with {' or '.join(map(str, wanted))}, "
            f"got {tuple(placements)}; flatten the mesh"
        )
    return mesh.get_group(found[0]) if found else None
