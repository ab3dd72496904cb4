"""Bytes that each kernel moves to and from memory, by Nsight Compute, for one forward
and one backward pass."""

import csv
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
    start = time.monotonic()
    for n, shape in enumerate(SHAPES, 1):
        end = start + seconds * n / len(SHAPES)
        yield _row(program, shape, end - time.monotonic())


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
    model = [event for event in events if not isinstance(event, Ended)]
    return row | {"kernels": kernels} | compared(kernels, model, shape)


def parsed(text: str) -> list[dict[str, Any]]:
    """Kernels of ncu's page "raw" in CSV, in the order of their launches: names, then units, then
    one line for each launch. In bytes and ns."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if '"Kernel Name"' in line), len(lines))
    return [
        {"kernel": line["Kernel Name"], **{k: _number(line.get(m)) for k, m in METRICS.items()}}
        for line in csv.DictReader(lines[header:])
        if line["ID"]  # the line of the units has none
    ]


def compared(
    kernels: Sequence[Mapping[str, Any]], model: Sequence[Mapping[str, Any]], shape: Shape
) -> Row:
    """Sums beside the floor of the traffic; each launch beside the kernels' own model."""
    read, written = (sum(kernel[key] or 0 for kernel in kernels) for key in ("read", "written"))
    floor = bytes_moved(Case("ncu", *shape))["both"]
    row = {"read": read, "written": written, "floor_bytes": floor}
    row["over_floor"] = (read + written) / floor
    names = [m["kernel"] for m in model]
    ours = [kernel for kernel in kernels if kernel["kernel"] in names]
    row["model"] = {key: sum(m[key] for m in model) for key in ("read", "written")}
    if [kernel["kernel"] for kernel in ours] == names:
        row["by_launch"] = [
            {
                "kernel": m["kernel"],
                "read_over_model": _over(kernel["read"], m["read"]),
                "written_over_model": _over(kernel["written"], m["written"]),
            }
            for kernel, m in zip(ours, model, strict=True)
        ]
    return row


def _over(measured: float | None, modelled: float) -> float | None:
    return None if measured is None or not modelled else measured / modelled


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
