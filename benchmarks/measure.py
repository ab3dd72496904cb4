"""Time, memory and errors of contestants, by what they do and not by what they are.

A contestant is a list of `Run`s, one for each of several copies of the inputs, used in turn.
"""

import contextlib
import ctypes
import gc
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import gpu  # noqa: F401  the package and the helpers of the tests can be imported from now on
from .cases import Case, Suite
from .exact import Exact
from .gpu import _measure
from .gpu._measure import Run

MIB = 1 << 20
VALUE_TOLERANCE = 100 * torch.finfo(torch.float32).eps  # relative to the magnitude of the terms
# The weights of logsumexp depend on energies, whose roundings grow with S * E.
LOGSUMEXP_GRADIENT_TOLERANCE = 1e-3
_QUANTITIES = {"fwd": "forward", "bwd": "backward", "both": "both", "host": "host"}


class Wrong(Exception):
    """A contestant computes something else."""


class Clock(_measure.Clock):
    """That of the GPU check, and on a CPU with cold caches too."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        if not self.cuda:
            self.cold = torch.zeros((2, last_level_cache() // 4))

    def _after_a_flush(self, function: Callable[[], None]) -> float:
        if not self.cuda:
            self.cold[0].add_(1)
            self.cold[1].sum()
        return super()._after_a_flush(function)


def last_level_cache() -> int:
    """Bytes of the largest cache of a CPU that says so, 32 MiB elsewhere.

    At most 32 MiB for each core: virtual machines report the cache of a whole socket, most of which
    holds the data of others, and to empty that takes longer than what is timed.
    """
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
    least = {
        name: suite.least if _warm_up(runs[0], suite) else 3 for name, runs in contestants.items()
    }
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    of_yardsticks: dict[str, list[float]] = {name: [] for name in yardsticks}
    spent, dropped = dict.fromkeys(contestants, 0.0), set()
    with _no_collection():
        for turn in range(suite.most):
            for name, yardstick in yardsticks.items():
                of_yardsticks[name].append(clock.single(yardstick.run))
            for name in list(contestants)[:: -1 if turn % 2 else 1]:
                enough = turn >= least[name] and spent[name] > suite.seconds
                if enough or name in dropped:
                    continue
                runs, start = contestants[name], time.perf_counter()
                try:
                    samples[name].append(clock.passes(runs[turn % len(runs)]))
                except Exception as error:  # no common class: see `out_of_memory`
                    if not out_of_memory(error):
                        raise
                    dropped.add(name)
                spent[name] += time.perf_counter() - start
            if turn >= suite.least and all(s > suite.seconds for s in spent.values()):
                break
    by_mode = {
        name: {mode: [t[key] for t in taken] for mode, key in _QUANTITIES.items()}
        for name, taken in samples.items()
        if name not in dropped
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
def _no_collection():
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
    if device == "cuda":
        return _measure.extra_memory(run)
    status = Path("/proc/self/status")
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again, unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident(status, "VmRSS")
        gradients = _pass(run)
        peak = _resident(status, "VmHWM")
    except (OSError, AttributeError):
        return None
    return max(0, peak - before - sum(g.numel() * g.element_size() for g in gradients))


def _resident(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
