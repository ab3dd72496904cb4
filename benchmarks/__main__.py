"""The command line: `python -m benchmarks run`, `report` and `compare`."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from . import _source_tree


def fail(message: str, code: int = 2) -> NoReturn:
    print("benchmarks: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


_MISSING = [n for n in ("typer", "rich", "matplotlib", "numpy") if not importlib.util.find_spec(n)]
if _MISSING:
    fail(f"{', '.join(_MISSING)} missing: pip install 'fused-mi[bench]'")

import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from . import records  # noqa: E402
from .cases import SUITES, distinct, trains  # noqa: E402

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure the losses against everything else that computes them.",
)
Suite = Annotated[str, typer.Option(help=f"One of {', '.join(SUITES)}.")]
Filter = Annotated[str, typer.Option(help="Only cases whose name has this text.")]


@app.command()
def run(
    suite: Suite = "quick",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU if any.")] = "auto",
    filter: Filter = "",
    out: Annotated[Path | None, typer.Option(help="File to append JSON lines to.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU [default: torch's].")] = None,
    commit: Annotated[str | None, typer.Option(help="For the records [default: git's].")] = None,
    tree: Annotated[Path, typer.Option(help="Source tree to measure.")] = _source_tree.ROOT,
    without_peers: Annotated[bool, typer.Option("--without-peers", help="Ours only.")] = False,
) -> None:
    """Measure a suite: a table here, JSON lines in a file."""
    if suite not in SUITES:
        fail(f"--suite must be one of {', '.join(SUITES)}, got {suite!r}")
    if device not in ("auto", "cpu", "cuda"):
        fail(f"--device must be auto, cpu or cuda, got {device!r}")
    if threads is not None and threads < 1:
        fail(f"--threads must be at least 1, got {threads}")
    if not (tree / "python" / "fused_mi").is_dir():
        fail(f"--tree {tree}: there is no python/fused_mi in it")
    total = len(distinct(SUITES[suite].cases, filter)) + trains(filter)
    if not total:
        fail(f"--filter {filter!r}: no case of the suite {suite} has this in its name")
    _source_tree.use(tree.resolve())
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        fail("--device cuda: there is no GPU that torch can use")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if suite == "gpu" and device == "cpu":
        fail("--suite gpu: there is no GPU that torch can use")
    torch.set_num_threads(threads or torch.get_num_threads())
    from . import machine, suites, table

    console, about = Console(), machine.describe(device, commit, tree.resolve())
    console.print(
        f"{about['device']}, {about['threads']} threads, torch {torch.__version__}, "
        f"commit {about['commit']}",
        highlight=False,
    )
    found: list[records.Record] = []
    with _progress(console) as progress:
        task = progress.add_task("", total=total)
        for name, of_case in suites.measured(SUITES[suite], filter, device, about, without_peers):
            progress.update(task, description=name)
            new = list(of_case)
            progress.advance(task)
            found += new
            if out is not None:
                records.write(new, out)
    table.show(found, console)
    if out is not None:
        console.print(f"{len(found)} records appended to {out}", highlight=False)
    if any(r.status == records.WRONG and r.kind in ("backend", "kernels") for r in found):
        fail("a result of ours is wrong: it was not timed", 1)


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(help="Files that `run` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the page and the pictures.")],
) -> None:
    """Write one HTML page that needs nothing else, and its pictures as PNG files."""
    from . import report as pages

    written = pages.write(records.read(*files), out)
    print(f"written: {written}")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A file that `run` wrote, or a git commit.")],
    b: Annotated[str, typer.Argument(help="The same; it is judged against A.")],
    suite: Suite = "quick",
    filter: Filter = "",
    rounds: Annotated[int, typer.Option(help="Of commits, which take turns.")] = 2,
) -> None:
    """Time ratios B / A of every case; exit code 1 where one is slower beyond the noise."""
    from . import commits, table
    from .compare import compare as judge

    given = [Path(a), Path(b)]
    if all(path.is_file() for path in given):
        old, new = (records.read(path) for path in given)
    elif any(path.is_file() for path in given):
        fail(f"{a} and {b}: expected two files or two commits")
    else:
        options = ["--suite", suite, "--filter", filter]
        old, new = commits.measured((a, b), rounds, options)
    found = judge(old, new)
    if all(c.verdict.startswith("only") for c in found):
        fail(f"{a} and {b} have no case in common")
    table.show_comparison(found, Console())
    if any(c.regression for c in found):
        sys.exit(1)


def _progress(console: Console) -> Progress:
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=console)


def main() -> Any:
    """Wrong options are one line and exit code 2."""
    from .commits import NoCommit

    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (records.BadFile, NoCommit, OSError) as error:
        fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped; what is in the file is kept", 130)
    except Exception as error:
        # Usage errors; typer has its own copy of click, so their class has no fixed home.
        if not hasattr(error, "format_message"):
            raise
        fail(error.format_message())


if __name__ == "__main__":
    main()
