"""Forms that a kernel of all pairs could take in Triton, compared by their machine code.

    python benchmarks/binaries/pair_forms.py [--target sm_90]

Each is the bare loop of `sum_e (a r - c)^2` over a tile of pairs, without masks or preparation, for
samples a (N, K) and components r, c (M, K) in float32. See docs/kernels.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    sys.exit("TRITON_INTERPRET is set: the interpreter compiles nothing, unset it")

import torch
import triton
import triton.language as tl
from _ahead_of_time import FMA_PIPE, compiled, specialisations
from _targets import TARGETS, resident_warps
from fused_mi.triton_kernels._launch import Launch
from rich.console import Console
from rich.table import Table


@triton.jit
def features_first(a, r, c, out, K, N: tl.constexpr, M: tl.constexpr, F: tl.constexpr):
    """Tile (F, N, M): the sum is in the registers of a thread."""
    n, m, f = tl.arange(0, N), tl.arange(0, M), tl.arange(0, F)
    total = tl.zeros((N, M), tl.float32)
    for k in range(0, K, F):
        at_m = m[None, :] * K + k + f[:, None]
        row = tl.load(a + n[None, :] * K + k + f[:, None])
        z = row[:, :, None] * tl.load(r + at_m)[:, None, :] - tl.load(c + at_m)[:, None, :]
        total += tl.sum(z * z, 0)
    tl.store(out + n[:, None] * M + m[None, :], total)


@triton.jit
def features_last(a, r, c, out, K, N: tl.constexpr, M: tl.constexpr, F: tl.constexpr):
    """Tile (N, M, F): the sum is over the lanes of a warp."""
    n, m, f = tl.arange(0, N), tl.arange(0, M), tl.arange(0, F)
    total = tl.zeros((N, M), tl.float32)
    for k in range(0, K, F):
        at_m = m[:, None] * K + k + f[None, :]
        row = tl.load(a + n[:, None] * K + k + f[None, :])
        z = row[:, None, :] * tl.load(r + at_m)[None, :, :] - tl.load(c + at_m)[None, :, :]
        total += tl.sum(z * z, 2)
    tl.store(out + n[:, None] * M + m[None, :], total)


@triton.jit
def outer_products(a, r, c, out, K, N: tl.constexpr, M: tl.constexpr, F: tl.constexpr):
    """Tile (N, M), one feature at a time: columns come from global memory."""
    n, m = tl.arange(0, N), tl.arange(0, M)
    total = tl.zeros((N, M), tl.float32)
    for k in range(0, K, F):
        for f in tl.static_range(0, F):
            at_m = m[None, :] * K + k + f
            z = tl.load(a + n[:, None] * K + k + f) * tl.load(r + at_m) - tl.load(c + at_m)
            total += z * z
    tl.store(out + n[:, None] * M + m[None, :], total)


@triton.jit
def expanded_product(a, r, c, out, K, N: tl.constexpr, M: tl.constexpr, F: tl.constexpr):
    """`a^2 . r^2 - 2 a . (r c) + c . c`: tensor cores in three TF32 products; cancels."""
    n, m, f = tl.arange(0, N), tl.arange(0, M), tl.arange(0, F)
    total = tl.zeros((N, M), tl.float32)
    for k in range(0, K, F):
        at_m = m[:, None] * K + k + f[None, :]
        row = tl.load(a + n[:, None] * K + k + f[None, :])
        root, centre = tl.load(r + at_m), tl.load(c + at_m)
        total = tl.dot(row * row, tl.trans(root * root), total, input_precision="tf32x3")
        total = tl.dot(row, tl.trans(-2 * root * centre), total, input_precision="tf32x3")
        total += tl.sum(centre * centre, 1)[None, :]
    tl.store(out + n[:, None] * M + m[None, :], total)


FORMS = [
    (features_first, (64, 64, 8, 8), "kept"),
    (features_first, (64, 32, 8, 8), "kept"),
    (features_first, (32, 32, 8, 4), "kept"),
    (features_last, (64, 64, 8, 8), "sums across lanes"),
    (features_last, (32, 32, 32, 8), "sums across lanes"),
    (outer_products, (64, 64, 8, 8), "an operand is loaded for each use"),
    (outer_products, (128, 64, 8, 8), "an operand is loaded for each use"),
    (expanded_product, (64, 64, 32, 8), "cancels, see below"),
]
"""Kernel; samples, components, features and warps of a tile; remark."""


def cancellation() -> tuple[float, float]:
    """Relative errors of one small distance in float32, of true differences and of the expansion:
    sigma 1, the pair 0.1 apart in each of 4096 features, 30 from the row that is the shift."""
    generator = torch.Generator().manual_seed(0)
    c = 30 * torch.randn(4096, generator=generator)
    a = c + 0.1 * torch.randn(4096, generator=generator)
    true = (a.double() - c.double()).square().sum()
    direct = (a - c).square().sum()
    expanded = a @ a - 2 * (a @ c) + c @ c
    errors = [((found - true) / true).abs().item() for found in (direct, expanded)]
    return errors[0], errors[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=[t for t in TARGETS if t != "gfx942"], default="sm_90")
    name = parser.parse_args().target
    table = Table("form", "tile", "warps", "registers", "spilled", "resident")
    for header in ("FMA pipe", "useful", "LDS", "LDG", "SHFL", "MMA", "remark"):
        table.add_column(header, justify="left" if header == "remark" else "right")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for kernel, (n, m, f, warps), remark in FORMS:
            tensors = [torch.empty((s, 4096), device="meta") for s in (n, m, m)]
            arguments = (*tensors, torch.empty((n, m), device="meta"), 4096)
            meta = {"N": n, "M": m, "F": f, "num_warps": warps}
            (found,) = specialisations([Launch(kernel, 1, arguments, meta)], TARGETS[name][0])
            binary = compiled(found)
            if isinstance(binary, str):
                sys.exit(binary)
            inner, total = binary.inner, binary.inner.total()
            pipe = sum(inner[i] for i in FMA_PIPE)
            useful = 2 * n * m * f / (32 * warps) / total
            mma = sum(count for i, count in inner.items() if "MMA" in i)
            table.add_row(
                kernel.__name__,
                f"{n} x {m} x {f}",
                str(warps),
                str(binary.registers),
                str(binary.spilled),
                str(resident_warps(name, binary)),
                f"{pipe / total:.0%}",
                "" if mma else f"{useful:.0%}",
                *(str(inner[i]) for i in ("LDS", "LDG", "SHFL")),
                str(mma),
                remark,
            )
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    print(
        "registers and spilled bytes of a thread; resident warps of an SM; of the inner loop:\n"
        "share of the FMA pipe, of the two FMAs of each pair and feature; instructions by name"
    )
    direct, expanded = cancellation()
    print(f"near duplicates: error of true differences {direct:.0e}, expanded {expanded:.0e}")


if __name__ == "__main__":
    main()
