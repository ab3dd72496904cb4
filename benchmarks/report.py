"""One page that needs nothing else, and the pictures in it as files."""

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import plots, summary
from .records import OK, Record
from .table import number

_STYLE = """body { font: 15px/1.45 system-ui, sans-serif;
  max-width: 75em; margin: 2em auto; padding: 0 1em }
img { max-width: 100% } table { border-collapse: collapse; font-size: 13px; margin-bottom: 1.5em }
td, th { padding: .15em .7em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } h3 { margin-bottom: .3em; font-size: 15px }
.ours { font-weight: bold } .not { color: #666 }"""
_COLUMNS = (
    "contestant", "forward ms", "backward ms", "both ms", "p20 to p80", "GB/s", "% of copy",
    "% of GEMM", "extra MiB", "error of value", "of gradients", "time / ours",
)  # fmt: skip


def write(records: Sequence[Record], folder: Path) -> Path:
    """The page; beside it a PNG for each picture that the records allow."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, draw in plots.PICTURES.items():
        figure = draw(records)
        if figure is not None:
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=110)
            pictures[name] = stream.getvalue()
            (folder / f"{name}.png").write_bytes(stream.getvalue())
    page = folder / "index.html"
    page.write_text("\n".join(_page(records, pictures)), encoding="utf-8")
    return page


def _page(records: Sequence[Record], pictures: dict[str, bytes]) -> Iterator[str]:
    yield "<!doctype html><html lang='en'><meta charset='utf-8'><title>fused_mi benchmarks</title>"
    yield f"<style>{_STYLE}</style><h1>fused_mi benchmarks</h1>"
    machines = {str(r.machine): r.machine for r in records}
    for machine in machines.values():
        versions = ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items() if v)
        about = f"{machine.get('device')}, {machine.get('threads')} threads; {versions}; "
        about += f"commit {machine.get('commit')}, {machine.get('started')}"
        yield f"<p>{html.escape(about)}</p>"
    for name, png in pictures.items():
        data = base64.b64encode(png).decode()
        yield f"<p><img alt='{name}' src='data:image/png;base64,{data}'></p>"
    yield "<h2>All cases</h2>"
    for case, of_case in summary.by_case(records).items():
        yield f"<h3>{html.escape(case)}</h3>"
        yield from _table(of_case)


def _table(of_case: Sequence[Record]) -> Iterator[str]:
    own = summary.ours(of_case)
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in _COLUMNS) + "</tr>"
    for record in summary.whole(of_case):
        kind = "ours" if own and record.contestant == own.contestant else ""
        if record.status != OK:
            said = html.escape(f"{record.status}: {record.reason}")
            name = html.escape(record.contestant)
            span = len(_COLUMNS) - 1
            yield f"<tr class='not'><td>{name}</td><td colspan={span}>{said}</td></tr>"
            continue
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(record, of_case, own))
        yield f"<tr class='{kind}'>{cells}</tr>"
    yield "</table>"


def _cells(record: Record, of_case: Sequence[Record], own: Record | None) -> list[str]:
    times = {r.mode: r.median for r in of_case if r.contestant == record.contestant}
    if record.mode == "step":
        times["both"] = record.median
    extra = None if record.extra_bytes is None else record.extra_bytes / 2**20
    ratio = None if record.kind == "bound" else summary.speedup(record, own)
    shares = (record.of_copy, record.of_gemm)
    errors = (record.error, record.gradient_error)
    return [
        record.contestant,
        *(number(times.get(mode)) for mode in ("fwd", "bwd", "both")),
        f"{number(record.p20)} to {number(record.p80)}",
        number(record.gb_per_s),
        *("" if share is None else f"{share:.1%}" for share in shares),
        number(extra),
        *("" if error is None else f"{error:.0e}" for error in errors),
        number(ratio),
    ]
