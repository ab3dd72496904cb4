"""The losses of several ranks on one machine, over gloo: time of one and of two ranks with as many
rows each, and what leaves a rank.

Times are medians of rounds in which the loss of a group, that of the rank alone, and messages of
the same sizes with nothing in them follow each other. Bytes are counted where torch.distributed is
asked, the most of all ranks.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

SHAPES = ((16, 128, 384), (8, 64, 4096), (16384, 1, 128))  # rows of each rank, S, E
Pairing = Literal["sub_batch", "symmetric", "leave_one_out"]
PAIRINGS: tuple[Pairing, ...] = ("sub_batch", "symmetric", "leave_one_out")
TIMED, COUNTED = (1, 2), (2, 3, 4)
ROUNDS = 15


class Case(NamedTuple):
    shape: tuple[int, int, int]
    pairing: Pairing
    world: int

    @property
    def name(self) -> str:
        return f"{' x '.join(map(str, self.shape))} a rank, {self.pairing}, {self.world} ranks"


def measured() -> Iterator[dict[str, Any]]:
    """One record for each case."""
    for world in sorted({*TIMED, *COUNTED}):
        cases = [Case(s, p, world) for s in SHAPES for p in PAIRINGS]
        context = torch.multiprocessing.get_context("spawn")
        results = context.SimpleQueue()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        torch.multiprocessing.spawn(
            _rank, args=(world, port, cases, results), nprocs=world, join=True
        )
        yield from results.get()


def lines(records: list[dict[str, Any]]) -> list[str]:
    """A table."""
    found = []
    for r in records:
        line = f"{r['case']:52s} {r['bytes']:>12,} bytes"
        if "group_ms" in r:
            line += (
                f"  {r['group_ms']:8.2f} ms; alone {r['alone_ms']:8.2f}, "
                f"messages {r['messages_ms']:7.2f}: {r['ratio']:.2f} x their sum"
            )
        found.append(line)
    return found


def _rank(rank: int, world: int, port: int, cases: list[Case], results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    found = [_measure(case, rank) for case in cases]
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _measure(case: Case, rank: int) -> dict[str, Any]:
    import fused_mi

    rows, S, E = case.shape
    gen = torch.Generator().manual_seed(rank)
    x, mu, noise = (torch.randn(rows, S, E, generator=gen) for _ in range(3))
    stds = 0.5 + torch.rand(rows, S, E, generator=gen)
    inputs = [mu, stds, x, x + mu + stds * noise]
    mask = torch.rand(rows, S, generator=gen) < 0.8
    for t in inputs:
        t.requires_grad_()

    def step(group: Any) -> None:
        mu, stds, x, y = inputs
        loss = fused_mi.mutual_information_sub_batch(
            mu, stds, mask, x, y, pairing=case.pairing, group=group
        )
        loss.backward()
        for t in inputs:
            t.grad = None

    group = dist.group.WORLD if case.world > 1 else None
    with _messages() as sent:
        step(group)
    of_ranks = torch.tensor([sum(size for _, size in sent)])
    dist.all_reduce(of_ranks, dist.ReduceOp.MAX)
    record: dict[str, Any] = {"case": case.name, "bytes": int(of_ranks.item())}
    if case.world in TIMED:
        calls: dict[str, Callable[[], object]] = {
            "group_ms": lambda: step(group),
            "alone_ms": lambda: step(None),
            "messages_ms": lambda: [send() for send, _ in sent],
        }
        record |= _times(calls)
        record["ratio"] = record["group_ms"] / (record["alone_ms"] + record["messages_ms"])
    return record


def _times(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds: the slowest rank's median."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            found[name].append(1e3 * (time.perf_counter() - start))
    medians = torch.tensor([statistics.median(times[2:]) for times in found.values()])
    dist.all_reduce(medians, dist.ReduceOp.MAX)
    return dict(zip(found, medians.tolist(), strict=True))


@contextmanager
def _messages() -> Iterator[list[tuple[Callable[[], object], int]]]:
    """Every message that is sent meanwhile, to be sent again, and the bytes that leave this rank by
    the usual algorithms."""
    world, rank = dist.get_world_size(), dist.get_rank()
    sent: list[tuple[Callable[[], object], int]] = []

    def of_gather(_: torch.Tensor, t: torch.Tensor) -> int:
        return (world - 1) * t.nbytes

    def of_reduce(t: torch.Tensor, *_: object) -> int:
        return 2 * (world - 1) * t.nbytes // world

    def of_exchange(_: torch.Tensor, t: torch.Tensor, __: object, numbers: list[int]) -> int:
        return t.nbytes - numbers[rank] * t.element_size()

    counts: dict[str, Callable[..., int]] = {
        "all_gather_single": of_gather,
        "all_gather_into_tensor": of_gather,
        "all_reduce": of_reduce,
        "all_to_all_single": of_exchange,
    }
    originals = {name: getattr(dist, name) for name in counts if hasattr(dist, name)}

    def counted(name: str) -> Callable[..., object]:
        def call(*arguments: Any, **options: Any) -> object:
            sent.append((lambda: originals[name](*arguments, **options), counts[name](*arguments)))
            return originals[name](*arguments, **options)

        return call

    for name in originals:
        setattr(dist, name, counted(name))
    try:
        yield sent
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
