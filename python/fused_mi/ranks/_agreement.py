"""The first message of a call: either all ranks go on, or all raise."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._mixture import AnyInputs, Scoring
from ._layout import Sizes
from ._peers import Peers

_MESSAGE = 2048  # bytes that an error may take
_KINDS = (TypeError, ValueError)

Checked = tuple[AnyInputs, Scoring]


class _Facts(NamedTuple):
    """What ranks tell each other of a call."""

    failed: int
    options: int  # a checksum: the same in every process
    dtypes: int
    samples: int
    components: int
    positions: int
    features: int


def agree(
    rows: Peers, shards: Peers, check: Callable[[], Checked], options: object
) -> tuple[Checked, Sizes]:
    """The result of `check`, and the rows of each rank.

    Raises:
        TypeError, ValueError: the first that `check` raised on any rank, or what differs between
            the ranks; the same on all of them.
    """
    checked, error = None, None
    try:
        checked = check()
    except _KINDS as e:
        error = e
    facts = _Facts(1, *(0,) * 6) if checked is None else _facts(*checked, options)
    device = _device(rows if rows.size > 1 else shards)
    told = rows.gather(torch.tensor(facts, dtype=torch.int64, device=device))
    everywhere = shards.gather(told).tolist()  # (shards, rows, facts)
    every = [[_Facts(*of_rank) for of_rank in of_shard] for of_shard in everywhere]
    if any(f.failed for of_shard in every for f in of_shard):
        _raise_first(rows, shards, error, device)
    assert checked is not None
    flat = [f for of_shard in every for f in of_shard]
    _same("options", flat, "options", shown=False)
    _same("dtypes", flat, "dtypes", shown=False)
    for of_shard in every:
        _same("S", of_shard, "positions")
        _same("E", of_shard, "features")
    for of_row in zip(*every, strict=True):
        _same("rows in all its shards", of_row, "samples")
        _same("rows in all its shards", of_row, "components")
    return checked, [(f.samples, f.components) for f in every[0]]


def _facts(inputs: AnyInputs, scoring: Scoring, options: object) -> _Facts:
    y, x = inputs[0], inputs[1]
    of_scoring = [value for value in scoring if not isinstance(value, Tensor)]
    return _Facts(
        0,
        zlib.crc32(repr((of_scoring, options)).encode()),
        zlib.crc32(repr([str(t.dtype) for t in inputs]).encode()),
        y.shape[0],
        x.shape[0],
        y.shape[1],
        y.shape[2],
    )


def _same(what: str, facts: object, field: str, shown: bool = True) -> None:
    values = [getattr(f, field) for f in facts]  # type: ignore[attr-defined]
    if len(set(values)) > 1:
        names = values if shown else [sorted(set(values)).index(v) for v in values]
        raise ValueError(
            f"group: expected the same {what} on every rank, got {names} in rank order"
            + ("" if shown else " (equal numbers: the same)")
        )


def _raise_first(rows: Peers, shards: Peers, error: Exception | None, device: torch.device) -> None:
    """Raises the error of the first rank that has one, on all ranks."""
    text = b""
    if error is not None:
        text = f"{_KINDS.index(type(error)) if type(error) in _KINDS else 1}{error}".encode()
    raw = torch.tensor(list(text[:_MESSAGE].ljust(_MESSAGE, b"\0")), dtype=torch.uint8)
    every = shards.gather(rows.gather(raw.to(device))).flatten(0, 1).cpu()
    for rank, of_rank in enumerate(every):
        found = bytes(of_rank.tolist()).rstrip(b"\0").decode(errors="replace")
        if found:
            where = f"(rank {rank} of {len(every)} in the group)"
            raise _KINDS[int(found[0])](f"{found[1:]} {where}") from error


def _device(peers: Peers) -> torch.device:
    """Where tensors are that this group can send."""
    if peers.group is None or "cpu:" in dist.get_backend_config(peers.group):
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    return accelerator if accelerator is not None else torch.device("cpu")
