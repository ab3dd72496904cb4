"""From cases to records."""

import dataclasses
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any

import torch

from . import contestants, end_to_end, limits, machine, measure
from .cases import TRAINING, Case, Suite, distinct, trains
from .contestants import Contestant
from .exact import exact
from .measure import Clock, Run, Wrong, by_kernel
from .records import OK, OOM, OURS, REFUSED, WRONG, Record, record_of

_COPIES = 8  # of inputs, at most


class Bench:
    """What all cases of a run share."""

    def __init__(self, suite: Suite, device: str, about: dict[str, Any]) -> None:
        self.suite, self.device, self.about = suite, device, about
        self.clock = Clock(device)
        self.yardsticks = machine.yardsticks(device)

    def records(
        self, case: Case, of: Callable[..., Iterable[Contestant]] = contestants.of
    ) -> Iterator[Record]:
        """Of all contestants of a case: what was measured, or why nothing was."""
        torch._dynamo.reset()  # each case has graphs for its own shape
        self._empty_cache()
        found: dict[str, Record] = {}
        entries = list(of(case, self.device, self.suite.most_work))
        try:
            copies = self._inputs(case)
            want = exact(case, copies[0])
        except Exception as error:  # no common class: see `out_of_memory`
            if not measure.out_of_memory(error):
                raise
            for entry in entries:
                reason = "inputs, gradients or float64 values do not fit into memory"
                yield from self._by_mode(case, self._record(case, entry, OOM, reason))
            return
        runs: dict[str, Sequence[Run]] = {}
        for entry in entries:
            found[entry.name], made = self._admit(case, entry, copies, want)
            if made:
                runs[entry.name] = made
        del want
        times, of_yardsticks = measure.interleaved(runs, self.yardsticks, self.clock, self.suite)
        rates: dict[str, Any] = {
            name: self.yardsticks[name].amount / median(ms) / 1e6
            for name, ms in of_yardsticks.items()
        }
        for name, record in found.items():
            record = dataclasses.replace(record, **rates)
            if self.device == "cuda" and name in times:
                record = dataclasses.replace(record, host=median(times[name]["host"]))
            if name in runs and name not in times:
                record = dataclasses.replace(record, status=OOM, reason="while it was timed")
            yield from self._by_mode(case, record, times.get(name, {}))
        if self.device == "cuda":
            yield from self._kernels(case, found, runs, rates)

    def _empty_cache(self) -> None:
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _inputs(self, case: Case) -> list[list[torch.Tensor]]:
        """As many copies as it takes to be larger than the caches."""
        size = 4 * case.elements * case.itemsize
        # Where memory is overcommitted nothing raises: the process would be killed.
        if 3 * size > 0.8 * machine.available_memory(self.device):
            raise MemoryError
        enough = math.ceil(4 * measure.last_level_cache(self.device) / size)
        count = min(_COPIES, max(1, enough))
        return [contestants.inputs_of(case, self.device, seed) for seed in range(count)]

    def _admit(
        self, case: Case, entry: Contestant, copies: Sequence[Any], want: Any
    ) -> tuple[Record, Sequence[Run]]:
        """Its runs, once it has computed the right thing."""
        if entry.why_not is not None:
            status = OOM if entry.lacks_memory else REFUSED
            return self._record(case, entry, status, entry.why_not), ()
        self._empty_cache()
        try:
            first = entry.make(copies[0])
            found = {} if entry.kind == "bound" else measure.errors(case, first, want)
            extra = faults = None
            if entry.kind in ("backend", "peer"):
                extra = measure.extra_memory(first, self.device)
            if entry.kind == "backend" and self.device == "cpu":
                faults = measure.page_faults(first)
            runs = [first, *(entry.make(inputs) for inputs in copies[1:])]
        except Wrong as error:
            return self._record(case, entry, WRONG, str(error)), ()
        except Exception as error:  # whatever a contestant raises is its result
            if measure.out_of_memory(error):
                return self._record(case, entry, OOM, _said(error)), ()
            return self._record(case, entry, REFUSED, _said(error)), ()
        record = dataclasses.replace(
            self._record(case, entry, OK, None),
            extra_bytes=extra,
            faults=faults,
            error=found.get("value"),
            gradient_error=found.get("gradients"),
        )
        return record, runs

    def _kernels(self, case: Case, found: Any, runs: Any, rates: Any) -> Iterator[Record]:
        """Time on the device in kernels only, by the profiler."""
        if "triton" not in runs:
            return
        entry = Contestant("triton kernels", "kernels", lambda inputs: runs["triton"][0])
        mode = limits.modes(case)[-1]
        moved, computed = limits.bytes_moved(case)[mode], limits.operations(case)[mode]
        record = dataclasses.replace(
            self._record(case, entry, OK, None), mode=mode, bytes=moved, flops=computed, **rates
        )
        try:
            us = by_kernel(runs["triton"][0])
        except Exception as error:  # a missing or forbidden profiler must not cost the times
            yield dataclasses.replace(record, status=REFUSED, reason=_said(error))
            return
        yield dataclasses.replace(record, kernels=us).timed([sum(us.values()) / 1e3])

    def _record(self, case: Case, entry: Contestant, status: str, reason: str | None) -> Record:
        return record_of(case, entry.name, entry.kind, self.about, status=status, reason=reason)

    def _by_mode(
        self, case: Case, record: Record, times: dict[str, list[float]] | None = None
    ) -> Iterator[Record]:
        moved, computed = limits.bytes_moved(case), limits.operations(case)
        for mode in limits.modes(case):
            of_mode = dataclasses.replace(
                record, mode=mode, bytes=moved[mode], flops=computed[mode]
            )
            yield of_mode.timed(times[mode]) if times else of_mode


def _said(error: BaseException) -> str:
    """One line."""
    text = str(error).strip() or traceback.format_exc(limit=-1)
    return f"{type(error).__name__}: {' '.join(text.split())}"[:300]


def measured(
    suite: Suite, text: str, device: str, about: dict[str, Any], without_peers: bool = False
) -> Iterator[tuple[str, Iterable[Record]]]:
    """The name and the records of each case, the training step last."""

    def of(*arguments: Any) -> list[Contestant]:
        found = contestants.of(*arguments)
        return [c for c in found if c.kind in OURS] if without_peers else found

    bench = Bench(suite, device, about)
    for case in distinct(suite.cases, text):
        yield case.name, bench.records(case, of)
    if trains(text):
        yield TRAINING, end_to_end.steps(suite.train, device, about)
