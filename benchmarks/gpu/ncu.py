"""Bytes that each kernel moves to and from memory, by Nsight Compute, for one forward
and one backward pass."""

import csv
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.cases import Case
from benchmarks.limits import bytes_moved

from ._children import Ended, Row, python, run

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((64, 512, 4096), (512, 128, 768))

METRICS = {
    "read": "dram__bytes_read.sum",
    "written": "dram__bytes_write.sum",
    "ns": "gpu__time_duration.sum",
    "registers": "launch__registers_per_thread",
    "active_warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
_DENIED = "ERR_NVGPUCTRPERM"


def rows(seconds: float) -> Iterator[Row]:
    """One row for each shape, in float32."""
    program = shutil.which("ncu")
    if program is None:
        yield {"name": "ncu", "message": "not run: there is no ncu on PATH"}
        return
    end = time.monotonic() + seconds
    for waiting, shape in zip(range(len(SHAPES), 0, -1), SHAPES, strict=True):
        yield _row(program, shape, (end - time.monotonic()) / waiting)


def _row(program: str, shape: Shape, seconds: float) -> Row:
    row: Row = {"name": f"{shape} float32", "shape": shape}
    options = ["--profile-from-start", "off", "--target-processes", "all"]
    options += ["--clock-control", "none", "--page", "raw", "--csv", "--print-units", "base"]
    with TemporaryDirectory() as folder:
        log = Path(folder, "log.csv")
        options += ["--log-file", str(log), "--metrics", ",".join(METRICS.values())]
        command = [program, *options, *python("workload", "profiled", *shape)]
        events = list(run({"profile": command}, seconds))
        said = log.read_text() if log.exists() else ""
    ended, kernels = events[-1], parsed(said)
    assert isinstance(ended, Ended)
    if ended.returncode != 0 or not kernels:
        why = f"exit code {ended.returncode}: {said[-1000:]}\n{ended.tail}"
        if _DENIED in why:
            why = f"no permission to read performance counters ({_DENIED})"
        return row | {"message": f"not run: {why}"}
    return row | compared(kernels, [e for e in events if not isinstance(e, Ended)], shape)


def parsed(text: str) -> list[Row]:
    """Kernels of ncu's page "raw" in CSV, in the order of their launches: names, then units, then
    one line for each launch. In bytes and ns."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if '"Kernel Name"' in line), len(lines))
    return [
        {"kernel": line["Kernel Name"], **{k: _number(line.get(m)) for k, m in METRICS.items()}}
        for line in csv.DictReader(lines[header:])
        if line["ID"]  # the line of the units has none
    ]


def compared(kernels: Sequence[Row], model: Sequence[Row], shape: Shape) -> Row:
    """Kernels, and their sums beside the floor of the traffic; where the model has the same
    launches, each beside its own."""
    read, written = (sum(kernel[key] or 0 for kernel in kernels) for key in ("read", "written"))
    floor = bytes_moved(Case("ncu", *shape))["both"]
    names = [launch["kernel"] for launch in model]
    ours = [kernel for kernel in kernels if kernel["kernel"] in names]
    if [kernel["kernel"] for kernel in ours] == names:
        for kernel, launch in zip(ours, model, strict=True):
            for key in ("read", "written"):
                if kernel[key] is not None and launch[key]:
                    kernel[f"{key}_over_model"] = kernel[key] / launch[key]
    sums = {"read": read, "written": written, "floor_bytes": floor}
    return {**sums, "over_floor": (read + written) / floor, "kernels": kernels, "model": model}


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
