"""Phase "timings": forward and backward pass of the default loss, against the traffic that no
implementation can avoid and against plain torch. Each case in turn, in one process."""

import argparse
import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import fused_mi
import torch
from cases import FLOATING
from torch import Tensor

from benchmarks import peers

from . import _contest
from ._children import Row, emit
from ._contest import OURS, Bench, compete, exact, kernels
from ._loss import Inputs, Shape, large_inputs, leaves_of
from ._measure import Clock, Copy, Run

F32, BF16 = torch.float32, torch.bfloat16
TARGETS: tuple[Shape, ...] = ((64, 512, 4096), (512, 128, 768))
TUNED = "fused_mi, tuned tiles"
LINEAR, PAIRS = "linear form, compiled", "pair formula, compiled"
PEERS: dict[str, Callable[..., Tensor]] = {
    LINEAR: peers.linear,
    "linear form, eager": peers.linear,
    PAIRS: peers.pairs,
    "pair formula, eager": peers.pairs,
}
MOST_OF_THE_FLOOR = 1.25  # time of both passes over that of a copy of the floor's bytes
LEAST_SPEEDUP = {LINEAR: (TARGETS, 1.5), PAIRS: (TARGETS[1:], 50.0)}

# Half-batch tensors that each pass has to move: eps reads the stds of both halves; the forward pass
# y and stds of the samples, x, mu and stds of the components; the backward pass the same again, and
# it writes four gradients of the whole batch.
FLOOR = {"forward": 2 + 5, "backward": 5 + 8, "both": 2 + 5 + 5 + 8}
_RESERVE = 20  # seconds that one contestant may take to compile and to be timed


class Case(NamedTuple):
    shape: Shape
    dtype: torch.dtype
    contestants: Sequence[str]  # besides OURS

    @property
    def name(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')}"


_REST: tuple[Shape, ...] = ((4096, 16, 768), (65536, 1, 64), (8, 512, 4096))
_EVERYTHING = (*PEERS, TUNED)
CASES = [
    *(Case(shape, F32, _EVERYTHING) for shape in TARGETS[::-1]),
    *(Case(shape, BF16, (LINEAR, "linear form, eager", PAIRS, TUNED)) for shape in TARGETS[::-1]),
    *(Case(shape, F32, tuple(PEERS)) for shape in _REST),
    *(Case(shape, BF16, (LINEAR, "linear form, eager")) for shape in _REST),
]
"""The most wanted first; time ends before the list does on a slow machine."""


def rows(seconds: float, green: bool) -> Iterator[Row]:
    """Time all cases; a first round without any peer, then with them. See `_contest.rows`."""
    return _contest.rows("timings", "timings", seconds, green, judged)


def judged(row: Row, green: bool) -> Row:
    """Add what follows: whether our values agree, rates, ratios to the floor, speed-ups."""
    ours = row.get("contestants", {}).get(OURS, {})
    if "errors" in ours:
        row["passed"] = ours["agrees"]
    timed = {name: c["ms"] for name, c in row.get("contestants", {}).items() if "ms" in c}
    if "copy" not in row:
        return row
    per_ms = row["copy"]["bytes"] / row["copy"]["ms"]["median"]
    row["copy"]["GB/s"] = per_ms / 1e6
    for name in (OURS, TUNED):
        for quantity, floor in row["floor_bytes"].items():
            if name in timed:
                ms = timed[name][quantity]
                ms["GB/s"] = floor / ms["median"] / 1e6
                ms["of_copy"] = floor / ms["median"] / per_ms
                ms["over_floor"] = ms["median"] * per_ms / floor
    shape, targets = tuple(row["shape"]), {}
    if OURS not in timed:
        return row
    if shape in TARGETS:
        ratio = timed[OURS]["both"]["over_floor"]
        targets[f"both passes within {MOST_OF_THE_FLOOR} x the floor"] = ratio <= MOST_OF_THE_FLOOR
    if not green:
        row["speedups"] = "withheld: a check of the values failed"
    else:
        both = {name: ms["both"]["median"] for name, ms in timed.items()}
        row["speedups"] = faster = {name: both[name] / both[OURS] for name in both if name in PEERS}
        for name, (shapes, least) in LEAST_SPEEDUP.items():
            if shape in shapes and row["dtype"] == "float32" and name in faster:
                targets[f"{least} x as fast as {name}"] = faster[name] >= least
    row["targets"] = targets
    return row


def cases(seconds: float, device: str, table: Sequence[Case]) -> Iterator[Row]:
    """In this process: a row for each case, without peers, and one with them while time is left."""
    deadline = time.monotonic() + seconds - _RESERVE
    with TemporaryDirectory() as folder, fused_mi.use_backend("triton"):
        bench = Bench(device, Clock(device), Copy(device), deadline)
        for case in table:
            yield _case(case, (), bench, folder)
        for case in table:
            if case.contestants and time.monotonic() < deadline:
                yield _case(case, case.contestants, bench, folder)


def _case(case: Case, others: Sequence[str], bench: Bench, folder: str) -> Row:
    """`folder` is that of measured tiles."""
    half = case.shape[0] // 2 * case.shape[1] * case.shape[2] * case.dtype.itemsize
    row: Row = {
        "name": case.name if others else f"{case.name}, alone",
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "floor_bytes": {quantity: count * half for quantity, count in FLOOR.items()},
        "contestants": {},
    }
    torch._dynamo.reset()  # each case has graphs for its own shape, as if it were alone
    inputs = large_inputs(case.shape, bench.device, case.dtype, density=1.0)
    make = functools.partial(_run, inputs=inputs, folder=folder)
    runs = compete(row, (OURS, *others), make, lambda: exact(inputs), bench)
    if TUNED in runs:
        tiles = Path(folder, "tiles.json")
        row["contestants"][TUNED]["tiles"] = tiles.read_text() if tiles.exists() else None
    if OURS in runs and not others and bench.device == "cuda" and case.shape in TARGETS:
        row["kernels"] = kernels(runs[OURS])
    return row


def _run(name: str, inputs: Inputs, folder: str) -> Run:
    """The passes of a contestant; it compiles when it is called first."""
    leaves = leaves_of(inputs)
    wanted = [leaves[i] for i in FLOATING]
    if name in PEERS:
        function = PEERS[name]
        if name.endswith("compiled"):
            function = torch.compile(function, fullgraph=True, dynamic=False)
    else:
        function = fused_mi.mutual_information_sub_batch
    tuning = {"FUSED_MI_AUTOTUNE": "1", "FUSED_MI_CACHE_DIR": folder}

    def variables() -> contextlib.AbstractContextManager[Any]:
        return mock.patch.dict(os.environ, tuning) if name == TUNED else contextlib.nullcontext()

    def run() -> tuple[Tensor, Callable[[], Sequence[Tensor]]]:
        with variables():
            value = function(*leaves)

        def backward() -> Sequence[Tensor]:
            with variables():
                return torch.autograd.grad(value, wanted)

        return value, backward

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    for row in cases(parser.parse_args().seconds, "cuda", CASES):
        emit(row)


if __name__ == "__main__":
    main()
