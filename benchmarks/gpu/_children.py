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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks._source_tree import ROOT

_MARK = "row: "
_TAIL = 4000  # characters of a child's output that are worth keeping

Row = dict[str, Any]


class Ended(NamedTuple):
    """How a command ended: `returncode` None where its time was up."""

    name: str
    returncode: int | None
    stdout: str
    stderr: str

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


def run(
    commands: Mapping[str, Sequence[str]], seconds: float, **environment: str
) -> Iterator[Row | Ended]:
    """Run all commands at once, for no longer than `seconds`; yields each row as it comes, and how
    each command ended."""
    deadline = time.monotonic() + seconds
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = []
        for name, command in commands.items():
            running.append(_Child(name, command, Path(folder, name), environment))
            stack.callback(running[-1].kill)
        while running:
            time.sleep(0.1)
            late = time.monotonic() > deadline
            for child in list(running):
                code = child.process.poll()
                if late or code is not None:
                    child.kill()
                    running.remove(child)
                yield from child.new_rows()
                if child not in running:
                    yield child.ended(code)


class _Child:
    def __init__(
        self, name: str, command: Sequence[str], stem: Path, environment: Mapping[str, str]
    ) -> None:
        self.name, self.rows = name, 0  # handed on
        self.stdout, self.stderr = stem.with_suffix(".out"), stem.with_suffix(".err")
        with self.stdout.open("wb") as stdout, self.stderr.open("wb") as stderr:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
            env = {**os.environ, **environment}
            self.process = subprocess.Popen(
                command, **streams, cwd=ROOT, env=env, start_new_session=True
            )

    def kill(self) -> None:
        """It and the processes that it started, compilers for example."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def new_rows(self) -> Iterator[Row]:
        rows = [line for line in self._lines() if line.startswith(_MARK) and line.endswith("\n")]
        for line in rows[self.rows :]:
            yield json.loads(line.removeprefix(_MARK))
        self.rows = len(rows)

    def ended(self, code: int | None) -> Ended:
        stdout = "".join(line for line in self._lines() if not line.startswith(_MARK))
        return Ended(self.name, code, stdout, self.stderr.read_text(errors="replace"))

    def _lines(self) -> list[str]:
        return self.stdout.read_text(errors="replace").splitlines(keepends=True)
