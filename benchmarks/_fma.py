"""The yardstick of arithmetic on a GPU: multiply-adds in registers, nothing else."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

_LANES, _CHAINS, _STEPS, _REPEATS = 256, 8, 32, 2048


@triton.jit
def fma_kernel(out, factor, term, repeats, CHAINS: tl.constexpr, LANES: tl.constexpr):
    """CHAINS independent chains of FMAs for each of LANES lanes, 32 FMAs of each in a repeat."""
    value = (tl.arange(0, CHAINS)[:, None] + tl.arange(0, LANES)[None, :]).to(tl.float32)
    for _ in range(0, repeats):
        for _ in tl.static_range(0, 32):
            value = tl.fma(value, factor, term)
    at = tl.program_id(0) * LANES + tl.arange(0, LANES)
    tl.store(out + at, tl.sum(value, 0))


def peak() -> tuple[Callable[[], object], float]:
    """A launch that fills the device, and its operations."""
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    programs = 16 * processors
    out = torch.empty(programs * _LANES, device="cuda")
    meta = {"CHAINS": _CHAINS, "LANES": _LANES, "num_warps": 8}

    def run() -> None:
        fma_kernel[(programs,)](out, 0.5, 0.5, _REPEATS, **meta)

    return run, 2.0 * programs * _LANES * _CHAINS * _STEPS * _REPEATS
