"""Records in the terminal."""

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from . import summary
from .compare import Comparison
from .records import OK, REFUSED, Record

_COLUMNS = (
    "fwd ms",
    "bwd ms",
    "both ms",
    "spread",
    "GB/s",
    "% copy",
    "% GEMM",
    "MiB",
    "error",
    "x",
)


def show(records: Sequence[Record], console: Console) -> None:
    """A section for each case; then the slopes of sweeps, and who could not take part."""
    console.print("Medians; x: how many times as long as the backend in use.", highlight=False)
    wide = _wide(console)
    for case, of_case in summary.by_case(records).items():
        table = Table(title=case, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        table.add_column("", no_wrap=True, min_width=29)
        for name in _COLUMNS:
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        own = summary.ours(of_case)
        for record in summary.whole(of_case):
            if record.status == OK:
                table.add_row(record.contestant, *_cells(record, of_case, own))
            elif record.status != REFUSED:
                table.add_row(record.contestant, "", "", f"[bold]{record.status}[/bold]")
        if table.row_count:
            wide.print(table)
    _show_slopes(records, console)
    _show_shares(records, console)
    _show_failures(records, console)


def _wide(console: Console) -> Console:
    """A terminal that is too narrow must not cut figures: its lines wrap instead."""
    return Console(file=console.file, width=max(console.width, 120), soft_wrap=True)


def _cells(record: Record, of_case: Sequence[Record], own: Record | None) -> list[str]:
    times = {r.mode: r.median for r in of_case if r.contestant == record.contestant}
    if record.mode == "step":
        times["both"] = record.median
    ratio = summary.speedup(record, own)
    errors = [e for e in (record.error, record.gradient_error) if e is not None]
    spread = (record.p80 - record.p20) / record.median if record.median else None
    return [
        *(number(times.get(mode)) for mode in ("fwd", "bwd", "both")),
        _percent(spread),
        number(record.gb_per_s),
        _percent(record.of_copy),
        _percent(record.of_gemm),
        number(None if record.extra_bytes is None else record.extra_bytes / 2**20),
        f"{max(errors):.0e}" if errors else "",
        "" if ratio is None or record.kind == "bound" else number(ratio),
    ]


def _show_slopes(records: Sequence[Record], console: Console) -> None:
    found = summary.slopes(records)
    if not found:
        return
    table = Table(title="Growth: ms ~ size ^ slope")
    for name in ("sweep", "estimator", "contestant", "sizes", "slope"):
        table.add_column(name, justify="right" if name == "slope" else "left")
    for group, estimator, contestant, sizes, _, slope in found:
        ends = f"{sizes[0]:g} to {sizes[-1]:g}"
        table.add_row(
            group.removeprefix(summary.SWEEP), estimator, contestant, ends, f"{slope:.2f}"
        )
    console.print(table)


def _show_shares(records: Sequence[Record], console: Console) -> None:
    for r in records:
        if r.loss_share is not None:
            share = f"{r.loss_share:.1%} of {number(r.median)} ms"
            console.print(f"{r.case}: with {r.contestant}, the loss takes {share}", highlight=False)


def _show_failures(records: Sequence[Record], console: Console) -> None:
    for (contestant, status, reason), cases in summary.failures(records).items():
        count = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
        line = f"{contestant}: {status} in {count}: {reason}"
        console.print(line, markup=False, highlight=False)


def show_comparison(found: Sequence[Comparison], console: Console) -> None:
    """What changed, and how many did not."""
    table = Table(title="B / A; within the margin it may be noise")
    for name in ("case", "mode", "contestant", "A ms", "B ms", "B / A", "margin", "verdict"):
        numeric = name in ("A ms", "B ms", "B / A", "margin")
        table.add_column(name, justify="right" if numeric else "left")
    for c in found:
        ratio, margin = (f"{v:.2f}" if v is not None else "" for v in (c.ratio, c.margin))
        verdict = f"[bold]{c.verdict}[/bold]" if c.regression else c.verdict
        table.add_row(*c[:3], number(c.a), number(c.b), ratio, margin, verdict)
    _wide(console).print(table)
    counts = Counter(c.verdict for c in found)
    console.print(", ".join(f"{n} {verdict}" for verdict, n in counts.items()), highlight=False)


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
