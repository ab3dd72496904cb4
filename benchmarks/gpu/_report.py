"""What is kept of a run, and what is printed of it."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fused_mi
import torch

from benchmarks._source_tree import ROOT

from ._children import Row
from .timings import OURS, TUNED

Document = dict[str, Any]
_SMI = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def document(commit: str | None) -> Document:
    """The head of a report: what was checked, on what."""
    p = torch.cuda.get_device_properties(0)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "commit": commit or _commit(),
        "started": now.isoformat(timespec="seconds"),
        "device": {
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "l2_bytes": getattr(p, "L2_cache_size", None),
            "driver": smi("driver_version"),
        },
        "versions": {
            "fused_mi": fused_mi.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": _version_of("triton"),
        },
        "backends": [backend._asdict() for backend in fused_mi.backends()],
        "phases": {},
    }


def smi(fields: str = _SMI) -> str | None:
    """What nvidia-smi says of the first device, None where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
    return _output(command)


def path_of(report: Document, folder: Path) -> Path:
    """Its name says on what, when and for which commit."""
    device = re.sub(r"[^a-z0-9]+", "-", report["device"]["name"].lower()).strip("-")
    when = re.sub(r"[-:]|\+.*", "", report["started"])
    commit = re.sub(r"[^\w.-]", "_", report["commit"])
    return folder / f"gpu-{device}-{when}-{commit}.json"


def save(report: Document, path: Path) -> None:
    """In one step: a run that is cut off leaves a complete file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: their names."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def failed(report: Document) -> list[Row]:
    """Rows of checks that found something wrong; what was not run has found nothing."""
    rows = (row for phase in report["phases"].values() for row in phase["rows"])
    return [row for row in rows if row.get("passed") is False]


def summary(report: Document) -> str:
    """For the terminal."""
    lines = [f"{report['device']['name']}, commit {report['commit']}, {report['versions']}"]
    show = {
        "correctness": _correctness,
        "timings": _timings,
        "pairs": _pairs,
        "ncu": _ncu,
        "sanitizer": _sanitizer,
    }
    for name, phase in report["phases"].items():
        lines += ["", f"{name}: {phase['seconds']:.0f} s", *show[name](phase["rows"])]
    for row in failed(report):
        lines += ["", f"FAILED {row['name']}: {_said(row)}"]
    return "\n".join(lines)


def table(lines: Sequence[Sequence[object]]) -> list[str]:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _correctness(rows: Sequence[Row]) -> Iterator[str]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["name"].split(":")[0], []).append(row)
    lines = [["group", "passed", "failed", "not run", "largest error / bound"]]
    for name, of_group in groups.items():
        counts = [sum(row["passed"] is verdict for row in of_group) for verdict in _VERDICTS]
        shares = [row["error"] / row["bound"] for row in of_group if row["bound"]]
        lines.append([name, *counts, f"{max(shares):.2f}" if shares else None])
    yield from table(lines)
    yield from (f"{row['name']}: {_said(row)}" for row in rows if row["passed"] is None)


def _timings(rows: Sequence[Row]) -> Iterator[str]:
    head = "forward ms,backward ms,both ms,host ms,GB/s,of copy,x floor,extra MiB,x as fast"
    for row in rows:
        yield ""
        copy = row.get("copy", {}).get("GB/s")
        yield f"{row['name']}" + (f": copy {copy:.0f} GB/s" if copy else "") + _said(row, ": ")
        lines = [["", *head.split(",")]]
        for name, found in row.get("contestants", {}).items():
            if "ms" not in found:
                yield f"{name}: {found.get('message') or 'wrong: ' + str(found['errors'])}"
                continue
            lines.append([name, *_cells(name, found, row.get("speedups"))])
        if len(lines) > 1:
            yield from table(lines)
        yield from _targets_and_kernels(row)


def _pairs(rows: Sequence[Row]) -> Iterator[str]:
    head = "forward ms,backward ms,both ms,host ms,x floor,of FP32 peak,extra MiB,x as fast"
    for row in rows:
        peak = f": FP32 peak {row['peak']['TFLOP/s']:.1f} TFLOP/s" if "peak" in row else ""
        yield f"{row['name']}{peak}" + _said(row, ": ")
        lines = [["", *head.split(",")]]
        for name, found in row.get("contestants", {}).items():
            if "ms" not in found:
                yield f"{name}: {found.get('message') or 'wrong: ' + str(found['errors'])}"
                continue
            ms, faster = found["ms"], row.get("speedups")
            cells = [f"{ms[q]['median']:.3f}" for q in ("forward", "backward", "both", "host")]
            cells += [f"{found['over_floor']:.2f}", f"{found['of_peak']:.0%}"]
            extra = found.get("extra_bytes")
            cells.append("" if extra is None else f"{extra / 2**20:.1f}")
            faster = faster.get(name) if isinstance(faster, dict) else None
            lines.append([name, *cells, "" if faster is None else f"{faster:.2f}"])
        yield from table(lines) if len(lines) > 1 else ()
        yield from _targets_and_kernels(row)


def _targets_and_kernels(row: Row) -> Iterator[str]:
    yield from (f"{'met' if met else 'MISSED'}: {t}" for t, met in row.get("targets", {}).items())
    if isinstance(row.get("speedups"), str):
        yield f"speed-ups {row['speedups']}"
    kernels = row.get("kernels", [])
    if isinstance(kernels, str):
        yield f"kernels {kernels}"
    elif kernels:
        lines = [[k["kernel"][:60], f"{k['us']:.1f}", f"{k['launches']:g}"] for k in kernels]
        yield from table([["kernel", "us", "launches"], *lines])


def _cells(name: str, found: Row, speedups: object) -> list[str | None]:
    ms = found["ms"]
    cells: list[str | None] = [
        f"{ms[quantity]['median']:.3f}" for quantity in ("forward", "backward", "both", "host")
    ]
    both = ms["both"]
    if name in (OURS, TUNED):
        cells += [f"{both['GB/s']:.0f}", f"{both['of_copy']:.0%}", f"{both['over_floor']:.2f}"]
    else:
        cells += [None] * 3
    extra = found.get("extra_bytes")
    cells.append(None if extra is None else f"{extra / 2**20:.1f}")
    faster = speedups.get(name) if isinstance(speedups, dict) else None
    return [*cells, None if faster is None else f"{faster:.2f}"]


def _ncu(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        over = f": {row['over_floor']:.2f} x the floor" if "over_floor" in row else ""
        yield f"{row['name']}{over}" + _said(row, ": ")
        lines = [["kernel", "read MB", "written MB", "us", "registers", "active warps %"]]
        for k in row.get("kernels", []):
            scaled = (
                _scaled(k[key], by) for key, by in (("read", 1e6), ("written", 1e6), ("ns", 1e3))
            )
            lines.append([k["kernel"][:60], *scaled, k["registers"], k["active_warps_percent"]])
        if len(lines) > 1:
            yield from table(lines)


def _sanitizer(rows: Sequence[Row]) -> Iterator[str]:
    names = dict(zip(_VERDICTS, ("passed", "FAILED", ""), strict=True))
    return (f"{row['name']}: {names[row['passed']]}" + _said(row, " ") for row in rows)


_VERDICTS = (True, False, None)


def _said(row: Row, before: str = "") -> str:
    parts = [str(row["message"])] if row.get("message") else []
    if row.get("error") is not None and row.get("passed") is False:
        parts.append(f"error {row['error']:.3e}, bound {row['bound']:.3e}")
    return before + ", ".join(parts) if parts else ""


def _scaled(value: float | None, by: float) -> str | None:
    return None if value is None else f"{value / by:.2f}"


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    if not (ROOT / ".git").exists():  # else git finds a repository around this tree
        return "unknown"
    head = _output(["git", "rev-parse", "--short=12", "HEAD"])
    if head is None:
        return "unknown"
    return f"{head}-changed" if _output(["git", "status", "--porcelain", "-uno"]) else head


def _output(command: Sequence[str]) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
