"""Phase "correctness": groups of checks, each group in a process of its own."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Iterator

import torch

from . import modes, pairs_values, values
from ._children import Ended, Job, Row, emit, python, run
from .values import Check

GROUPS = {group.__name__: group for group in (*values.GROUPS, *pairs_values.GROUPS, *modes.GROUPS)}
_ON_CPU = 256  # elements that an interpreter computes in a time that one waits for


def rows(seconds: float) -> Iterator[Row]:
    """Run every group, for no longer than `seconds` in all; one row for each check."""
    at_once = max(2, min(8, (os.cpu_count() or 2) // 2))
    environment = {"OMP_NUM_THREADS": "4"}
    # The longest ones first.
    order = (
        "large",
        "pairs_large",
        "logsumexp",
        "dtypes",
        "sizes",
        "compiled",
        "layouts",
        "pairings",
    )
    names = sorted(GROUPS, key=lambda name: order.index(name) if name in order else len(order))
    jobs = [Job(name, python("correctness", name), environment) for name in names]
    for event in run(jobs, at_once, seconds):
        if not isinstance(event, Ended):
            yield event[1]
        elif event.returncode is None:
            message = f"cut off after {event.seconds:.0f} s: out of time"
            yield _row(f"{event.job.name}: the rest", None, message=message)
        elif event.returncode:
            message = f"exit code {event.returncode}: {event.tail}"
            yield _row(f"{event.job.name}: the rest", False, message=message)


def run_check(check: Check, group: str) -> Row:
    """Run one check, whatever it raises."""
    name, start = f"{group}: {check.name}", time.perf_counter()
    try:
        outcome = check.function()
    except torch.OutOfMemoryError as error:
        row = _row(name, None, message=f"not run: {str(error).splitlines()[0]}")
    except Exception as error:  # a check that raises has failed, the others go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
        row = _row(name, False, message=text[:2000])
    else:
        row = _row(name, True)
        if outcome is not None:
            row = _row(name, outcome.passed, outcome.error, outcome.bound, outcome.what)
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row


def run_group(name: str, device: str, largest: int | None = None) -> Iterator[Row]:
    """The checks of one group, in this process; without those of more than `largest` elements."""
    for check in GROUPS[name](device):
        if largest is None or check.elements <= largest:
            yield run_check(check, name)
            if device == "cuda":
                torch.cuda.empty_cache()


def _row(
    name: str,
    passed: bool | None,
    error: float | None = None,
    bound: float | None = None,
    message: str = "",
) -> Row:
    return {"name": name, "passed": passed, "error": error, "bound": bound, "message": message}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    largest = None if arguments.device == "cuda" else _ON_CPU
    for row in run_group(arguments.group, arguments.device, largest):
        emit(row)


if __name__ == "__main__":
    sys.exit(main())
