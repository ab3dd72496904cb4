"""The Triton kernels, compiled for GPUs that need not be there: registers, spills, wide accesses.

    python benchmarks/binaries/kernels_check.py [--target sm_90 ...] [--only pairs] [--processes N]

Every kernel of the Jensen loss, forward and backward, for aligned embeddings (64, 4, 4096), with
the tiles and splits of an H100, and what its loop asks of a GPU beside the memory, see `_budget`;
and those of the pairs, see `_pairs_check`. Exit code 1 where a binary exceeds a limit of `LIMITS`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    sys.exit("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")
os.environ["FUSED_MI_AUTOTUNE"] = "0"  # the tiles that are used without a measurement

import _pairs_check
import _whole
import torch
from _ahead_of_time import Binary, Specialisation, compiled
from _budget import GPUS, LIMIT, LIMIT_OF_PAIRS, OF_PAIRS, STRAIGHT, worst
from _targets import ALL, TARGETS, registers_for, resident_warps, specialised
from fused_mi.triton_kernels._launch import Launch
from rich.console import Console
from rich.table import Table

SHAPE = (64, 4, 4096)
FEW = 8
"""Rows that are one group of each role, or of "leave_one_out", whose gradients are summed pair by
pair."""

# Least warps of an SM that have registers; what follows is the most registers of a thread.
#
# The kernels that read the inputs are limited by memory: 24 KiB must be on their way to an SM (3.35
# TB/s * 0.9 us / 132 SMs of an H100), and a warp waits for 512 bytes of each tensor that it reads,
# or in `accumulate_kernel`, `leave_one_out_kernel` and those of one group for four times as many.
# Accumulation in float64 is limited by arithmetic instead (an H100 has half the units): two warps
# for each scheduler, of independent elements. The others are short: a quarter of the SM is enough.
LIMITS = {
    "halves": 16,  # y, stds; or x, mu, stds
    "both": 12,  # y, x, mu, stds
    "stds": 48,  # of `prepare_kernel` and `_least_kernel`
    "sub_batch": 8,  # of `accumulate_kernel`
    "symmetric": 8,
    "leave_one_out": 8,
    "float64": 8,
    "other": 16,
}
STREAMING = (
    "_least_kernel",
    "prepare_kernel",
    "accumulate_kernel",
    "leave_one_out_kernel",
    "gradient_kernel",
    "gradient_of_few_kernel",
)
"""They read the inputs, in a loop over rows."""
LEAST_BITS = {"float32": 128, "float64": 64, "both": 64}
"""Of their loads and stores in that loop, flags aside, by the type of the accumulation, and of
16-bit inputs in both roles: half the width leaves registers to what is summed up."""

FEW_SPILLED, MOST_SPILLED = 8, {"sm_100": 64}
"""Bytes, outside of loops: two registers once; and where packed arithmetic pairs them up."""

ALONE = ("leave_one_out_kernel", "leave_one_out_finish_kernel", "gradient_of_few_kernel")
"""They serve "leave_one_out" only."""

Row = tuple[Specialisation, str, list[torch.dtype]]  # with the roles of a pass


def launches(pairing: str, rows: int, dtype: torch.dtype) -> list[Launch]:
    """All launches of a loss and its gradients."""
    _, _, forward, backward = _whole.passes((rows, *SHAPE[1:]), pairing, dtype)
    return forward + backward


def rows(targets: list[str]) -> list[tuple[str, Row]]:
    """Every specialisation once, with the dtypes of the inputs that lead to it."""
    cases = {pairing: partial(launches, pairing, SHAPE[0]) for pairing in _whole.PAIRINGS}
    cases |= {f"{name} of few": partial(launches, name, FEW) for name in _whole.PAIRINGS}
    found = specialised(targets, cases)
    return [(name, (s, _roles(s), uses)) for name, s, _, uses in found]


def _roles(specialisation: Specialisation) -> str:
    flags = specialisation.constants()
    if specialisation.kernel in ("accumulate_kernel", *STRAIGHT):
        return "sub_batch" if flags["MIXTURES"] == 1 else "symmetric"
    if flags.get("EXCLUDE_DIAGONAL") or specialisation.kernel in ALONE:
        return "leave_one_out"
    if specialisation.kernel not in ("gradient_kernel", "gradient_of_pairs_kernel"):
        return ""
    # None is a constant: the first pass of "sub_batch" is of samples, the second of components.
    apart = "component_mask" in flags and "other_sample_mask" in flags
    return "halves" if apart else "both"


def _in_float64(specialisation: Specialisation) -> bool:
    return specialisation.constants().get("ACC") == "fp64"


def most_registers(row: Row, binary: Binary) -> int:
    """From the least warps of an SM; a program has all of its warps or none."""
    specialisation, roles, _ = row
    if specialisation.kernel in OF_PAIRS:
        warps = LIMITS["float64"]
    elif specialisation.kernel not in (*STREAMING, *STRAIGHT):
        warps = LIMITS["other"]
    else:
        warps = LIMITS["float64" if _in_float64(specialisation) else roles or "stds"]
    return registers_for(warps, binary)


def problems(target: str, row: Row, binary: Binary) -> Iterator[str]:
    """What exceeds the limits."""
    if binary.spilled > MOST_SPILLED.get(target, FEW_SPILLED):
        yield f"{binary.spilled} bytes in local memory"
    if any(kind == "local" for kind, _ in binary.in_loops):
        yield "accesses to local memory in a loop"
    if any(kind == "atomic" for kind, _ in binary.accesses):
        yield "atomics"
    if target.startswith("gfx"):  # its wide accesses and registers are only reported
        return
    most = most_registers(row, binary)
    if binary.registers > most:
        yield f"more than {most} registers"
    if row[0].kernel not in STREAMING:
        return
    widths = [bits for kind, bits in binary.in_loops if kind in ("load", "store") and bits > 8]
    narrow = all(dtype.itemsize == 2 for dtype in row[2])
    both = narrow and row[1] in ("both", "symmetric", "leave_one_out")
    least = LEAST_BITS["float64" if _in_float64(row[0]) else "both" if both else "float32"]
    if min(widths, default=0) < least:
        yield f"{min(widths, default=0)} bits in the loop over rows"
    found = worst(target, binary)
    limit = LIMIT_OF_PAIRS if narrow and row[1] == "leave_one_out" else LIMIT
    if found and target == "sm_90" and torch.float64 not in row[2] and found[1] > limit:
        yield f"more than {limit} of the memory's time"


def _wide(counter: dict[tuple[str, int], int], kind: str) -> str:
    wide = sum(n for (k, bits), n in counter.items() if k == kind and bits >= 128)
    return f"{wide}/{sum(n for (k, _), n in counter.items() if k == kind)}"


def cells(target: str, row: Row, binary: Binary | str) -> tuple[list[str], bool]:
    """A line of the table, and whether it is within the limits."""
    specialisation, roles, dtypes = row
    kernel = specialisation.kernel.strip("_").removesuffix("_kernel")
    inputs = " ".join(ALL[dtype] for dtype in dtypes)
    if _in_float64(specialisation) and torch.float64 not in dtypes:
        inputs += " in f64"
    names = [kernel, target, inputs, roles]
    if isinstance(binary, str):
        return [*names, *[""] * 8, "does not compile"], False
    wrong = list(problems(target, row, binary))
    found = worst(target, binary) if specialisation.kernel in STREAMING else None
    budget = ["", ""] if found is None else [str(found[0]), f"{found[1]:.2f}"]
    verdict = "; ".join(wrong) or "ok"
    numbers = [
        str(binary.registers),
        str(binary.spilled),
        f"{_wide(binary.in_loops, 'load')}, {_wide(binary.accesses, 'load')}",
        _wide(binary.accesses, "store"),
        str(binary.shared),
        str(resident_warps(target, binary)),
    ]
    return [*names, *numbers, *budget, verdict], not wrong


COLUMNS: tuple[str, ...] = (
    "kernel",
    "target",
    "inputs",
    "roles",
    "registers",
    "spilled",
    "128-bit loads",
)
COLUMNS += ("stores", "shared", "warps", "per byte", "share", "verdict")
LEGEND = """registers and spilled bytes of a thread; 128-bit of all load instructions, in loops and
altogether; shared bytes of a program; resident warps of an SM or compute unit; in the loop over
rows, all instructions, FP32, FP64 and MUFU of a lane for each byte, and what takes longest of them
as a share of the memory's time on """
LEGEND += ", ".join(f"{g.name} ({name}, {g.terabytes} TB/s)" for name, g in GPUS.items())


class Part(NamedTuple):
    """Kernels that are checked in the same way."""

    rows: Callable[[list[str]], list[tuple[str, Any]]]
    cells: Callable[[str, Any, Binary | str], tuple[list[str], bool]]
    columns: Sequence[str]
    legend: str


PARTS = {
    "moments": Part(rows, cells, COLUMNS, LEGEND),
    "pairs": Part(_pairs_check.rows, _pairs_check.cells, _pairs_check.COLUMNS, _pairs_check.LEGEND),
}


def _whole_launches(pool: ProcessPoolExecutor, targets: list[str]) -> bool:
    """Prints a line for each direction; whether all are within the limits."""
    table, passed = Table(*_whole.COLUMNS), True
    directions = list(_whole.directions(targets))
    needed = dict.fromkeys(s for direction in directions for _, s in direction.launches)
    binaries = dict(zip(needed, pool.map(compiled, needed), strict=True))
    for direction in directions:
        line, good = _whole.cells(direction, _whole.Whole.of(direction, binaries.__getitem__))
        passed &= good
        table.add_row(*line, style=None if good else "red")
    if directions:
        Console(width=None if sys.stdout.isatty() else 180).print(table)
        print(f"{_whole.LEGEND}\n", flush=True)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    start = time.perf_counter()
    passed, errors, count = True, set(), 0
    # No cache, so that this is what the sources say now; new processes inherit the variable.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
            for part in map(PARTS.__getitem__, arguments.only):
                table = Table()
                for i, column in enumerate(part.columns):
                    numbers = 4 <= i < len(part.columns) - 1
                    table.add_column(column, justify="right" if numbers else "left")
                everything = part.rows(arguments.target)
                count += len(everything)
                binaries = pool.map(compiled, [row[0] for _, row in everything])
                for (target, row), binary in zip(everything, binaries, strict=True):
                    line, good = part.cells(target, row, binary)
                    passed &= good
                    errors |= {binary} if isinstance(binary, str) else set()
                    table.add_row(*line, style=None if good else "red")
                Console(width=None if sys.stdout.isatty() else 180).print(table)
                print(f"{part.legend}\n", flush=True)
            if "moments" in arguments.only:
                passed &= _whole_launches(pool, arguments.target)
    for error in errors:
        print(f"\n{error}")
    seconds = time.perf_counter() - start
    print(f"{count} binaries in {seconds:.0f} s: {'ok' if passed else 'FAILED'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
