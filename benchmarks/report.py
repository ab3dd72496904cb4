"""One page that needs nothing else, and the pictures in it as files."""

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import plots, table
from .records import Record

_STYLE = "body { font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto }"
_STYLE += " img { max-width: 100% } pre { font-size: 12px; overflow-x: auto }"


def write(records: Sequence[Record], folder: Path) -> Path:
    """The page; beside it a PNG for each picture that the records allow."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, draw in plots.PICTURES.items():
        if (figure := draw(records)) is not None:
            pictures.append(folder / f"{name}.png")
            figure.savefig(pictures[-1], dpi=110)
    page = folder / "index.html"
    page.write_text("\n".join(_page(records, pictures)), encoding="utf-8")
    return page


def _page(records: Sequence[Record], pictures: Sequence[Path]) -> Iterator[str]:
    yield "<!doctype html><html lang='en'><meta charset='utf-8'><title>fused_mi benchmarks</title>"
    yield f"<style>{_STYLE}</style><h1>fused_mi benchmarks</h1>"
    for machine in {str(r.machine): r.machine for r in records}.values():
        versions = ", ".join(f"{k} {v}" for k, v in machine.get("versions", {}).items() if v)
        about = f"{machine.get('device')}, {machine.get('threads')} threads; {versions}; "
        about += f"commit {machine.get('commit')}, {machine.get('started')}"
        yield f"<p>{html.escape(about)}</p>"
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        yield f"<p><img alt='{picture.stem}' src='data:image/png;base64,{data}'></p>"
    yield "<h2>All cases</h2><pre>"
    yield from map(html.escape, table.lines(records))
    yield "</pre>"
