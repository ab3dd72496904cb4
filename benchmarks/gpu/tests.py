"""The tests of the project on the GPU: every result at once, and the names of those cut off."""

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from ._children import Ended, Row, run

# The most wanted first: what only a GPU shows, then values, gradients and modes.
FILES = (
    "gpu large sizes mutual_information leave_one_out masks extremes strides modes entropy terms "
    "blocks_of_pairs mahalanobis std_losses laws constant one_position fixed_eps token_information "
    "component_weights reduction_none"
)
_PROCESSES = 14  # compiling kernels takes most of the time


def files() -> list[str]:
    return [f"tests/test_{name}.py" for name in FILES.split()]


def _command() -> list[str]:
    """Of pytest; with several processes where xdist is installed, and no other plugin of the
    machine: one that warns would fail every test."""
    options = ["-p", "benchmarks.gpu.log", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
    if importlib.util.find_spec("xdist"):
        # A worker that dies takes one test along: the others go to a new one.
        processes = min(_PROCESSES, max(2, (os.cpu_count() or 2) - 2))
        options += ["-p", "xdist.plugin", "-n", str(processes)]
    return [sys.executable, "-m", "pytest", *options, *files()]


def rows(seconds: float, command: Sequence[str] | None = None) -> Iterator[Row]:
    """A row for each test, and one for those of each file that never ran."""
    waiting: list[str] = []
    commands = {"pytest": command or _command()}
    settings = {"OMP_NUM_THREADS": "2", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for event in run(commands, seconds, PYTHONUNBUFFERED="1", **settings):
        if not isinstance(event, Ended):
            if "collected" in event:
                waiting = event["collected"]
            else:
                waiting = [name for name in waiting if name != event["name"]]
                yield event
            continue
        for function, count in Counter(name.split("[")[0] for name in waiting).items():
            yield {"name": function, "passed": None, "message": f"{count} never ran: out of time"}
        if event.returncode not in (0, 1, None):  # 1: tests failed, which have rows of their own
            message = f"exit code {event.returncode}: {event.tail}"
            yield {"name": "pytest", "passed": False, "message": message}
