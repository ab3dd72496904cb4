"""Records as plain text, for the terminal and the report: nothing needs to be installed for it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .records import OK, REFUSED, SWEEP, Record, by_case, ours, sweeps, whole

if TYPE_CHECKING:
    from .compare import Comparison

_COLUMNS = ["fwd ms", "bwd ms", "both ms", "spread", "GB/s"]
_COLUMNS += ["% copy", "% GEMM", "MiB", "error", "x"]


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Columns as wide as their widest cell, the first ones to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if i < left else ">" for i in range(len(widths))]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return [form.format(*row).rstrip() for row in rows]


def lines(records: Sequence[Record]) -> Iterator[str]:
    """A section for each case; then the slopes of sweeps, and who could not take part."""
    yield "Medians; x: how many times as long as the backend in use."
    for case, of_case in by_case(records).items():
        own = ours(of_case)
        rows = []
        for record in whole(of_case):
            if record.status == OK:
                rows.append([record.contestant.ljust(29), *_cells(record, of_case, own)])
            elif record.status != REFUSED:
                rows.append([record.contestant, "", "", record.status, *[""] * 7])
        if rows:
            yield from ("", case, *columns([["", *_COLUMNS], *rows]))
        yield from _details(of_case)
    yield from _slopes(records)
    for r in records:
        if r.loss_share is not None:
            share = f"{r.loss_share:.1%} of {number(r.median)} ms"
            yield f"{r.case}: with {r.contestant}, the loss takes {share}"
    failed = (r for r in whole(records) if r.status != OK)
    for (name, status, reason), n in Counter(
        (r.contestant, r.status, r.reason) for r in failed
    ).items():
        yield f"{name}: {status} in {n} case{'s' * (n > 1)}: {reason or ''}"


def _cells(record: Record, of_case: Sequence[Record], own: Record | None) -> list[str]:
    times = {r.mode: r.median for r in of_case if r.contestant == record.contestant}
    times.setdefault("both", times.get("step"))
    spread = None
    if record.median and record.p20 is not None and record.p80 is not None:
        spread = (record.p80 - record.p20) / record.median
    return [
        *(number(times.get(mode)) for mode in ("fwd", "bwd", "both")),
        _percent(spread),
        number(record.gb_per_s),
        _percent(record.of_copy),
        _percent(record.of_gemm),
        number(None if record.extra_bytes is None else record.extra_bytes / 2**20),
        f"{max(record.errors):.0e}" if record.errors else "",
        number(record.times(own)),
    ]


def _details(of_case: Sequence[Record]) -> Iterator[str]:
    for record in whole(of_case):
        if record.faults:
            faults, system = record.faults
            said = f"{faults:,.0f} page faults a pass, {number(system)} ms in the system"
            yield f"{record.contestant}: {said}"
        for name, us in (record.kernels or {}).items():
            yield f"  {us:9.1f} us  {name[:80]}"


def _slopes(records: Sequence[Record]) -> Iterator[str]:
    rows = [["sweep", "estimator", "contestant", "sizes", "slope"]]
    for line in sweeps(records):
        ends = f"{line.sizes[0]:g} to {line.sizes[-1]:g}"
        name = line.group.removeprefix(SWEEP)
        rows.append([name, line.estimator, line.contestant, ends, f"{line.slope:.2f}"])
    if len(rows) > 1:
        yield from ("", "Growth: ms ~ size ^ slope", *columns(rows, left=4))


def comparison(found: Sequence["Comparison"]) -> Iterator[str]:
    """What changed, and how many did not."""
    yield "B / A; within the margin it may be noise"
    rows = [["case", "mode", "contestant", "verdict", "A ms", "B ms", "B / A", "margin"]]
    for c in found:
        ratios = (f"{v:.2f}" if v is not None else "" for v in (c.ratio, c.margin))
        rows.append([*c[:3], c.verdict, number(c.a), number(c.b), *ratios])
    yield from columns(rows, left=4)
    yield ", ".join(f"{n} {verdict}" for verdict, n in Counter(c.verdict for c in found).items())


def number(value: float | None) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
