"""The kernels of csrc/cuda, compiled by nvcc for GPUs that need not be there: what
`kernels_check.py` prints of them and where it fails."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from _ahead_of_time import FMA_PIPE, _access, _loops, _names, _output
from rich.table import Table
from triton import knobs

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
FLAGS = ("-std=c++20", "-O3", "-DNDEBUG", "-fmad=false", "-cubin")
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")

REGISTERS = 65536  # of an SM
ROWS = 4  # that a thread of `accumulate` holds at once


class Limits(NamedTuple):
    """Of a kernel whose name matches."""

    pattern: str  # of the name as c++filt prints it
    threads: int  # of a block
    warps: int  # of an SM that must have registers
    share: float = 0  # of multiplications and additions among all instructions of the inner loop
    per_element: float = 0  # instructions of the loop over rows, for each element of a row; 0: any


NARROW = r"(float|__half|__nv_bfloat16), float, "
OF_TILES = r"\b(distances|online|weigh)_kernel<.*"
LIMITS = (
    Limits(OF_TILES + NARROW + r"4>, 8, 8, 16,", 256, 8, share=0.80),
    Limits(OF_TILES + NARROW + r"4>, 8, 8, 8,", 64, 8, share=0.75),
    Limits(OF_TILES + NARROW + r"4>, 8, 4,", 32, 8, share=0.70),
    Limits(r"samples_gradient_kernel.*" + NARROW, 128, 8, share=0.75),
    Limits(r"components_gradient_kernel.*" + NARROW, 128, 8, share=0.75),
    Limits(r"accumulate_kernel.*" + NARROW + "4>", 64, 12, per_element=30),
    Limits(r"accumulate_alone_kernel", 64, 12),
    Limits(r"accumulate_kernel", 64, 12),
    Limits(r"(distances|online|weigh)_kernel<", 64, 8),
    Limits(r"(samples|components)_gradient_kernel.*Loose<float>", 128, 8),
    Limits(r"(samples|components)_gradient_kernel", 128, 4),
    Limits(r"(prepare|reduce|stabiliser|contributing|terms|upstream)_kernel", 256, 8),
    Limits(r"(sum_weights|add_gradients)_kernel", 256, 8),
    Limits(r"", 128, 12),
)
MOST_LOCAL = 8
"""Loads from local memory in the two slabs of an inner loop of pairs, of some 2000 instructions;
none in any other loop of vectors."""


class Kernel(NamedTuple):
    name: str  # without namespaces
    target: str
    registers: int
    local: int  # bytes of a thread
    loop: Counter[str]  # instructions of the loop that counts, see `_loop`
    atomics: Counter[str]  # in full

    def limits(self) -> Limits:
        return next(limits for limits in LIMITS if re.search(limits.pattern, self.name))

    def warps(self) -> int:
        """Of an SM, as far as registers go: blocks come as a whole."""
        threads = self.limits().threads
        of_block = -(-self.registers // 8) * 8 * threads
        return REGISTERS // of_block * threads // 32

    def share(self) -> float:
        useful = sum(FMA_PIPE.get(name, 0) * n for name, n in self.loop.items())
        return useful / max(self.loop.total(), 1)

    def per_element(self) -> float:
        width = re.search(r", (\d)>", self.name)
        return self.loop.total() / (ROWS * int(width[1])) if width else 0

    def problems(self) -> Iterator[str]:
        limits = self.limits()
        if self.warps() < limits.warps:
            yield f"less than {limits.warps} warps"
        if limits.share and self.share() < limits.share:
            yield f"less than {limits.share:.0%} useful"
        if limits.per_element and self.per_element() > limits.per_element:
            yield f"more than {limits.per_element:g} instructions of an element"
        loads = self.loop["LDL"] + self.loop["STL"]
        if (limits.share and loads > MOST_LOCAL) or (limits.per_element and loads):
            yield f"{loads} accesses to local memory in the loop"
        if any(re.search(r"\.F(16|32|64)|ADD", name) for name in self.atomics):
            yield f"atomics: {', '.join(self.atomics)}"


def compiled(source: Path, target: str) -> list[Kernel]:
    """The kernels of a file.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "kernels.cubin")
        command = ["nvcc", *FLAGS, f"-arch={target}", str(source), "-o", str(file)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file).splitlines()
    found = []
    for mangled, lines in _sections(code):
        pattern = rf"Function {re.escape(mangled)}:\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
        numbers = re.search(pattern, usage)
        if numbers is None:
            raise ValueError(f"{mangled}: no resource usage in {usage!r}")
        registers, stack, local = map(int, numbers.groups())
        atomics = Counter(
            operation[1]
            for line in lines
            if (access := _access(line)) and access[0] == "atomic"
            if (operation := re.search(r"\b((?:RED|ATOM)\w*(?:\.\w+)*)", line))
        )
        name = _demangled(mangled)
        loop = _loop(lines, re.search(OF_TILES, name) is not None)
        found.append(Kernel(name, target, registers, stack + local, loop, atomics))
    return found


def _sections(code: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in code:
        if begin := re.match(r"\s*\.text\.(\S+):", line):
            if name:
                yield name, lines
            name, lines = begin[1], []
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def _loop(lines: list[str], inner: bool) -> Counter[str]:
    """Of the loops with most multiplications and additions, the shortest of those that have nearly
    as many as the longest: without what is around it. `inner`: by multiply-adds alone, of which a
    loop over tiles has few of its own."""
    loops = [_names(lines[i] for i in loop) for loop in _loops(lines)]
    useful = {"FFMA": 1, "FFMA2": 2, "DFMA": 1} if inner else FMA_PIPE
    work = [sum(useful.get(name, 0) * n for name, n in loop.items()) for loop in loops]
    if not loops:
        return Counter()
    most = max(work)
    near = [loop for loop, n in zip(loops, work, strict=True) if n >= 0.8 * most]
    return min(near, key=Counter.total)


def _demangled(name: str) -> str:
    filter_of = shutil.which("c++filt")
    said = _output(filter_of, name).strip() if filter_of else name
    return re.sub(r"\bfused_mi::|^void |\(.*", "", said).replace("> >", ">>")


def check(targets: Sequence[str], processes: int) -> tuple[Table, bool, int]:
    """A line for each kernel, whether all are within the limits, and how many there are."""
    table = Table(
        "kernel", "target", "registers", "local", "warps", "useful", "of element", "verdict"
    )
    passed, count = True, 0
    files = sorted(SOURCES.glob("*.cu"))
    wanted = [(file, target) for target in targets if target in TARGETS for file in files]
    with ThreadPoolExecutor(processes) as pool:
        for found in pool.map(lambda one: compiled(*one), wanted):
            for kernel in found:
                limits, wrong = kernel.limits(), list(kernel.problems())
                passed &= not wrong
                count += 1
                table.add_row(
                    kernel.name,
                    kernel.target,
                    str(kernel.registers),
                    str(kernel.local),
                    str(kernel.warps()),
                    f"{kernel.share():.0%}" if limits.share else "",
                    f"{kernel.per_element():.1f}" if limits.per_element else "",
                    "; ".join(wrong) or "ok",
                    style="red" if wrong else None,
                )
    return table, passed, count
