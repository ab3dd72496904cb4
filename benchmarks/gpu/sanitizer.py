"""compute-sanitizer on small shapes: every pairing, masks combined or not."""

import re
import shutil
from collections.abc import Iterator

from ._children import Ended, Row, python, run

TOOLS = ("memcheck", "racecheck")
DONE = "workload done"  # the last line of a program that came to its end
_TOOL = "compute-sanitizer"


def rows(seconds: float) -> Iterator[Row]:
    """One row for each tool."""
    program = shutil.which(_TOOL)
    if program is None:
        yield {"name": _TOOL, "passed": None, "message": f"not run: there is no {_TOOL} on PATH"}
        return
    options = ("--error-exitcode", "3", "--print-limit", "20", *python("workload", "small"))
    commands = {tool: [program, "--tool", tool, *options] for tool in TOOLS}
    # Every tensor is an allocation of its own: an access past its end is seen.
    for event in run(commands, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1"):
        if isinstance(event, Ended):
            yield verdict(event)


def verdict(ended: Ended) -> Row:
    """Passed where the tool summarised no error and the program came to its end; "not run" where
    the tool did not work here."""
    text = f"{ended.stdout}\n{ended.stderr}"
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    passed, message = None, f"exit code {ended.returncode}: {ended.tail}"
    if ended.returncode is None:
        message = "cut off: out of time"
    elif summary is None:
        message = f"not run, {message}"
    else:
        clean = re.search(r"SUMMARY: 0 (?:errors|hazards)", summary[0]) is not None
        passed = clean and DONE in text and ended.returncode == 0
        message = summary[0] if passed else f"{summary[0]}\n{message}"
    return {"name": ended.name, "passed": passed, "message": message}
