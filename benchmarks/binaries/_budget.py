"""What the loop of a kernel asks of a GPU while its memory delivers the bytes of that loop.

A kernel is limited by memory only if that is less than 1 for every kind of instruction; the rest of
a launch and what waits want room, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from _ahead_of_time import FMA_PIPE, Binary, Loop


class Gpu(NamedTuple):
    """Multiprocessors, their clock, measured bandwidth of the memory, and lanes of an SM."""

    name: str
    multiprocessors: int
    gigahertz: float
    terabytes: float  # of a second
    fp32: int = 128
    fp64: int = 2
    special: int = 16  # reciprocals, logarithms: MUFU
    issued: int = 128

    def lanes(self, width: int) -> float:
        """Of instructions that `width` lanes of an SM execute, how many for each byte."""
        return width * self.multiprocessors * self.gigahertz / (1000 * self.terabytes)


GPUS = {
    "sm_80": Gpu("A100", 108, 1.41, 1.9, fp32=64, fp64=32),
    "sm_89": Gpu("RTX 4090", 128, 2.52, 1.0),
    "sm_90": Gpu("H100", 132, 1.75, 3.0, fp64=64),
    "sm_100": Gpu("B200", 148, 1.85, 7.0, fp64=64),
    "sm_120": Gpu("RTX 5090", 170, 2.41, 1.65),
}
FP64 = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "F2F.64")
LIMIT = 0.6
"""Of the memory's time, for 16- and 32-bit inputs on sm_90."""
LIMIT_OF_PAIRS = 0.8
"""The same of "leave_one_out" for 16-bit inputs."""


OF_PAIRS = ("sums_of_pairs_kernel", "gradient_of_pairs_kernel")
"""They have work in lost columns only, in float64."""
STRAIGHT = ("one_group_kernel", "one_group_gradient_kernel")
"""They have loops for rare cases only."""


def kinds(names: Counter[str]) -> tuple[int, int, int, int]:
    """All of these instructions, FP32, FP64 and MUFU."""
    fp32 = sum(names[name] * n for name, n in FMA_PIPE.items() if name[0] == "F")
    return names.total(), fp32, sum(names[name] for name in FP64), names["MUFU"]


class PerByte(NamedTuple):
    """Instructions of a lane for each byte that it reads and writes in a loop."""

    all: float
    fp32: float
    fp64: float
    special: float

    @classmethod
    def of(cls, loop: Loop) -> PerByte:
        return cls(*(n / loop.bytes for n in kinds(loop.names)))

    def share(self, gpu: Gpu) -> float:
        """Of the time of the memory, for what takes longest."""
        widths = (gpu.issued, gpu.fp32, gpu.fp64, gpu.special)
        return max(n / gpu.lanes(width) for n, width in zip(self, widths, strict=True))

    def __str__(self) -> str:
        return " ".join(f"{n:.1f}" if n else "0" for n in self)


def main_loops(binary: Binary) -> Iterator[Loop]:
    """Without those of rare cases, which take a row at a time."""
    most = max((loop.bytes for loop in binary.loops), default=0)
    return (loop for loop in binary.loops if loop.bytes and 4 * loop.bytes >= most)


def worst(target: str, binary: Binary) -> tuple[PerByte, float] | None:
    """Of the main loops that which takes most of the memory's time; None where none is known."""
    found = [PerByte.of(loop) for loop in main_loops(binary)]
    if target not in GPUS or not found:
        return None
    worst = max(found, key=lambda loop: loop.share(GPUS[target]))
    return worst, worst.share(GPUS[target])
