"""Records of a commit: its package, built in a worktree, measured by this tree's code."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from . import records
from ._source_tree import ROOT
from .records import NoRecords, Record


def measured(
    commits: Sequence[str], rounds: int, options: Sequence[str]
) -> tuple[list[Record], list[Record]]:
    """Of two commits, which take turns.

    Args:
        options: of `python -m benchmarks run`.

    Raises:
        NoRecords: git does not know one of them, or it cannot be measured.
    """
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trees = [
            stack.enter_context(_worktree(c, Path(folder, f"tree{i}")))
            for i, c in enumerate(commits)
        ]
        files = [Path(folder, f"{i}.jsonl") for i in range(len(trees))]
        for turn in range(rounds):
            for i in (0, 1) if turn % 2 == 0 else (1, 0):
                command = [sys.executable, "-m", "benchmarks", "run", *options, "--without-peers"]
                command += ["--tree", str(trees[i]), "--out", str(files[i])]
                # 1: a result was wrong, which stands in the records and is judged later.
                if subprocess.run(command, cwd=ROOT).returncode not in (0, 1):
                    raise NoRecords(f"{commits[i]}: it cannot be measured, see above")
        return records.read(files[0]), records.read(files[1])


@contextlib.contextmanager
def _worktree(commit: str, folder: Path) -> Iterator[Path]:
    added = _git("worktree", "add", "--detach", str(folder), commit)
    if added.returncode:
        raise NoRecords(f"{commit}: neither a file nor a commit: {added.stderr.strip()}")
    try:
        build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        built = subprocess.run(build, cwd=folder, capture_output=True, text=True)
        if built.returncode:
            print(f"{commit}: its CPU library was not built:\n{built.stderr}", file=sys.stderr)
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
