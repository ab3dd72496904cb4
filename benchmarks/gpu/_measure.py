"""Time and memory of one forward and backward pass, with cold caches."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], tuple[Tensor, Callable[[], Sequence[Tensor]]]]
"""A forward pass; gives its value and the backward pass, which gives the gradients."""

_LEAST, _MOST = 5, 40  # samples of each contestant
_SECONDS = 2.0  # after which a contestant takes no more than the least number of samples
_SLEEP = 8_000_000  # cycles, about 4 ms: as long as the host may take to queue a pass
_MIB = 1 << 20


class Clock:
    """Times passes of a device by its events, and of a CPU, where tests run, by the wall."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * _MIB
            self.cold = torch.empty((2, 2 * cache // 4), dtype=torch.float32, device=device)

    def passes(self, run: Run) -> dict[str, float]:
        """ms of `forward`, `backward` and `both` on the device, and of the `host` to queue both."""
        marks = []

        def forward_and_backward() -> None:
            marks.append(self._mark())
            _, backward = run()
            marks.append(self._mark())
            backward()
            marks.append(self._mark())

        host = self._after_a_flush(forward_and_backward)
        forward, backward = (self._between(*pair) for pair in (marks[:2], marks[1:]))
        both = self._between(marks[0], marks[2])
        return {"forward": forward, "backward": backward, "both": both, "host": host}

    def single(self, function: Callable[[], object]) -> float:
        """ms on the device."""
        marks = []

        def marked() -> None:
            marks.append(self._mark())
            function()
            marks.append(self._mark())

        self._after_a_flush(marked)
        return self._between(*marks)

    def _after_a_flush(self, function: Callable[[], None]) -> float:
        """Run it with cold caches and with the queue of the device never empty; host's ms."""
        if self.cuda:
            torch.cuda.synchronize()
            self.cold[0].zero_()
            # Reading evicts what was written: nothing is left to be written back while timing.
            self.cold[1].amax()
            torch.cuda._sleep(_SLEEP)
        start = time.perf_counter()
        function()
        host = (time.perf_counter() - start) * 1e3
        if self.cuda:
            torch.cuda.synchronize()
        return host

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) if self.cuda else (end - start) * 1e3


def interleaved(
    runs: Mapping[str, Run], copy: "Copy", clock: Clock
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """Samples of every contestant by quantity, in ms, and of the copy: one of each in turn, so that
    a clock that drifts drifts for all of them. A contestant that runs out of memory drops out."""
    samples = {name: [] for name in runs}
    copies, spent = [], dict.fromkeys(runs, 0.0)
    for _ in range(_MOST + 1):
        copies.append(clock.single(copy.run))
        for name in list(samples):
            if len(samples[name]) > _LEAST and spent[name] > _SECONDS:
                continue
            start = time.perf_counter()
            try:
                samples[name].append(clock.passes(runs[name]))
            except torch.OutOfMemoryError:
                del samples[name]
            spent[name] += time.perf_counter() - start
    by_quantity = {
        name: {key: [sample[key] for sample in taken[1:]] for key in taken[0]}  # the first: warm-up
        for name, taken in samples.items()
    }
    return by_quantity, copies[1:]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "samples": len(samples)}


class Copy:
    """The yardstick: a large copy from memory to memory."""

    def __init__(self, device: str) -> None:
        elements = (1 << 28) if device == "cuda" else (1 << 20)
        self.source, self.target = torch.rand((2, elements), dtype=torch.float32, device=device)
        self.bytes = 2 * elements * 4  # read and written

    def run(self) -> None:
        self.target.copy_(self.source)


def extra_memory(run: Run) -> int:
    """Bytes at the peak of one forward and backward pass, beyond what was there and beyond the
    gradients that it returns."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _, backward = run()
    gradients = backward()
    peak = torch.cuda.max_memory_allocated() - before
    return peak - sum(g.numel() * g.element_size() for g in gradients)


def by_kernel(run: Run, repetitions: int = 5) -> list[dict[str, Any]]:
    """us per pass and launches per pass of each kernel, the longest first, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repetitions):
            run()[1]()
        torch.cuda.synchronize()
    found = [
        {
            "kernel": event.key,
            "us": event.self_device_time_total / repetitions,
            "launches": event.count / repetitions,
        }
        for event in profile.key_averages()
        if event.self_device_time_total > 0
    ]
    return sorted(found, key=lambda row: -row["us"])
