"""The tests of the project on the GPU: every result at once, and the names of those cut off."""

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import fused_mi

from ._children import Ended, Row, run

# The most wanted first: what only a GPU shows, then values, gradients and modes.
FILES = (
    "gpu large sizes mutual_information leave_one_out masks extremes strides modes entropy terms "
    "blocks_of_pairs mahalanobis std_losses laws constant one_position fixed_eps token_information "
    "online component_weights reduction_none parts ranks/ranks_one club batch_bounds "
    "kolchinsky_tracey"
)
_PROCESSES = 14  # compiling kernels takes most of the time


def files() -> list[str]:
    parts = [name.rpartition("/") for name in FILES.split()]
    return [f"tests/{folder}{slash}test_{name}.py" for folder, slash, name in parts]


def _command(*chosen: str) -> list[str]:
    """Of pytest, with the options `chosen`; with several processes where xdist is installed, and no
    other plugin of the machine: one that warns would fail every test."""
    options = ["-p", "benchmarks.gpu.log", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
    if importlib.util.find_spec("xdist"):
        # A worker that dies takes one test along: the others go to a new one.
        processes = min(_PROCESSES, max(2, (os.cpu_count() or 2) - 2))
        options += ["-p", "xdist.plugin", "-n", str(processes)]
    return [sys.executable, "-m", "pytest", *options, *chosen, *files()]


def rows_of_cuda(seconds: float) -> Iterator[Row]:
    """Of the public functions on the backend `cuda`, where its library is."""
    (backend,) = (b for b in fused_mi.backends() if b.name == "cuda")
    if not backend.usable:
        yield {"name": "backend cuda", "passed": None, "message": f"not checked: {backend.reason}"}
        return
    command = _command("-m", "every_backend")
    for row in rows(seconds, command, FUSED_MI_BACKEND="cuda"):
        yield {**row, "name": f"cuda: {row['name']}"}


def rows(seconds: float, command: Sequence[str] | None = None, **variables: str) -> Iterator[Row]:
    """A row for each test, and one for those of each file that never ran."""
    waiting: list[str] = []
    commands = {"pytest": command or _command()}
    settings = {"OMP_NUM_THREADS": "2", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}
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
