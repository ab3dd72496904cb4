"""From cases to records."""

import dataclasses
import math
import traceback
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import torch

from . import contestants, end_to_end, exact, limits, machine, measure
from .cases import TRAINING, Case, Suite
from .contestants import Contestant, Refused
from .exact import Exact
from .measure import Clock, Run, Wrong, by_kernel
from .records import OOM, REFUSED, WRONG, Record, record_of

_COPIES = 8  # of inputs, at most


class Bench:
    """What all cases of a run share."""

    def __init__(self, suite: Suite, device: str, about: dict[str, Any]) -> None:
        self.suite, self.device, self.about = suite, device, about
        self.clock = Clock(device, suite.block)
        self.yardsticks = machine.yardsticks(device)

    def records(self, case: Case, entries: Sequence[Contestant]) -> Iterator[Record]:
        """Of all contestants of a case: what was measured, or why nothing was."""
        torch._dynamo.reset()  # each case has graphs for its own shape
        self._empty_cache()
        try:
            copies = self._inputs(case)
            want = exact.exact(case, copies[0])
        except Exception as error:
            if not measure.out_of_memory(error):
                raise
            reason = "inputs, gradients or float64 values do not fit into memory"
            for entry in entries:
                yield from self._by_mode(case, entry, {}, status=OOM, reason=reason)
            return
        found: dict[str, dict[str, Any]] = {}
        runs: dict[str, Sequence[Run]] = {}
        for entry in entries:
            try:
                found[entry.name], runs[entry.name] = self._admit(case, entry, copies, want)
            except Exception as error:  # whatever a contestant raises is its result
                found[entry.name] = _failed(error)
        del want
        times, of_yardsticks = measure.interleaved(runs, self.yardsticks, self.clock, self.suite)
        rates = {
            name: self.yardsticks[name].amount / median(ms) / 1e6
            for name, ms in of_yardsticks.items()
        }
        for entry in entries:
            fields, of_entry = found[entry.name], times.get(entry.name, {})
            if of_entry and self.device == "cuda":
                fields["host"] = median(of_entry["host"])
            if entry.name in runs and not of_entry:
                fields = {"status": OOM, "reason": "while it was timed"}
            yield from self._by_mode(case, entry, of_entry, **fields, **rates)
        if self.device == "cuda" and "triton" in runs:
            yield self._kernels(case, runs["triton"][0], rates)

    def _empty_cache(self) -> None:
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _inputs(self, case: Case) -> list[list[torch.Tensor]]:
        """As many copies as it takes to be larger than the caches."""
        size = 4 * case.elements * case.itemsize
        # Where memory is overcommitted nothing raises: the process would be killed.
        if 3 * size + exact.memory(case) > 0.8 * machine.available_memory(self.device):
            raise MemoryError
        enough = math.ceil(4 * measure.last_level_cache(self.device) / size)
        count = min(_COPIES, max(1, enough))
        return [contestants.inputs_of(case, self.device, seed) for seed in range(count)]

    def _admit(
        self, case: Case, entry: Contestant, copies: Sequence[Any], want: Exact
    ) -> tuple[dict[str, Any], Sequence[Run]]:
        """What is known of it, and its runs, once it has computed the right thing."""
        self._empty_cache()
        first = entry.make(copies[0])
        found: dict[str, Any] = {}
        if entry.kind != "bound":
            errors = measure.errors(case, first, want)
            found |= {"error": errors["value"], "gradient_error": errors.get("gradients")}
            found["extra_bytes"] = measure.extra_memory(first, self.device)
        if entry.kind == "backend" and self.device == "cpu":
            found["faults"] = measure.page_faults(first)
        return found, [first, *map(entry.make, copies[1:])]

    def _kernels(self, case: Case, run: Run, rates: dict[str, float]) -> Record:
        """Time on the device in kernels only, by the profiler."""
        entry = Contestant("triton kernels", "kernels", lambda inputs: run)
        *_, record = self._by_mode(case, entry, {}, **rates)
        try:
            us = by_kernel(run)
        except Exception as error:  # a missing or forbidden profiler must not cost the times
            return dataclasses.replace(record, **_failed(error))
        return dataclasses.replace(record, kernels=us).timed([sum(us.values()) / 1e3])

    def _by_mode(
        self, case: Case, entry: Contestant, times: dict[str, list[float]], **more: Any
    ) -> Iterator[Record]:
        moved, computed = limits.bytes_moved(case), limits.operations(case)
        for mode in limits.modes(case):
            of_mode = {"mode": mode, "bytes": moved[mode], "flops": computed[mode], **more}
            record = record_of(case, entry.name, entry.kind, self.about, **of_mode)
            yield record.timed(times.get(mode, ()))


def _failed(error: Exception) -> dict[str, Any]:
    """Status and reason, on one line."""
    said = " ".join((str(error).strip() or traceback.format_exc(limit=-1)).split())
    if isinstance(error, Wrong):
        return {"status": WRONG, "reason": said}
    status = OOM if measure.out_of_memory(error) else REFUSED
    name = "" if isinstance(error, (Refused, MemoryError)) else f"{type(error).__name__}: "
    return {"status": status, "reason": f"{name}{said}"[:300]}


def measured(
    suite: Suite,
    text: str,
    device: str,
    about: dict[str, Any],
    without_peers: bool = False,
    eager: bool = False,
) -> Iterator[tuple[str, Iterator[Record]]]:
    """The name of each case that has the text in it, and its records; the training step last."""
    bench = Bench(suite, device, about)
    for case in suite.named(text):
        case = dataclasses.replace(case, compiled=case.compiled and not eager)
        entries = contestants.of(case, device, suite.most_work, without_peers)
        yield case.name, bench.records(case, entries)
    if suite.trains(text):
        yield TRAINING, end_to_end.steps(suite, bench.clock, about)
