"""Time, memory and errors of contestants, by what they do and not by what they are.

A contestant is a list of `Run`s, one for each of several copies of the inputs, used in turn.
"""

import contextlib
import ctypes
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Suite
from .exact import Exact

Run = Callable[[], tuple[Tensor, Callable[[], Sequence[Tensor]]]]
"""A forward pass; gives its value and the backward pass, which gives the gradients."""

MIB = 1 << 20
VALUE_TOLERANCE = 100 * torch.finfo(torch.float32).eps  # relative to the magnitude of the terms
# The weights of logsumexp depend on energies, whose roundings grow with S * E.
LOGSUMEXP_GRADIENT_TOLERANCE = 1e-3
_SLEEP = 8_000_000  # cycles, about 4 ms: as long as the host may take to queue a pass


class Wrong(Exception):
    """A contestant computes something else."""


class Clock:
    """Times passes, of a GPU by its events, of a CPU by the wall: one with cold caches or, where
    there is a `block` of seconds, the median of those with warm caches that it has room for."""

    def __init__(self, device: str, block: float = 0.0) -> None:
        self.cuda, self.block = device == "cuda", block
        cold = last_level_cache(device) * (2 if self.cuda else 1)
        self.cold = torch.zeros((2, cold // 4), device=device)

    def passes(self, run: Run) -> dict[str, float]:
        """ms of each mode on the device, and of the `host` to queue both passes."""
        if not self.block:
            self._cool()
            return self._pass(run)
        self._pass(run)  # it warms the caches and does not count
        taken, end = [self._pass(run)], time.perf_counter() + self.block
        while time.perf_counter() < end:
            taken.append(self._pass(run))
        return {name: median(of[name] for of in taken) for name in taken[0]}

    def _pass(self, run: Run) -> dict[str, float]:
        made: list[Any] = []
        forward, backward, host = self._stages(
            lambda: made.append(run()),
            lambda: made[0][1](),
        )
        return {"fwd": forward, "bwd": backward, "both": forward + backward, "host": host}

    def single(self, function: Callable[[], object]) -> float:
        """ms on the device, with cold caches."""
        self._cool()
        return self._stages(function)[0]

    def _cool(self) -> None:
        """Empty the caches and, on a GPU, give the host time to fill the queue."""
        if self.cuda:
            torch.cuda.synchronize()
        self.cold[0].add_(1)
        # Reading evicts what was written: nothing is left to be written back while timing.
        self.cold[1].sum()
        if self.cuda:
            torch.cuda._sleep(_SLEEP)

    def _stages(self, *stages: Callable[[], object]) -> list[float]:
        """ms of each on the device, and of the host for all of them."""
        start = time.perf_counter()
        marks = [self._mark()]
        for stage in stages:
            stage()
            marks.append(self._mark())
        host = (time.perf_counter() - start) * 1e3
        if self.cuda:
            torch.cuda.synchronize()
        return [*(self._between(*ends) for ends in itertools.pairwise(marks)), host]

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) if self.cuda else (end - start) * 1e3


def last_level_cache(device: str) -> int:
    """Bytes of the largest cache, 32 MiB (of a GPU 64) where nobody says.

    Of a CPU at most 32 MiB for each core: virtual machines report the cache of a whole socket, most
    of which holds the data of others, and to empty that takes longer than what is timed.
    """
    if device == "cuda":
        return getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * MIB
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [path.read_text().strip() for path in sizes]
    units = {"K": 1 << 10, "M": MIB}
    largest = max((int(s[:-1]) * units[s[-1]] for s in found if s[-1:] in units), default=32 * MIB)
    return min(largest, 32 * MIB * (os.cpu_count() or 1))


def out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def errors(case: Case, run: Run, want: Exact) -> dict[str, float]:
    """Of the value, relative to its terms, and of the gradients together, relative to their norm.

    Raises:
        Wrong: they exceed what float32 explains; or NaN.
    """
    value, backward = run()
    gradients = list(backward()) if case.wanted else []
    found = {"value": abs(value.item() - want.value) / max(want.magnitude, 1e-300)}
    bounds = {"value": VALUE_TOLERANCE}
    if gradients:
        relative = (_distance(g, w) for g, w in zip(gradients, want.gradients, strict=True))
        found["gradients"] = max(relative, key=lambda x: math.inf if math.isnan(x) else x)
        of_dtype = torch.finfo(gradients[0].dtype).eps
        smooth = case.estimator == "jensen"
        least = VALUE_TOLERANCE if smooth else LOGSUMEXP_GRADIENT_TOLERANCE
        bounds["gradients"] = max(of_dtype, least)
    if not all(found[what] <= bound for what, bound in bounds.items()):
        said = ", ".join(f"error of the {what} {e:.1e}" for what, e in found.items())
        raise Wrong(f"{said}; allowed: {', '.join(f'{b:.1e}' for b in bounds.values())}")
    return found


def _distance(found: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm, in float64, without temporaries of their size."""
    if found.shape != want.shape:
        raise Wrong(f"a gradient of shape {tuple(found.shape)}, not {tuple(want.shape)}")
    difference = norm = 0.0
    for a, b in zip(found.split(1024), want.split(1024), strict=True):
        difference += (a.double() - b).square().sum().item()
        norm += b.double().square().sum().item()
    return math.sqrt(difference / norm) if norm else math.sqrt(difference)


def interleaved(
    contestants: Mapping[str, Sequence[Run]],
    yardsticks: Mapping[str, Any],
    clock: Clock,
    suite: Suite,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, list[float]]]:
    """ms of every contestant by mode and "host", and of the yardsticks: rounds of one sample of
    each, every other round backwards. A contestant that runs out of memory drops out."""
    least = {n: suite.least if _warm_up(runs[0], suite) else 3 for n, runs in contestants.items()}
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    of_yardsticks: dict[str, list[float]] = {name: [] for name in yardsticks}
    waiting, spent = dict(contestants), dict.fromkeys(contestants, 0.0)
    with _no_collection():
        for turn in range(suite.most):
            for name, yardstick in yardsticks.items():
                of_yardsticks[name].append(clock.single(yardstick.run))
            for name in list(waiting)[:: -1 if turn % 2 else 1]:
                runs, start = contestants[name], time.perf_counter()
                try:
                    samples[name].append(clock.passes(runs[turn % len(runs)]))
                except Exception as error:  # no common class: see `out_of_memory`
                    if not out_of_memory(error):
                        raise
                    del waiting[name], samples[name]
                    continue
                spent[name] += time.perf_counter() - start
                if turn + 1 >= least[name] and spent[name] > suite.seconds:
                    del waiting[name]
            if not waiting:
                break
    by_mode = {
        name: {quantity: [t[quantity] for t in taken] for quantity in taken[0]}
        for name, taken in samples.items()
    }
    return by_mode, of_yardsticks


def _warm_up(run: Run, suite: Suite) -> bool:
    """Whether it is fast enough for the usual number of samples."""
    start = time.perf_counter()
    _pass(run)
    fast = time.perf_counter() - start < 2 * suite.seconds
    while time.perf_counter() - start < suite.warm_up:
        _pass(run)
    return fast


def _pass(run: Run) -> Sequence[Tensor]:
    _, backward = run()
    return backward()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected between measurements, not in one of them."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def extra_memory(run: Run, device: str) -> int | None:
    """Bytes at the peak of both passes beyond what was there and beyond the gradients: what the
    allocator gave out on a GPU, what became resident on Linux; None elsewhere."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        gradients = _pass(run)
        peak = torch.cuda.max_memory_allocated()
    else:
        status = Path("/proc/self/status")
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again, unseen
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = _resident(status, "VmRSS")
            gradients = _pass(run)
            peak = _resident(status, "VmHWM")
        except (OSError, AttributeError):
            return None
    return max(0, peak - before - sum(g.numel() * g.element_size() for g in gradients))


def page_faults(run: Run, passes: int = 5) -> tuple[float, float] | None:
    """Of a pass on a CPU: how many, and ms in the system; None where nobody counts."""
    try:
        import resource
    except ImportError:
        return None
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(passes):
        _pass(run)
    after = resource.getrusage(resource.RUSAGE_SELF)
    faults, system = after.ru_minflt - before.ru_minflt, after.ru_stime - before.ru_stime
    return faults / passes, 1e3 * system / passes


def by_kernel(run: Run, passes: int = 5) -> dict[str, float]:
    """us of a pass on a GPU by kernel, the longest first, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(passes):
            _pass(run)
        torch.cuda.synchronize()
    found = {event.key: event.self_device_time_total / passes for event in profile.key_averages()}
    return dict(sorted(((k, us) for k, us in found.items() if us > 0), key=lambda item: -item[1]))


def _resident(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
