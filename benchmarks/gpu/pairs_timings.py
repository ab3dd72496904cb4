"""Phase "pairs": forward and backward pass of the loss that needs every pair, against what memory
and arithmetic of this device allow, and against the formula in plain torch where that fits."""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import fused_mi
import torch
import triton
import triton.language as tl
from cases import FLOATING
from torch import Tensor

from benchmarks import peers

from . import _contest
from ._children import Row, emit
from ._contest import OURS, Bench, compete, exact, kernels
from ._loss import Inputs, Shape, large_inputs, leaves_of
from ._measure import Clock, Copy, Run
from .timings import BF16, F32, FLOOR

PEERS = ("pair formula, compiled", "pair formula, eager")
ARITHMETIC: Shape = (512, 128, 768)  # N = M = 256, K = 98,304
MEMORY: Shape = (64, 512, 4096)  # N = M = 32, K = 2,097,152
FLOPS = 4  # of a pair and feature: a difference, and its square added up, two FMAs
LEAST_OF_PEAK = 0.4
MOST_OF_THE_FLOOR = 1.4
ENERGIES = "distances_kernel"
_RESERVE = 15  # seconds that one contestant may take to compile and to be timed


class Case(NamedTuple):
    shape: Shape
    dtype: torch.dtype
    peers: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f"logsumexp {self.shape} {str(self.dtype).removeprefix('torch.')}"


CASES = [
    *(Case(shape, dtype) for dtype in (F32, BF16) for shape in (ARITHMETIC, MEMORY)),
    *(Case(shape, F32, PEERS) for shape in (MEMORY, ARITHMETIC, (64, 16, 4096))),
]


@triton.jit
def fma_kernel(out, factor, term, repeats, CHAINS: tl.constexpr, LANES: tl.constexpr):
    """CHAINS independent chains of FMAs for each of LANES lanes, 32 FMAs of each in a repeat."""
    value = (tl.arange(0, CHAINS)[:, None] + tl.arange(0, LANES)[None, :]).to(tl.float32)
    for _ in range(0, repeats):
        for _ in tl.static_range(0, 32):
            value = tl.fma(value, factor, term)
    at = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(out + at, tl.sum(value, 0))


class Peak:
    """The yardstick of arithmetic: FMAs in registers, nothing else."""

    def __init__(self, device: str) -> None:
        cuda = device == "cuda"
        processors = torch.cuda.get_device_properties(0).multi_processor_count if cuda else 1
        self.programs, self.repeats = 16 * processors, 2048 if cuda else 1
        self.out = torch.empty(self.programs * 256, device=device)
        self.flops = 2 * self.programs * 256 * 8 * 32 * self.repeats

    def run(self) -> None:
        meta = {"CHAINS": 8, "LANES": 256, "num_warps": 8}
        factor, term = torch.full((2,), 0.5).tolist()
        fma_kernel[(self.programs,)](self.out, factor, term, self.repeats, **meta)

    def rate(self, clock: Clock) -> float:
        """FLOP/s: the best of ten."""
        return self.flops / (min(clock.single(self.run) for _ in range(10)) * 1e-3)


def rows(seconds: float, green: bool) -> Iterator[Row]:
    """Time all cases, see `_contest.rows`."""
    return _contest.rows("pairs", "pairs_timings", seconds, green, judged)


def judged(row: Row, green: bool) -> Row:
    """Add what follows: ratios to the floor and to the peak, targets, speed-ups."""
    contestants = row.get("contestants", {})
    ours = contestants.get(OURS, {})
    if "errors" in ours:
        row["passed"] = ours["agrees"]
    timed = {name: found for name, found in contestants.items() if "ms" in found}
    if OURS not in timed:
        return row
    per_ms = row["copy"]["bytes"] / row["copy"]["ms"]["median"]
    row["copy"]["GB/s"], peak = per_ms / 1e6, row["peak"]["TFLOP/s"] * 1e9  # per ms
    for found in timed.values():
        ms = {quantity: values["median"] for quantity, values in found["ms"].items()}
        found["over_floor"] = ms["both"] * per_ms / row["floor_bytes"]
        # Of the forward pass as a whole, with eps and log-determinants.
        found["of_peak"] = row["flops"] / ms["forward"] / peak
    shape, targets = tuple(row["shape"]), {}
    kernels = row.get("kernels", [])
    us = [k["us"] for k in kernels if isinstance(k, dict) and ENERGIES in k["kernel"]]
    if us:
        row["energies_of_peak"] = share = row["flops"] / (us[0] * 1e-3) / peak
        if shape == ARITHMETIC and row["dtype"] == "float32":
            name = f"energies at {LEAST_OF_PEAK:.0%} of the FP32 peak ({share:.0%})"
            targets[name] = share >= LEAST_OF_PEAK
    if shape == MEMORY and row["dtype"] == "float32":
        name = f"both passes within {MOST_OF_THE_FLOOR} x the floor"
        targets[name] = timed[OURS]["over_floor"] <= MOST_OF_THE_FLOOR
    row["targets"] = targets
    both = {name: found["ms"]["both"]["median"] for name, found in timed.items()}
    row["speedups"] = {name: both[name] / both[OURS] for name in both if name != OURS}
    if not green:
        row["speedups"] = "withheld: a check of the values failed"
    return row


def cases(seconds: float, device: str, table: Sequence[Case]) -> Iterator[Row]:
    """In this process: a row for each case, while time is left."""
    deadline = time.monotonic() + seconds - _RESERVE
    bench, peak = Bench(device, Clock(device), Copy(device), deadline), Peak(device)
    with fused_mi.use_backend("triton"):
        for case in table:
            if time.monotonic() < deadline:
                yield _case(case, peak, bench)
            else:
                yield {"name": case.name, "message": "not run: out of time"}


def _case(case: Case, peak: Peak, bench: Bench) -> Row:
    B, S, E = case.shape
    row: Row = {
        "name": case.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "floor_bytes": FLOOR["both"] * (B // 2) * S * E * case.dtype.itemsize,
        "flops": FLOPS * (B // 2) ** 2 * S * E,
        "peak": {"TFLOP/s": peak.rate(bench.clock) / 1e12},
        "contestants": {},
    }
    torch._dynamo.reset()
    inputs = large_inputs(case.shape, bench.device, case.dtype, density=1.0)
    make = partial(_run, inputs=inputs)
    names = (OURS, *case.peers)
    runs = compete(row, names, make, lambda: exact(inputs, estimator="logsumexp"), bench)
    if OURS in runs and bench.device == "cuda":
        row["kernels"] = kernels(runs[OURS])
    return row


def _run(name: str, inputs: Inputs) -> Run:
    """The passes of a contestant; it compiles when it is called first."""
    leaves = leaves_of(inputs)
    function: Callable[..., Tensor] = fused_mi.mutual_information_sub_batch
    if name != OURS:
        function = peers.pairs
    function = partial(function, estimator="logsumexp")
    if name.endswith("compiled"):
        function = torch.compile(function, fullgraph=True, dynamic=False)

    def run() -> tuple[Tensor, Callable[[], Sequence[Tensor]]]:
        value = function(*leaves)
        return value, lambda: torch.autograd.grad(value, [leaves[i] for i in FLOATING])

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    for row in cases(parser.parse_args().seconds, "cuda", CASES):
        emit(row)


if __name__ == "__main__":
    main()
