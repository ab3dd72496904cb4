"""Measure the losses against everything else that computes them.

python -m benchmarks run, report, compare, ranks or estimators; `--help` after each has its options.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NoReturn

from . import _source_tree, records
from .cases import SUITES


def fail(message: str, code: int = 2) -> NoReturn:
    print("benchmarks: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """Wrong options are one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def run(given: argparse.Namespace) -> None:
    """Measure a suite: a table here, JSON lines in a file, each case at once."""
    if given.threads is not None and given.threads < 1:
        fail(f"--threads must be at least 1, got {given.threads}")
    if not (given.tree / "python" / "fused_mi").is_dir():
        fail(f"--tree {given.tree}: there is no python/fused_mi in it")
    suite, tree = SUITES[given.suite], given.tree.resolve()
    total = len(suite.named(given.filter)) + suite.trains(given.filter)
    if not total:
        fail(f"--filter {given.filter!r}: no case of the suite {given.suite} has this in its name")
    _source_tree.use(tree)
    import torch

    device, usable = given.device, torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if usable else "cpu"
    if (device == "cuda" or given.suite == "gpu") and not usable:
        fail(f"--suite {given.suite} --device {given.device}: there is no GPU that torch can use")
    torch.set_num_threads(given.threads or torch.get_num_threads())
    from . import machine, suites, table

    about = machine.describe(device, given.commit, tree)
    print(
        f"{about['device']}, {about['threads']} threads, torch {torch.__version__}, "
        f"commit {about['commit']}"
    )
    found: list[records.Record] = []
    end = time.monotonic() + given.seconds
    cut_off = []
    who = given.without_peers, given.eager
    cases = suites.measured(suite, given.filter, device, about, *who)
    for number, (name, of_case) in enumerate(cases, 1):
        if time.monotonic() > end:
            cut_off.append(name)
            continue
        print(f"{number}/{total} {name}", file=sys.stderr, flush=True)
        for record in of_case:
            found.append(record)
            if given.out is not None:
                records.write([record], given.out)
    print("\n".join(table.lines(found)))
    if given.out is not None:
        print(f"{len(found)} records appended to {given.out}")
    for name in cut_off:
        print(f"cut off, out of time: {name}")
    if any(r.status == records.WRONG and r.kind in records.OURS for r in found):
        fail("a result of ours is wrong: it was not timed", 1)


def report(given: argparse.Namespace) -> None:
    """Print the README's table; write one HTML page that needs nothing else, and its pictures."""
    from . import markdown

    found = records.read(*given.files)
    print("\n".join(markdown.lines(found)))
    if given.out is not None:
        from . import report as pages

        print(f"written: {pages.write(found, given.out)}")


def compare(given: argparse.Namespace) -> None:
    """Time ratios B / A of every case; exit code 1 where one is slower beyond the noise."""
    from . import table
    from .compare import compare as judge

    found = judge(records.read(given.a), records.read(given.b))
    if all(c.verdict.startswith("only") for c in found):
        fail(f"{given.a} and {given.b} have no case in common")
    print("\n".join(table.comparison(found)))
    if any(c.regression for c in found):
        sys.exit(1)


def ranks(given: argparse.Namespace) -> None:
    """Time and bytes of the losses of several ranks, over gloo on this machine."""
    _source_tree.use()
    from . import machine, ranks

    about = machine.describe("cpu", given.commit, _source_tree.ROOT)
    print(f"{about['device']}, commit {about['commit']}")
    found = []
    for record in ranks.measured():
        found.append(record)
        print(ranks.lines([record])[0], flush=True)
        if given.out is not None:
            with given.out.open("a") as file:
                file.write(json.dumps({**about, **record}) + "\n")


def estimators(given: argparse.Namespace) -> None:
    """Write docs/estimators.png and the tables of that page: every estimator on channels whose
    information is known."""
    _source_tree.use()
    from . import estimators

    for file in estimators.write(given.out, given.batches):
        print(f"written: {file}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(
        required=True, metavar="run, report, compare, ranks or estimators"
    )
    made = {}
    for function in (run, report, compare, ranks, estimators):
        said = function.__doc__
        made[function] = commands.add_parser(function.__name__, help=said, description=said)
        made[function].set_defaults(function=function)
    option = made[run].add_argument
    option("--suite", choices=SUITES, default="quick")
    option("--filter", default="", help="only cases whose name has this text")
    option("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")
    option("--out", type=Path, help="file to append JSON lines to")
    option("--threads", type=int, help="of the CPU; default: torch's")
    option("--seconds", type=float, default=float("inf"), help="after which no case begins")
    option("--commit", help="for the records; default: git's")
    option("--tree", type=Path, default=_source_tree.ROOT, help="source tree to measure")
    option("--without-peers", action="store_true", help="ours only; on a GPU the fastest of them")
    option("--eager", action="store_true", help="nobody who compiles first, for minutes")
    made[report].add_argument("files", type=Path, nargs="+", help="files that `run` wrote")
    made[report].add_argument(
        "--out", type=Path, help="folder of page and pictures; without it: only the table"
    )
    made[ranks].add_argument("--out", type=Path, help="file to append JSON lines to")
    made[ranks].add_argument("--commit", help="for the records; default: git's")
    made[estimators].add_argument(
        "--out", type=Path, default=Path("docs"), help="folder of the page"
    )
    made[estimators].add_argument("--batches", type=int, default=100, help="of each channel")
    made[compare].add_argument("a", type=Path, help="a file that `run` wrote")
    made[compare].add_argument("b", type=Path, help="another one; it is judged against A")
    return parser


def main() -> None:
    given = _parser().parse_args()
    try:
        given.function(given)
    except (records.NoRecords, OSError) as error:
        fail(str(error))
    except ModuleNotFoundError as error:
        fail(f"{error}: pip install '.[bench]'")
    except KeyboardInterrupt:
        fail("stopped; what is in the file is kept", 130)


if __name__ == "__main__":
    main()
