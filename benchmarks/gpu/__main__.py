"""Check the project on a GPU: values, timings, traffic and memory accesses.

    make gpu [COMMIT=abc123] [OUT=folder] [ONLY=phase]

Takes no longer than nine minutes, needs PyTorch and Triton, and writes one JSON file, after each
row anew. Exit code 1 where a value is wrong or the sanitizer found an error. Without a GPU it says
so and writes nothing.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks._source_tree import ROOT

from . import _report, correctness, ncu, pairs_timings, sanitizer, timings
from ._children import Row


class Phase(NamedTuple):
    """`rows(report, seconds)` yields what it finds, for no longer than `seconds`."""

    name: str
    seconds: float
    rows: Callable[[_report.Document, float], Iterator[Row]]


PHASES = (
    Phase("correctness", 170, lambda report, seconds: correctness.rows(seconds)),
    Phase("timings", 160, lambda report, s: timings.rows(s, green=not _report.failed(report))),
    Phase("pairs", 70, lambda report, s: pairs_timings.rows(s, green=not _report.failed(report))),
    Phase("ncu", 50, lambda report, seconds: ncu.rows(seconds)),
    Phase("sanitizer", 80, lambda report, seconds: sanitizer.rows(seconds)),
)


def perform(phases: Sequence[Phase], report: _report.Document, path: Path) -> None:
    """Run the phases in their order and save each row; time that one leaves goes to the next."""
    start, end = time.monotonic(), 0.0
    for phase in phases:
        began = time.monotonic()
        end += phase.seconds
        found: dict = {"smi_before": _report.smi(), "rows": [], "seconds": 0.0}
        report["phases"][phase.name] = found
        for row in phase.rows(report, end - (began - start)):
            found["rows"].append(row)
            found["seconds"] = round(time.monotonic() - began, 1)
            _report.save(report, path)
            print(f"{phase.name}: {row['name']}", flush=True)
        found["seconds"] = round(time.monotonic() - began, 1)
        found["smi_after"] = _report.smi()
        report["seconds"] = round(time.monotonic() - start, 1)
        _report.save(report, path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    names = [phase.name for phase in PHASES]
    parser.add_argument("--only", action="append", choices=names, help="repeatable; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--commit", help="default: what git says, where it is there")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else ", and this torch is built without CUDA"
        print(f"There is no GPU that torch can use{built}: nothing is checked, nothing is written.")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: with its children
    report = _report.document(arguments.commit)
    path = _report.path_of(report, arguments.out)
    chosen = [phase for phase in PHASES if phase.name in (arguments.only or names)]
    perform(chosen, report, path)
    print(f"\n{_report.summary(report)}\n\nwritten to {path}")
    return 1 if _report.failed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
