"""The Triton kernels, compiled for GPUs that need not be there: registers, spills, wide accesses.

    python benchmarks/binaries/kernels_check.py [--target sm_90 ...] [--only pairs] [--brief]

Every kernel of the Jensen loss, forward and backward, for aligned embeddings (64, 4, 4096), with
the tiles and splits of an H100, and what its loop asks of a GPU beside the memory, see `_budget`;
those of the pairs, see `_pairs_check` and `_online_check`; those of ranks and micro-batches, see
`_parts_check`; every other form of them as far as
Triton's front end, see `_forms`; and the kernels of csrc/cuda, where there is nvcc, see
`_cuda_check`. Exit code 1 where a binary exceeds a limit of `LIMITS`. `--brief` leaves most of the
binaries of other GPUs than sm_90 out, and forms in which some gradients are not wanted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    sys.exit("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")
os.environ["FUSED_MI_AUTOTUNE"] = "0"  # the tiles that are used without a measurement

import _cuda_check
import _forms
import _online_check
import _pairs_check
import _parts_check
import _whole
import torch
from _ahead_of_time import Binary, compiled
from _budget import GPUS, LIMIT, LIMIT_OF_PAIRS, OF_PAIRS, STRAIGHT, worst
from _part import LEGEND_OF_ALL, Part
from _targets import LIMITED, TARGETS, Row, specialised
from fused_mi.triton_kernels._launch import Launch
from rich.console import Console
from rich.table import Table

SHAPE = (64, 4, 4096)
UNEVEN = 1000
"""Features, no multiple of 16, whose rows are aligned: what else they need than `SHAPE`, which is
nothing, is within the same limits."""
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

FEW_SPILLED, MOST_SPILLED = 8, {"sm_100": 64, "gfx942": 0}
"""Bytes, outside of loops: two registers once; and where packed arithmetic pairs them up."""

ALONE = ("leave_one_out_kernel", "leave_one_out_finish_kernel", "gradient_of_few_kernel")
"""They serve "leave_one_out" only."""


def launches(pairing: str, rows: int, features: int, dtype: torch.dtype) -> list[Launch]:
    """All launches of a loss and its gradients."""
    _, _, forward, backward = _whole.passes((rows, SHAPE[1], features), pairing, dtype)
    return forward + backward


def rows(targets: list[str]) -> list[Row]:
    """With the roles of a pass as their case."""
    cases = {}
    for features in (SHAPE[2], UNEVEN):
        of = f" of {features} features"
        for pairing in _whole.PAIRINGS:
            cases[pairing + of] = partial(launches, pairing, SHAPE[0], features)
            cases[f"{pairing} of few{of}"] = partial(launches, pairing, FEW, features)
    return [row._replace(case=_roles(row)) for row in specialised(targets, cases)]


def _roles(row: Row) -> str:
    flags = row.constants
    if row.kernel in ("accumulate_kernel", *STRAIGHT):
        return "sub_batch" if flags["MIXTURES"] == 1 else "symmetric"
    if flags.get("EXCLUDE_DIAGONAL") or row.kernel in ALONE:
        return "leave_one_out"
    if row.kernel not in ("gradient_kernel", "gradient_of_pairs_kernel"):
        return ""
    # None is a constant: the first pass of "sub_batch" is of samples, the second of components.
    apart = "component_mask" in flags and "other_sample_mask" in flags
    return "halves" if apart else "both"


def least_warps(row: Row) -> int:
    """A program has all of its warps or none."""
    if row.kernel in OF_PAIRS:
        return LIMITS["float64"]
    if row.kernel not in (*STREAMING, *STRAIGHT):
        return LIMITS["other"]
    return LIMITS["float64" if row.in_float64 else row.case or "stds"]


def most_spilled(row: Row) -> int:
    return MOST_SPILLED.get(row.target, FEW_SPILLED)


def problems(row: Row, binary: Binary) -> Iterator[str]:
    if any(kind == "local" for kind, _ in binary.in_loops):
        yield "accesses to local memory in a loop"
    if row.kernel not in STREAMING:
        return
    widths = [bits for kind, bits in binary.in_loops if kind in ("load", "store") and bits > 8]
    narrow = all(dtype.itemsize == 2 for dtype in row.dtypes)
    both = narrow and row.case in ("both", "symmetric", "leave_one_out")
    least = LEAST_BITS["float64" if row.in_float64 else "both" if both else "float32"]
    if min(widths, default=0) < least:
        yield f"{min(widths, default=0)} bits in the loop over rows"
    found = worst(row.target, binary)
    limit = LIMIT_OF_PAIRS if narrow and row.case == "leave_one_out" else LIMIT
    if found and row.target == LIMITED and torch.float64 not in row.dtypes and found[1] > limit:
        yield f"more than {limit} of the memory's time"


def numbers(row: Row, binary: Binary) -> list[str]:
    loads, in_loops = (_wide(c, "load") for c in (binary.accesses, binary.in_loops))
    found = worst(row.target, binary) if row.kernel in STREAMING else None
    budget = ["", ""] if found is None else [str(found[0]), f"{found[1]:.2f}"]
    return [", ".join(filter(None, (in_loops, loads))), _wide(binary.accesses, "store"), *budget]


def _wide(counter: dict[tuple[str, int], int], kind: str) -> str:
    """Those of 128 bits, of all."""
    found = {bits: n for (name, bits), n in counter.items() if name == kind}
    wide = sum(n for bits, n in found.items() if bits >= 128)
    return f"{wide}/{sum(found.values())}" if found else ""


def brief(everything: list[Row]) -> list[Row]:
    """Each kernel once on each target, and all rows of the one whose instructions have limits."""
    first = {(row.target, row.kernel): row for row in reversed(everything)}
    return [
        row for row in everything if row.target == LIMITED or first[row.target, row.kernel] is row
    ]


COLUMNS = ("128-bit loads", "stores", "per byte", "share")
LEGEND = """128-bit of all load instructions, in loops and altogether; in the loop over rows, all
instructions, FP32, FP64 and MUFU of a lane for each byte, and what takes longest of them as a share
of the memory's time on """
LEGEND += ", ".join(f"{g.name} ({name}, {g.terabytes} TB/s)" for name, g in GPUS.items())

PARTS = {
    "moments": Part(rows, least_warps, most_spilled, numbers, problems, COLUMNS, LEGEND),
    "pairs": _pairs_check.PART,
    "online": _online_check.PART,
    "ranks": _parts_check.PART,
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
        show(table, _whole.LEGEND)
    return passed


def _of_cuda(arguments: argparse.Namespace) -> tuple[bool, int]:
    """Whether the kernels of csrc/cuda are within the limits, and how many they are."""
    if shutil.which("nvcc") is None:
        print("There is no nvcc: the kernels of csrc/cuda are NOT checked.\n")
        return arguments.only != ["cuda"], 0
    # One GPU, unless some are named: each takes a minute of compiling.
    targets = arguments.target if arguments.target != list(TARGETS) else [LIMITED]
    table, passed, count = _cuda_check.check(targets, arguments.processes)
    show(table, "csrc/cuda; useful: multiplications and additions among the instructions of a loop")
    return passed, count


def show(table: Table, legend: str) -> None:
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    print(f"{legend}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parts = [*PARTS, "cuda", "forms"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--brief", action="store_true", help="on most GPUs each kernel once")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    start = time.perf_counter()
    passed, errors, count = True, set(), 0
    # No cache, so that this is what the sources say now; new processes inherit the variable.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
            for part in (PARTS[name] for name in arguments.only if name in PARTS):
                everything, table = part.rows(arguments.target), part.table()
                everything = brief(everything) if arguments.brief else everything
                count += len(everything)
                binaries = pool.map(compiled, [row.specialisation for row in everything])
                for row, binary in zip(everything, binaries, strict=True):
                    line, good = part.cells(row, binary)
                    passed &= good
                    errors |= {binary} if isinstance(binary, str) else set()
                    table.add_row(*line, style=None if good else "red")
                show(table, f"{LEGEND_OF_ALL}\n{part.legend}")
            if "moments" in arguments.only:
                whole = [t for t in arguments.target if t == LIMITED or not arguments.brief]
                passed &= _whole_launches(pool, whole)
            if "cuda" in arguments.only:
                found, count_of_cuda = _of_cuda(arguments)
                passed, count = passed and found, count + count_of_cuda
            if "forms" in arguments.only:
                forms = _forms.forms(arguments.brief)
                errors |= set(filter(None, pool.map(_forms.refusal, forms, chunksize=8)))
                print(f"{len(forms)} forms through the front end")
    passed &= not errors
    for error in errors:
        print(f"\n{error}")
    seconds = time.perf_counter() - start
    print(f"{count} binaries in {seconds:.0f} s: {'ok' if passed else 'FAILED'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
