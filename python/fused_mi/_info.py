"""What a bug report needs to say about the machine and the installation."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator

import torch

from ._version import __version__
from .ops._backends import VARIABLE, backends, forced

COMPILERS = ("c++", "nvcc", "hipcc", "ninja")
ENVIRONMENT = (
    VARIABLE,
    "FUSED_MI_CAREFUL",
    "FUSED_MI_CPU",
    "FUSED_MI_EMULATE_CUDA",
    "FUSED_MI_HUGE_PAGES",
    "FUSED_MI_AUTOTUNE",
    "FUSED_MI_CACHE_DIR",
    "TRITON_INTERPRET",
    "TRITON_CACHE_DIR",
    "THP_MEM_ALLOC_ENABLE",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
    "MALLOC_CONF",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def info() -> str:
    """Versions, devices, compilers, backends with reasons and environment variables, as text."""
    return "\n".join(f"{name:<24}{value}" for name, value in _lines())


def _lines() -> Iterator[tuple[str, str]]:
    yield "fused_mi", __version__
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda}, HIP {torch.version.hip}"
    yield "triton", _version_of("triton")
    yield "cpu", f"{_cpu()}, {torch.get_num_threads()} threads"
    yield "huge pages", _huge_pages()
    yield "allocator", _allocator()
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        yield (
            f"cuda:{i}",
            f"{p.name}, capability {p.major}.{p.minor}, {p.multi_processor_count} SMs, "
            f"{p.total_memory / 2**30:.1f} GiB",
        )
    for name in COMPILERS:
        yield name, _version_line(name)
    for backend in backends():
        yield f"backend {backend.name}", f"{_yes(backend.usable)}: {backend.reason}"
    try:
        yield "forced backend", forced() or "none"
    except ValueError as error:
        yield "forced backend", str(error)
    for name in ENVIRONMENT:
        yield name, os.environ.get(name, "not set")


def _yes(usable: bool) -> str:
    return "usable" if usable else "not usable"


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _huge_pages() -> str:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            return file.read().strip()
    except OSError:
        return "not known here"


def _allocator() -> str:
    """The library that serves `malloc` in this process."""
    try:
        with open("/proc/self/maps") as lines:
            files = {line.split()[-1] for line in lines if "/" in line}
    except OSError:
        return "not known here"
    others = ("jemalloc", "tcmalloc", "mimalloc")
    found = [file for file in files if any(name in os.path.basename(file) for name in others)]
    return ", ".join(sorted(found)) or " ".join(platform.libc_ver()) or "of the system"


def _version_line(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        return "not on PATH"
    try:
        found = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: {error}"
    lines = [line for line in found.stdout.splitlines() if any(c.isdigit() for c in line)]
    # nvcc names its release in a later line than its copyright.
    named = [line for line in lines if "release" in line] or lines or ["?"]
    return f"{path}: {named[0].strip()}"
