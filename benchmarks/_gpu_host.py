"""What Python takes to launch the Triton kernels, without a GPU: CPU tensors go the way of CUDA
tensors, through Triton's own binder, to a launcher and a driver that do nothing.

No kernel runs, so the results are wrong. The operators of torch run on the CPU: their time is in
the figures, but not the launches that they would be on a GPU, which are counted.
"""

import importlib
import os
import statistics
import time
from types import SimpleNamespace
from typing import Any

import fused_mi
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHAPE = (8, 4, 256)
MULTIPROCESSORS = 132  # of an H100
BLOCK = 5  # calls
# Operators of torch that launch nothing.
_VIEWS = "alias as_strided detach expand lift_fresh permute result_type select slice split squeeze"
_VIEWS += " t to transpose unbind unsqueeze view _reshape_alias _unsafe_view reshape narrow"
_NO_LAUNCH = {f"aten::{name}" for name in f"{_VIEWS} empty empty_like empty_strided".split()}
_launched: list[None] = []


def rows(rounds):
    """For each estimator and pairing: us of the host, kernels, operators of torch."""
    _stub()
    print(f"{'x'.join(map(str, SHAPE))}, float32, one thread; medians, then the least of them all")
    for estimator in ("jensen", "logsumexp"):
        for pairing in ("sub_batch", "symmetric", "leave_one_out"):
            row = _row(estimator, pairing, rounds)
            print(
                f"{estimator:10}{pairing:14} forward {row['forward_us']:5.0f} us, forward + "
                f"backward {row['both_us']:5.0f} us (least {row['least_us']:.0f}); "
                f"{row['kernels']} kernels, {row['operators']} operators of torch",
                flush=True,
            )
            yield row


def _row(estimator, pairing, rounds):
    leaves = [torch.ones(SHAPE).requires_grad_() for _ in range(4)]
    mu, stds, x, y = leaves
    mask = torch.ones(SHAPE[:2], dtype=torch.bool)

    def forward():
        return fused_mi.mutual_information_sub_batch(
            mu, stds, mask, x, y, estimator=estimator, pairing=pairing
        )

    def both():
        return torch.autograd.grad(forward(), leaves)

    with fused_mi.use_backend("triton"):
        both()  # everything is imported and "compiled"
        _launched.clear()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            both()
        kernels = len(_launched)
        assert kernels, "the call did not reach the kernels"
        of_forward, of_both = (_times(function, rounds) for function in (forward, both))
    leaf_events = [e for e in found.events() if not e.cpu_children]
    operators = sum(
        e.name.startswith("aten::") and e.name not in _NO_LAUNCH and e.device_type == DeviceType.CPU
        for e in leaf_events
    )
    return {
        "estimator": estimator,
        "pairing": pairing,
        "forward_us": statistics.median(of_forward),
        "both_us": statistics.median(of_both),
        "least_us": min(of_both),
        "kernels": kernels,
        "operators": operators,
    }


def _times(function, rounds):
    """us of process time, of each block of calls."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(BLOCK):
            function()
        found.append(1e6 * (time.process_time() - start) / BLOCK)
    return found


def _stub():
    """Triton serves CPU tensors; what it compiles, launches, and asks the driver, is nothing."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says when it starts
    choice: Any = importlib.import_module("fused_mi.ops._triton")
    choice.serves = lambda operator, device: (True, "stub")
    configs: Any = importlib.import_module("fused_mi.triton_kernels._configs")
    configs._warps = lambda device: 4
    configs._programs = lambda device: 4 * MULTIPROCESSORS
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )

    def launch(*arguments):
        _launched.append(None)

    kernel = SimpleNamespace(
        run=launch, function=0, packed_metadata=0, launch_metadata=lambda *arguments: None
    )

    def compiled(self, key, signature, device, *others):
        self.device_caches[device][0][key] = kernel
        return kernel

    JITFunction._do_compile = compiled
