"""compute-sanitizer on small shapes: every pairing, masks combined or not."""

import re
import shutil
from collections.abc import Iterator

from ._children import Ended, Job, Row, python, run

TOOLS = ("memcheck", "racecheck")
DONE = "workload done"  # the last line of a program that came to its end
_TOOL = "compute-sanitizer"
# Every tensor is an allocation of its own: an access past its end is seen.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def rows(seconds: float) -> Iterator[Row]:
    """One row for each tool."""
    program = shutil.which(_TOOL)
    if program is None:
        yield _row(_TOOL, None, f"not run: there is no {_TOOL} on PATH")
        return
    options = ("--error-exitcode", "3", "--print-limit", "20")
    jobs = [
        Job(tool, [program, "--tool", tool, *options, *python("workload", "small")], _ENVIRONMENT)
        for tool in TOOLS
    ]
    for event in run(jobs, len(jobs), seconds):
        if isinstance(event, Ended):
            yield verdict(event)


def verdict(ended: Ended) -> Row:
    """Passed where the tool summarised no error and the program came to its end; "not run" where
    the tool did not work here."""
    name, text = ended.job.name, f"{ended.stdout}\n{ended.stderr}"
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    if ended.returncode is None:
        return _row(name, None, f"cut off after {ended.seconds:.0f} s: out of time")
    if summary is None:
        return _row(name, None, f"not run, exit code {ended.returncode}: {ended.tail}")
    clean = re.search(r"SUMMARY: 0 (?:errors|hazards)", summary[0]) is not None
    if clean and DONE in text and ended.returncode == 0:
        return _row(name, True, summary[0])
    return _row(name, False, f"exit code {ended.returncode}: {summary[0]}\n{ended.tail}")


def _row(name: str, passed: bool | None, message: str) -> Row:
    return {"name": name, "passed": passed, "message": message}
