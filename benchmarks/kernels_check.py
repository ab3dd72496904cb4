"""The Triton kernels, compiled for GPUs that need not be there: registers, spills, wide accesses.

    python benchmarks/kernels_check.py [--target sm_90 ...] [--processes N]

Every kernel of the Jensen loss, forward and backward, for aligned embeddings (64, 4, 4096), with
the tiles and splits of an H100. Exit code 1 where a binary exceeds a limit of `LIMITS`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    sys.exit("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")
os.environ["FUSED_MI_AUTOTUNE"] = "0"  # the tiles that are used without a measurement

import torch
from _ahead_of_time import Binary, Specialisation, compiled, specialisations
from fused_mi.reference.mixture import Mixture
from fused_mi.triton_kernels._launch import Launch, recorded
from fused_mi.triton_kernels.moments import moments, moments_backward
from fused_mi.triton_kernels.variance import variance
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget

SHAPE = (64, 4, 4096)
PAIRINGS = ("sub_batch", "symmetric", "leave_one_out")
ALL = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float64: "f64",
}
SOME = (torch.float32, torch.bfloat16)
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), SOME),
    "sm_90": (GPUTarget("cuda", 90, 32), tuple(ALL)),
    "sm_100": (GPUTarget("cuda", 100, 32), SOME),
    "gfx942": (GPUTarget("hip", "gfx942", 64), SOME),
}
SHARED = {"sm_80": 164, "sm_90": 228, "sm_100": 228}  # KiB of one SM

# Least warps of an SM that have registers; what follows is the most registers of a thread.
#
# The kernels that read the inputs are limited by memory: 24 KiB must be on their way to an SM (3.35
# TB/s * 0.9 us / 132 SMs of an H100), and a warp waits for 512 bytes of each tensor that it reads.
# Accumulation in float64 is limited by arithmetic instead (an H100 has half the units): two warps
# for each scheduler, of independent elements. The others are short: a quarter of the SM is enough.
LIMITS = {
    "samples": 24,  # y, stds
    "components": 16,  # x, mu, stds
    "both": 12,  # y, x, mu, stds
    "stds": 48,  # of `_least_kernel`
    "float64": 8,
    "other": 16,
}
STREAMING = ("_least_kernel", "accumulate_kernel", "gradient_kernel")
"""They read the inputs, in a loop over rows."""
LEAST_BITS = {"float32": 128, "float64": 64, "both": 64}
"""Of their loads and stores in that loop, flags aside, by the type of the accumulation, and of
16-bit inputs in both roles: half the width leaves registers to what is summed up."""

Row = tuple[Specialisation, str, list[torch.dtype]]  # with the roles of a pass


def launches(pairing: str, dtype: torch.dtype) -> list[Launch]:
    """All launches of a loss and its gradients, without data."""
    y, x, mu, stds = (torch.empty(SHAPE, dtype=dtype, device="meta") for _ in range(4))
    mask = torch.empty(SHAPE[:2], dtype=torch.bool, device="meta")
    wide = torch.promote_types(dtype, torch.float32)
    rows, half = SHAPE[0], SHAPE[0] // 2
    first, second, everything = (0, half), (half, rows), (0, rows)
    pairs = {
        "sub_batch": [(first, second)],
        "symmetric": [(first, second), (second, first)],
        "leave_one_out": [(everything, everything)],
    }[pairing]
    with recorded() as found:
        eps = torch.stack([variance(stds, mask, pairs[0][0], wide, 100.0)] * 2)
        mixtures = [
            Mixture(mask, mask, eps[0], eps[1], *pair, pairing == "leave_one_out") for pair in pairs
        ]
        sums, state = moments(y, x, mu, stds, mixtures)
        moments_backward(torch.empty_like(sums), y, x, mu, stds, state, mixtures, [True] * 4)
    return found


def rows(targets: list[str]) -> list[tuple[str, Row]]:
    """Every specialisation once, with the dtypes of the inputs that lead to it."""
    found: dict[Specialisation, list[torch.dtype]] = {}
    for name in targets:
        target, dtypes = TARGETS[name]
        for pairing in PAIRINGS:
            for dtype in dtypes:
                for specialisation in specialisations(launches(pairing, dtype), target):
                    uses = found.setdefault(specialisation, [])
                    if dtype not in uses:
                        uses.append(dtype)
    names = {str(target): name for name, (target, _) in TARGETS.items()}
    return [(names[str(s.target)], (s, _roles(s), uses)) for s, uses in found.items()]


def _roles(specialisation: Specialisation) -> str:
    flags = specialisation.constants()
    if flags.get("EXCLUDE_DIAGONAL"):
        return "leave one out"
    if "SAMPLES" not in flags:
        return ""
    return {(True, False): "samples", (False, True): "components"}.get(
        (flags["SAMPLES"], flags["COMPONENTS"]), "both"
    )


def _in_float64(specialisation: Specialisation) -> bool:
    return specialisation.constants().get("ACC") == "fp64"


def most_registers(row: Row, binary: Binary) -> int:
    """From the least warps of an SM; a program has all of its warps or none."""
    specialisation, roles, _ = row
    if specialisation.kernel not in STREAMING:
        warps = LIMITS["other"]
    else:
        warps = LIMITS["float64" if _in_float64(specialisation) else roles or "stds"]
    programs = -(-warps // binary.warps)
    return min(255, 65536 // (programs * binary.warps * 32) // 8 * 8)


def resident_warps(target: str, binary: Binary) -> int:
    """Of an SM or of a compute unit, as limited by registers, shared memory and its own maximum."""
    if target.startswith("gfx"):  # 512 registers of each lane, 8 waves, on each of 4 SIMDs
        return 4 * min(8, 512 // max(-(-binary.registers // 8) * 8, 1))
    of_warp = -(-binary.registers * 32 // 256) * 256
    programs = min(
        65536 // of_warp // 4 * 4 // binary.warps,
        64 // binary.warps,
        SHARED[target] * 1024 // (binary.shared + 1024),
        32,
    )
    return programs * binary.warps


def problems(target: str, row: Row, binary: Binary) -> Iterator[str]:
    """What exceeds the limits."""
    if binary.spilled or any(kind == "local" for kind, _ in binary.accesses):
        yield f"{binary.spilled} bytes in local memory"
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
    narrow = row[1] == "both" and all(dtype.itemsize == 2 for dtype in row[2])
    least = LEAST_BITS["float64" if _in_float64(row[0]) else "both" if narrow else "float32"]
    if min(widths, default=0) < least:
        yield f"{min(widths, default=0)} bits in the loop over rows"


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
        return [*names, *[""] * 6, "does not compile"], False
    wrong = list(problems(target, row, binary))
    numbers = [
        str(binary.registers),
        str(binary.spilled),
        f"{_wide(binary.in_loops, 'load')}, {_wide(binary.accesses, 'load')}",
        _wide(binary.accesses, "store"),
        str(binary.shared),
        str(resident_warps(target, binary)),
    ]
    return [*names, *numbers, "; ".join(wrong) or "ok"], not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    start = time.perf_counter()
    table = Table("kernel", "target", "inputs", "roles")
    for header in ("registers", "spilled", "128-bit loads", "stores", "shared", "warps"):
        table.add_column(header, justify="right")
    table.add_column("verdict")
    everything = rows(arguments.target)
    passed, errors = True, set()
    # No cache, so that this is what the sources say now; new processes inherit the variable.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.processes, mp_context=spawn) as pool:
            binaries = pool.map(compiled, [row[0] for _, row in everything])
            for (target, row), binary in zip(everything, binaries, strict=True):
                line, good = cells(target, row, binary)
                passed &= good
                errors |= {binary} if isinstance(binary, str) else set()
                table.add_row(*line, style=None if good else "red")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(
        "registers and spilled bytes of a thread; 128-bit of all load instructions, in loops and\n"
        "altogether; shared bytes of a program; resident warps of an SM or compute unit"
    )
    for error in errors:
        print(f"\n{error}")
    seconds = time.perf_counter() - start
    print(f"{len(everything)} binaries in {seconds:.0f} s: {'ok' if passed else 'FAILED'}")
    sys.exit(not passed)


if __name__ == "__main__":
    main()
