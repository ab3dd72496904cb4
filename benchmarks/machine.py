"""The machine of a run: what it is, and how fast it copies and multiplies."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._source_tree import ROOT
from .measure import last_level_cache


class Yardstick(NamedTuple):
    run: Callable[[], object]
    amount: float  # bytes or operations


def yardsticks(device: str) -> dict[str, Yardstick]:
    """A copy much larger than any cache, bytes read and written; a product of float32 matrices; on
    a GPU, multiply-adds in registers."""
    cuda = device == "cuda"
    source, target = torch.rand(
        (2, 1 << 28 if cuda else last_level_cache(device) // 2), device=device
    )
    n = 4096 if cuda else 768
    a, b, c = torch.rand((3, n, n), device=device)
    found = {
        "copy": Yardstick(lambda: target.copy_(source), 2 * source.nbytes),
        "gemm": Yardstick(lambda: torch.mm(a, b, out=c), 2 * n**3),
    }
    if cuda:
        from ._fma import peak

        found["fma"] = Yardstick(*peak())
    return found


def describe(device: str, commit: str | None, tree: Path = ROOT) -> dict[str, Any]:
    """Of every record."""
    import fused_mi

    now = datetime.datetime.now(datetime.timezone.utc)
    packages = ("triton", "numpy", "scipy", "pykeops", "transformers")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "fused_mi": fused_mi.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            **{name: _version(name) for name in packages},
        },
        "backends": {b.name: b.reason for b in fused_mi.backends()},
        "commit": commit or _commit(tree),
        "started": now.isoformat(timespec="seconds"),
    }


def available_memory(device: str) -> float:
    """Bytes that can be had now; infinite where nobody says."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return float("inf")
    return next(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable")
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(tree: Path) -> str:
    if not (tree / ".git").exists():  # else git finds a repository around this tree
        return "unknown"
    # "changed" where any file that git knows is not as in that commit.
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=-changed"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=tree)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip() or "unknown"
