"""Kernels compiled for a GPU that need not be there, and what their machine code says.

Triton itself specialises, by way of its own interface for compilation ahead of time: a hook that
reports each specialisation, and `preload`, which compiles one. Only the driver, which would name
the GPU, is replaced.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from fused_mi.triton_kernels._launch import Launch, for_amd
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

Access = tuple[str, int]
"""An instruction: "load", "store" or "atomic" on global memory, or "local", and bits per thread."""


class Specialisation(NamedTuple):
    """One kernel for one set of types, constants and alignments, on one target."""

    target: GPUTarget
    module: str
    kernel: str
    data: str  # JSON, for `preload`

    def constants(self) -> dict[str, Any]:
        """Arguments that are part of the code, by name; not those inside of a tuple."""
        data = json.loads(self.data)
        names = list(data["signature"])
        found = zip(data["constant_keys"], data["constant_vals"], strict=True)
        return {names[key[0]]: value for key, value in found if len(key) == 1}


class Loop(NamedTuple):
    """A loop without another one inside."""

    names: Counter[str]  # instructions; "F2F.64" converts from or to float64
    read: int  # bytes of one thread, flags of a byte aside
    written: int

    @property
    def bytes(self) -> int:
        return self.read + self.written


class Binary(NamedTuple):
    """What a compiled kernel needs, and its accesses to memory; of an AMD GPU atomics alone."""

    registers: int  # of one thread
    spilled: int  # bytes of one thread in local memory
    shared: int  # bytes of one program
    warps: int  # of one program
    accesses: Counter[Access]
    in_loops: Counter[Access]  # those of them inside a loop
    loops: list[Loop]
    outside: Counter[str]  # instructions outside of loops

    @property
    def inner(self) -> Counter[str]:
        """Instructions of the loop that computes most."""
        names = [loop.names for loop in self.loops]
        found = max(names, key=lambda of: sum(of[name] for name in FMA_PIPE), default=None)
        return found or Counter()


def _aim_at(target: GPUTarget) -> None:
    """From now on a driver that says what the compiler asks of it."""
    answers = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: str(target),  # the key of compiled kernels
        get_current_stream=lambda device: 0,
    )
    driver.set_active(answers)


def specialisations(launches: Iterable[Launch], target: GPUTarget) -> list[Specialisation]:
    """What the launches would compile, found as for a real launch; nothing is compiled."""
    found: list[Specialisation] = []

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        found.append(Specialisation(target, fn.module, fn.name, compile["specialization_data"]))
        return True  # skip the compilation

    _aim_at(target)
    knobs.runtime.jit_cache_hook = note
    try:
        for kernel, programs, arguments, meta in launches:
            meta = for_amd(meta, target.warp_size) if target.backend == "hip" else meta
            kernel.warmup(*arguments, grid=(programs,), **meta)
    finally:
        knobs.runtime.jit_cache_hook = None
    return found


def compiled(specialisation: Specialisation) -> Binary | str:
    """Compile, and read the machine code; the error where it does not compile."""
    kernel = loaded(specialisation)
    if isinstance(kernel, str):
        return kernel
    return _read_cuda(kernel) if specialisation.target.backend == "cuda" else _read_hip(kernel)


def loaded(specialisation: Specialisation) -> Any:
    """The kernel, compiled; the error where it does not compile."""
    target, module, name, data = specialisation
    _aim_at(target)
    try:
        return getattr(importlib.import_module(module), name).preload(data)
    except Exception as error:  # whatever the compiler raises
        return _with_causes(error)


def _with_causes(error: BaseException | None) -> str:
    """What an error says, and what led to it."""
    said = []
    while error is not None:
        said.append(f"{type(error).__name__}: {error}")
        error = error.__cause__
    return "\n".join(said)


def _read_hip(kernel: Any) -> Binary:
    code = kernel.asm["amdgcn"]
    of = {name: int(number) for name, number in re.findall(r"\.(\w+):\s*(\d+)", code)}
    spilled = of["private_segment_fixed_size"] + 4 * of["vgpr_spill_count"]
    program = kernel.metadata.shared, kernel.metadata.num_warps
    atomics = re.findall(r"^\s+(?:global|buffer|flat)_(atomic)", code, re.MULTILINE)
    accesses = Counter((kind, 32) for kind in atomics)
    return Binary(of["vgpr_count"], spilled, *program, accesses, Counter(), [], Counter())


def _read_cuda(kernel: Any) -> Binary:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "kernel.cubin")
        file.write_bytes(kernel.asm["cubin"])
        usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file).splitlines()
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise ValueError(f"{kernel.name}: no resource usage in {usage!r}")
    registers, stack, local = map(int, found.groups())
    loops, accesses = _loops(code), [_access(line) for line in code]
    inside = set().union(*loops)
    return Binary(
        registers,
        stack + local,
        kernel.metadata.shared,
        kernel.metadata.num_warps,
        Counter(access for access in accesses if access),
        Counter(a for i in inside if (a := accesses[i])),
        _inner_loops(code, accesses, loops),
        _names(line for i, line in enumerate(code) if i not in inside),
    )


FMA_PIPE = {"FFMA": 1, "FMUL": 1, "FADD": 1, "FFMA2": 2, "FMUL2": 2, "FADD2": 2}
FMA_PIPE |= {"DFMA": 1, "DMUL": 1, "DADD": 1}
"""Multiplications and additions of one instruction and lane."""


def _names(lines: Iterable[str]) -> Counter[str]:
    """Instructions; a guard, @P0 or @!UP1, stands before the name, options follow a dot."""
    found = (re.search(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)(\S*)", line) for line in lines)
    matches = [(line[1], line[2]) for line in found if line]
    return Counter("F2F.64" if name == "F2F" and "F64" in o else name for name, o in matches)


def _inner_loops(code: list[str], accesses: list[Access | None], loops: list[range]) -> list[Loop]:
    found = []
    for loop in loops:
        if any(other != loop and other[0] in loop and other[-1] in loop for other in loops):
            continue
        moved = Counter[str]()
        for i in loop:
            kind, bits = accesses[i] or ("", 0)
            moved[kind] += bits // 8 * (bits > 8)
        found.append(Loop(_names(code[i] for i in loop), moved["load"], moved["store"]))
    return found


def _access(line: str) -> Access | None:
    kinds = {"LDG": "load", "LD": "load", "STG": "store", "ST": "store"}
    kinds |= {"LDL": "local", "STL": "local"} | dict.fromkeys(
        ("RED", "REDG", "ATOM", "ATOMG", "ATOMS"), "atomic"
    )
    found = re.search(r"\b([A-Z]+)((?:\.\w+)*) ", line)
    if found is None or found[1] not in kinds:
        return None
    widths = re.findall(r"\.[US]?(8|16|64|128|256)(?=\.|$)", found[2])
    return kinds[found[1]], max(map(int, widths), default=32)


def _loops(code: list[str]) -> list[range]:
    """Lines from a label to a branch back to it."""
    start = {m[1]: i for i, line in enumerate(code) if (m := re.match(r"\s*(\.L_x_\d+):", line))}
    branches = (re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line) for line in code)
    ends = [(start[branch[1]], i) for i, branch in enumerate(branches) if branch]
    return [range(first, last + 1) for first, last in ends if first < last]


def _output(*command: Any) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
