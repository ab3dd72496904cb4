"""What kernels are compiled for, and what one multiprocessor of it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import torch
from _ahead_of_time import Binary, Specialisation, specialisations
from fused_mi.triton_kernels import _configs
from fused_mi.triton_kernels._launch import Launch
from triton.backends.compiler import GPUTarget

ALL = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float64: "f64",
}
SOME = (torch.float32, torch.bfloat16)
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), SOME),
    "sm_89": (GPUTarget("cuda", 89, 32), SOME),
    "sm_90": (GPUTarget("cuda", 90, 32), tuple(ALL)),
    "sm_100": (GPUTarget("cuda", 100, 32), SOME),
    "sm_120": (GPUTarget("cuda", 120, 32), SOME),
    "gfx942": (GPUTarget("hip", "gfx942", 64), SOME),
}
LIMITED = "sm_90"
"""The target whose instructions have limits."""
SHARED = {"sm_80": 164, "sm_89": 100, "sm_90": 228, "sm_100": 228, "sm_120": 100}  # KiB of one SM
WARPS = {"sm_89": 48, "sm_120": 48}  # of one SM; 64 of the others
PROGRAMS = {"sm_89": 24, "sm_120": 24}  # the same; 32


class Row(NamedTuple):
    """A specialisation, the first case and the dtypes of inputs that lead to it."""

    target: str
    specialisation: Specialisation
    case: str
    dtypes: list[torch.dtype]

    @property
    def kernel(self) -> str:
        return self.specialisation.kernel

    @property
    def constants(self) -> dict[str, Any]:
        return self.specialisation.constants()

    @property
    def in_float64(self) -> bool:
        """What it sums up."""
        return self.constants.get("ACC") == "fp64"


def specialised(
    targets: list[str], cases: Mapping[str, Callable[[torch.dtype], list[Launch]]]
) -> list[Row]:
    """Every specialisation once.

    Args:
        cases: by name, the launches of inputs of a dtype.
    """
    found: dict[Specialisation, tuple[str, list[torch.dtype]]] = {}
    for name in targets:
        target, dtypes = TARGETS[name]
        for case, launches in cases.items():
            for dtype in dtypes:
                with mock.patch.object(_configs, "lanes", return_value=target.warp_size):
                    recorded = launches(dtype)
                for specialisation in specialisations(recorded, target):
                    _, uses = found.setdefault(specialisation, (case, []))
                    if dtype not in uses:
                        uses.append(dtype)
    names = {str(target): name for name, (target, _) in TARGETS.items()}
    return [Row(names[str(s.target)], s, *of) for s, of in found.items()]


def registers_for(warps: int, binary: Binary) -> int:
    """The most of a thread with which `warps` warps fit into an SM; a program has all of its warps
    or none."""
    programs = -(-warps // binary.warps)
    return min(255, 65536 // (programs * binary.warps * 32) // 8 * 8)


def resident_warps(target: str, binary: Binary) -> int:
    """Of an SM or of a compute unit, as limited by registers, shared memory and its own maximum."""
    if target.startswith("gfx"):  # 512 registers of each lane, 8 waves, on each of 4 SIMDs
        return 4 * min(8, 512 // max(-(-binary.registers // 8) * 8, 1))
    of_warp = -(-binary.registers * 32 // 256) * 256
    programs = min(
        65536 // of_warp // 4 * 4 // binary.warps,
        WARPS.get(target, 64) // binary.warps,
        SHARED[target] * 1024 // (binary.shared + 1024),
        PROGRAMS.get(target, 32),
    )
    return programs * binary.warps
