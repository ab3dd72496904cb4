"""Bytes that each kernel moves to and from memory, by Nsight Compute, for one forward
and one backward pass."""

import csv
import io
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.cases import Case
from benchmarks.limits import bytes_moved

from ._children import Ended, Job, Row, python, run

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
        yield _row(program, shape, start + seconds * n / len(SHAPES))


def _row(program: str, shape: Shape, deadline: float) -> Row:
    row: Row = {"name": f"{shape} float32", "shape": shape}
    with TemporaryDirectory() as folder:
        report = str(Path(folder, "report.ncu-rep"))
        options = ["--metrics", ",".join(METRICS.values()), "--profile-from-start", "off"]
        options += ["--target-processes", "all", "--clock-control", "none", "-f", "-o", report]
        profile = [program, *options, *python("workload", "profiled", *shape)]
        collected, _ = _finished("profile", profile, deadline)
        if collected.returncode != 0 or not Path(report).exists():
            denied = _DENIED in f"{collected.stdout}{collected.stderr}"
            row["message"] = "not run: " + (
                f"no permission to read performance counters ({_DENIED})"
                if denied
                else f"exit code {collected.returncode}: {collected.tail}"
            )
            return row
        show = [program, "--import", report, "--page", "raw", "--csv", "--print-units", "base"]
        shown, _ = _finished("show", show, deadline)
    row["kernels"] = kernels = parsed(shown.stdout)
    if not kernels:
        row["message"] = f"nothing in the report: {shown.tail}"
        return row
    modelled, model = _finished("traffic", python("workload", "traffic", *shape), deadline)
    if modelled.returncode != 0:
        row["message"] = f"no model of the traffic: {modelled.tail[-500:]}"
        model = []
    return row | compared(kernels, model, shape)


def parsed(text: str) -> list[dict[str, Any]]:
    """Kernels of ncu's page "raw" in CSV, in the order of their launches: names, then units, then
    one line for each launch. In bytes and ns."""
    lines = text.splitlines()
    header = next((i for i, line in enumerate(lines) if '"Kernel Name"' in line), None)
    if header is None:
        return []
    table = csv.DictReader(io.StringIO("\n".join(lines[header:])))
    return [
        {"kernel": line["Kernel Name"], **{k: _number(line.get(m)) for k, m in METRICS.items()}}
        for line in table
        if line["ID"]  # the line of the units has none
    ]


def compared(
    kernels: Sequence[Mapping[str, Any]], model: Sequence[Mapping[str, Any]], shape: Shape
) -> Row:
    """Sums beside the floor of the traffic, and beside the model where there is one."""
    read, written = (sum(kernel[key] or 0 for kernel in kernels) for key in ("read", "written"))
    floor = bytes_moved(Case("ncu", *shape))["both"]
    row = {"read": read, "written": written, "floor_bytes": floor}
    row["over_floor"] = (read + written) / floor
    if not model:
        return row
    ours = [kernel for kernel in kernels if kernel["kernel"] in {m["kernel"] for m in model}]
    row["model"] = {key: sum(m[key] for m in model) for key in ("read", "written")}
    if [kernel["kernel"] for kernel in ours] == [m["kernel"] for m in model]:
        row["by_launch"] = [
            {
                "kernel": kernel["kernel"],
                **{f"{key}_over_model": _over(kernel[key], m[key]) for key in ("read", "written")},
            }
            for kernel, m in zip(ours, model, strict=True)
        ]
    return row


def _finished(name: str, command: Sequence[str], deadline: float) -> tuple[Ended, list[Row]]:
    events = list(run([Job(name, command)], 1, max(deadline - time.monotonic(), 0)))
    (ended,) = (event for event in events if isinstance(event, Ended))
    return ended, [event[1] for event in events if not isinstance(event, Ended)]


def _over(measured: float | None, modelled: float) -> float | None:
    return None if measured is None or not modelled else measured / modelled


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None
