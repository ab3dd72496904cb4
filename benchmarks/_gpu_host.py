"""The way to the Triton kernels without a GPU, for `host`: CPU tensors go the way of CUDA tensors,
through Triton's own binder, to a launcher and a driver that do nothing.

No kernel runs, so the results are wrong. The operators of torch run on the CPU: their time is in
the figures, but not the launches that they would be on a GPU, which are counted.
"""

import importlib
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch.profiler import ProfilerActivity, profile
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHAPE = (8, 4, 256)
MULTIPROCESSORS = 132  # of an H100
# Operators of torch that launch nothing.
_VIEWS = "alias as_strided detach expand lift_fresh permute result_type select slice split squeeze"
_VIEWS += " t to transpose unbind unsqueeze view _reshape_alias _unsafe_view reshape narrow"
_NO_LAUNCH = {f"aten::{name}" for name in f"{_VIEWS} empty empty_like empty_strided".split()}
_kernels: list[None] = []


def launched(call: Callable[[], object]) -> str:
    _kernels.clear()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    assert _kernels, "the call did not reach the kernels"
    leaves = [event.name for event in found.events() if not event.cpu_children]
    operators = sum(name.startswith("aten::") and name not in _NO_LAUNCH for name in leaves)
    return f"{len(_kernels)} kernels, {operators} operators"


def stub() -> None:
    """Triton serves CPU tensors; what it compiles, launches, and asks the driver, is nothing."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says when it starts
    os.environ["FUSED_MI_BACKEND"] = "triton"
    choice: Any = importlib.import_module("fused_mi.ops._triton")
    choice.serves = lambda operator, device: (True, "stub")
    configs: Any = importlib.import_module("fused_mi.triton_kernels._configs")
    configs._warps = lambda device: 4
    configs._programs = lambda device: 4 * MULTIPROCESSORS
    answers = {"target": GPUTarget("cuda", 90, 32), "device": 0, "stream": 0}
    driver.set_active(
        SimpleNamespace(**{f"get_current_{k}": lambda *_, v=v: v for k, v in answers.items()})
    )
    kernel = SimpleNamespace(
        run=lambda *_: _kernels.append(None),
        function=0,
        packed_metadata=0,
        launch_metadata=lambda *_: None,
    )

    def compiled(self, key, signature, device, *others):
        self.device_caches[device][0][key] = kernel
        return kernel

    JITFunction._do_compile = compiled
