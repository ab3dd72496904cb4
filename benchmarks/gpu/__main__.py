"""Check the project on a GPU: tests, benchmarks, traffic and memory accesses.

    make gpu [COMMIT=abc123] [OUT=folder] [ONLY=phase]

Takes no longer than nine minutes, needs PyTorch, Triton and pytest, no network, and writes each
result at once: one JSON line for each row, and the records of the benchmarks in a file beside it.
Exit code 1 where something is wrong, 2 where there is no GPU.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import machine
from benchmarks._source_tree import ROOT

from . import ncu, sanitizer, suite, tests
from ._children import Row


class Phase(NamedTuple):
    """`rows(seconds, records)` yields what it finds, for no longer than `seconds`; `records` is the
    file of the benchmarks."""

    name: str
    seconds: float
    rows: Callable[[float, Path], Iterator[Row]]


PHASES = (  # the most wanted first
    Phase("tests", 185, lambda seconds, records: tests.rows(seconds)),
    Phase("cuda", 35, lambda seconds, records: tests.rows_of_cuda(seconds)),
    Phase("alone", 60, lambda seconds, records: suite.rows(seconds, records, alone=True)),
    Phase("suite", 130, suite.rows),
    Phase("ncu", 50, lambda seconds, records: ncu.rows(seconds)),
    Phase("sanitizer", 70, lambda seconds, records: sanitizer.rows(seconds)),
)
_SMI = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,temperature.gpu"


def perform(phases: Sequence[Phase], path: Path) -> list[Row]:
    """Run the phases in their order and append each row; time that one leaves goes to the next."""
    start, end = time.monotonic(), 0.0
    found: list[Row] = []
    for phase in phases:
        end += phase.seconds
        before = smi()
        for row in phase.rows(end - (time.monotonic() - start), path.with_suffix(".records.jsonl")):
            if "met" in row and any(r.get("passed") is False for r in found):
                row = {"name": row["name"], "message": "withheld: a check failed"}
            found.append({"phase": phase.name, **row})
            append(found[-1], path)
            show(found[-1])
        took = round(time.monotonic() - start)
        append({"phase": phase.name, "smi": [before, smi()], "until": took}, path)
        print(f"{phase.name}: done after {took} s in all", flush=True)
    return found


def append(row: Row, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def show(row: Row) -> None:
    """In the terminal: whatever is not simply right."""
    if "met" in row:
        print(f"{row['phase']}: {'met' if row['met'] else 'MISSED'}: {row['name']}")
    elif row.get("passed") is not True:
        said = "FAILED " if row.get("passed") is False else ""
        print(f"{row['phase']}: {said}{row['name']}: {row.get('message', row)}", flush=True)


def smi(fields: str = _SMI) -> str | None:
    """What nvidia-smi says of the first device, None where it is missing or fails."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # in good order: with its children
    about = machine.describe("cuda", arguments.commit)
    about["properties"] = str(torch.cuda.get_device_properties(0))
    about["driver"] = smi("driver_version")
    said = f"gpu {about['device']} {about['started'].split('+')[0]} {about['commit']}".lower()
    path = arguments.out.resolve() / (re.sub(r"[^\w.]+", "-", said) + ".jsonl")
    append(about, path)
    found = perform([p for p in PHASES if p.name in (arguments.only or names)], path)
    failed = [row for row in found if row.get("passed") is False]
    passed = sum(row.get("passed") is True for row in found)
    print(f"{passed} passed, {len(failed)} failed; written to {path}")
    for row in failed:
        print(f"FAILED {row['phase']}: {row['name']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
