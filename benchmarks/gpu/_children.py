"""Child processes: an illegal access on the device ends one of them and not the run.

A child prints what it found as lines of JSON, as soon as it has it; a child that is cut off keeps
what it printed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._source_tree import ROOT

_MARK = "row: "
_TAIL = 4000  # characters of a child's output that are worth keeping

Row = dict[str, Any]


class Job(NamedTuple):
    """A command, and variables added to its environment."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = {}


class Ended(NamedTuple):
    """How a job ended: `returncode` None where its time was up, or where it never started."""

    job: Job
    returncode: int | None
    stdout: str
    stderr: str
    seconds: float

    @property
    def tail(self) -> str:
        """The end of what it said, errors last."""
        return f"{self.stdout[-_TAIL:]}\n{self.stderr[-_TAIL:]}".strip()


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of this folder."""
    return [sys.executable, "-m", f"benchmarks.gpu.{module}", *map(str, arguments)]


def emit(row: Row) -> None:
    """In a child: hand a row to the parent, on a line of its own whatever was printed before."""
    print(f"\n{_MARK}{json.dumps(row)}", flush=True)


def run(jobs: Sequence[Job], at_once: int, seconds: float) -> Iterator[tuple[Job, Row] | Ended]:
    """Run `jobs`, `at_once` of them at a time, for no longer than `seconds` in all; yields each row
    as it comes, and how each job ended."""
    deadline = time.monotonic() + seconds
    waiting = list(jobs)
    running: list[_Child] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                late = time.monotonic() > deadline
                while waiting and len(running) < at_once and not late:
                    job = waiting.pop(0)
                    running.append(_Child(job, Path(folder) / str(len(waiting))))
                for child in list(running):
                    finished = child.process.poll() is not None
                    if finished or late:
                        child.kill()
                        running.remove(child)
                    yield from ((child.job, row) for row in child.new_rows())
                    if finished or late:
                        yield child.ended(cut_off=not finished)
                if late:
                    yield from (Ended(job, None, "", "", 0.0) for job in waiting)
                    return
                time.sleep(0.1)
        finally:
            for child in running:
                child.kill()


class _Child:
    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.start = job, time.monotonic()
        folder.mkdir()
        self.files = folder / "stdout", folder / "stderr"
        self.read = 0
        with open(self.files[0], "wb") as stdout, open(self.files[1], "wb") as stderr:
            self.process = subprocess.Popen(
                job.command,
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, **job.environment},
                start_new_session=True,
            )

    def new_rows(self) -> list[Row]:
        text = self._text(0)[self.read :]
        complete = text[: text.rfind("\n") + 1]
        self.read += len(complete)
        lines = complete.splitlines()
        return [json.loads(line[len(_MARK) :]) for line in lines if line.startswith(_MARK)]

    def kill(self) -> None:
        """It and the processes that it started, compilers for example."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ended(self, cut_off: bool) -> Ended:
        lines = self._text(0).splitlines(keepends=True)
        stdout = "".join(line for line in lines if not line.startswith(_MARK))
        code = None if cut_off else self.process.returncode
        return Ended(self.job, code, stdout, self._text(1), time.monotonic() - self.start)

    def _text(self, which: int) -> str:
        return self.files[which].read_bytes().decode(errors="replace")
