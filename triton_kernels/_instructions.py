"""Single instructions of NVIDIA GPUs for which Triton would emit a sequence, and what replaces them
on AMD GPUs, in float64 and in the interpreter.

They are approximate, see the PTX manual: a reciprocal within 1 ulp, a logarithm within 2^-22 of
itself, between 1/2 and 2 within 2^-22. Denormal numbers are 0.
"""

import triton
import triton.language as tl
from triton import knobs
from triton.language.target_info import current_target


@triton.constexpr_function
def _in_ptx(dtype):
    target = current_target()
    return (
        not knobs.runtime.interpret
        and target is not None
        and target.backend == "cuda"
        and dtype == tl.float32
    )


@triton.jit
def reciprocal(value):
    if _in_ptx(value.dtype):
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [value], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / value


@triton.jit
def log2(value):
    if _in_ptx(value.dtype):
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=r,r", [value], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(value)
