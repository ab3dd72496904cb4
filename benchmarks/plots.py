"""Pictures of records. Colours are those of Okabe and Ito, which colour-blind readers tell apart;
every contestant has one colour and one marker in all pictures."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .cases import ITEMSIZES
from .records import REFUSED, SWEEP, Record, by_case, ours, sweeps, whole

matplotlib.use("Agg")  # no display is needed

_STYLES = {
    "triton": ("#0072B2", "o"),
    "triton kernels": ("#0072B2", "D"),
    "cpu": ("#0072B2", "o"),
    "cpu kernels": ("#0072B2", "D"),
    "reference": ("#56B4E9", "s"),
    "pair formula, eager": ("#D55E00", "^"),
    "pair formula, compiled": ("#D55E00", "v"),
    "linear form, eager": ("#009E73", "<"),
    "linear form, compiled": ("#009E73", ">"),
    "GEMM expansion": ("#CC79A7", "P"),
    "KeOps": ("#F0E442", "X"),
    "torch.distributions": ("#E69F00", "p"),
    "CLUB's pair form": ("#000000", "*"),
}
_OTHER = ("#777777", "h")
_FRAME = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


class Bars(NamedTuple):
    """A panel: a bar for each record, the longest first, and a line across them."""

    title: str
    rows: list[tuple[Record, float | None, str]]  # its length and what it says
    line: float


def speedups(records: Sequence[Record]) -> Figure | None:
    """A panel for each workload: how many times as long everything else takes."""
    panels = []
    for case, of_case, own in _workloads(records):
        rows = [
            (r, ratio, f"{_short(ratio)} x" if ratio else r.status)
            for r, ratio in ((r, r.times(own)) for r in of_case)
        ]
        title = f"{case}\n{own.contestant}: {_short(own.median or 0)} ms"
        panels += [Bars(title, rows, 1.0)] if len(rows) > 1 else []
    label = "time / time of fused_mi (forward and backward), log scale"
    return _bars(panels, "Time of everything else, as a multiple of fused_mi's", label)


def memory(records: Sequence[Record]) -> Figure | None:
    """Peak beyond inputs and gradients, a panel for each workload."""
    panels = []
    for case, of_case, own in _workloads(records):
        rows: list[tuple[Record, float | None, str]] = []
        for r in of_case:
            if r.extra_bytes is not None:
                mib = max(r.extra_bytes / 2**20, 0.01)
                rows.append((r, mib, f"{_short(mib)} MiB" if mib > 0.01 else "< 0.01 MiB"))
            elif r.status == "OOM":
                rows.append((r, None, "OOM"))
        inputs = 4 * math.prod(own.shape) * ITEMSIZES[own.dtype]
        panels += [Bars(case, rows, inputs / 2**20)] if rows else []
    label = "MiB, log scale; the line: the inputs"
    return _bars(panels, "Peak memory beyond inputs and gradients", label)


def roofline(records: Sequence[Record]) -> Figure | None:
    """Rate against operations per byte, below the measured ceilings."""
    points = [
        (r, r.flops / r.bytes, r.gflop_per_s)
        for r in whole(records)
        if r.kind in ("backend", "kernels") and r.dtype == "float32"
        if r.flops and r.bytes and r.gflop_per_s
    ]
    rates = [(r.copy, r.gemm) for r, *_ in points if r.copy and r.gemm]
    if not points or len(rates) < len(points):
        return None
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    copy, gemm = np.median(rates, axis=0)
    intensity = [x for _, x, _ in points]
    ends = np.geomspace(min(intensity) / 2, max(*intensity, gemm / copy) * 2, 200)
    roof = f"copy {copy:.3g} GB/s, GEMM {gemm:.3g} GFLOP/s"
    axes.plot(ends, np.minimum(ends * copy, gemm), color="black", linewidth=1.5)
    for r, x, rate in points:
        color, marker = _STYLES.get(r.contestant, _OTHER)
        filled = color if r.estimator == "jensen" else "none"
        axes.plot(x, rate, marker, markersize=6, color=color, mfc=filled)
    grey: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#555555"}
    handles = [Line2D([], [], color="black", label=roof), *_handles(r for r, *_ in points)]
    handles += [Line2D([], [], label="filled: jensen", **grey)]
    handles += [Line2D([], [], label="open: logsumexp", mfc="none", **grey)]
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    axes.set(xscale="log", yscale="log", xlabel="operations of the formula per byte of the floor")
    axes.set(ylabel="GFLOP/s (formula / time)", title="Roofline, float32, forward and backward")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    return figure


def scaling(records: Sequence[Record]) -> Figure | None:
    """Time against B, S and E, a panel for each sweep and estimator."""
    lines = [line for line in sweeps(records) if not line.contestant.startswith("bound")]
    lines.sort(key=lambda line: (line.estimator, "BSE".index(line.group[-1])))
    panels = [list(g) for _, g in itertools.groupby(lines, key=lambda li: li[:2])]
    if not panels:
        return None
    figure, grid = _grid([3.4] * len(panels), 3)
    for axes, of_panel in zip(grid, panels, strict=False):
        for line in of_panel:
            color, marker = _STYLES.get(line.contestant, _OTHER)
            style = "--" if line.contestant.endswith("kernels") else "-"
            label = f"{line.contestant}: {line.slope:.2f}"
            axes.plot(line.sizes, line.ms, style, marker=marker, color=color, label=label, ms=5)
        letter = of_panel[0].group[-1]
        axes.set(xscale="log", yscale="log", xlabel=letter)
        axes.set_title(f"{of_panel[0].estimator}, growing {letter}", fontsize=10)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.75)  # room for the legend
        axes.legend(fontsize=7, title="slope", title_fontsize=7, loc="upper left", ncols=2)
        axes.grid(alpha=0.3)
        sizes = sorted({size for line in of_panel for size in line.sizes})
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        _plain_numbers(axes.yaxis)
    for axes in grid[::3]:
        axes.set_ylabel("ms, forward and backward")
    figure.suptitle("Growth of the time")
    return figure


def accuracy(records: Sequence[Record]) -> Figure | None:
    """Error against time, in multiples of ours; a panel for each estimator, float32."""
    points: dict[str, list[tuple[Record, float]]] = {}
    for of_case in by_case(r for r in records if r.dtype == "float32").values():
        own = ours(of_case)
        for r in whole(of_case):
            ratio = r.times(own)
            if ratio and r.errors and r.kind in ("backend", "peer"):
                points.setdefault(r.estimator, []).append((r, ratio))
    if not points:
        return None
    figure, grid = _grid([4.4] * len(points), 2)
    for axes, (estimator, of_panel) in zip(grid, points.items(), strict=False):
        for r, ratio in of_panel:
            color, marker = _STYLES.get(r.contestant, _OTHER)
            error = max(*r.errors, 1e-12)
            axes.plot(ratio, error, marker, color=color, markersize=7, alpha=0.7, mew=0.4, mec="k")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", title=estimator)
        axes.set(xlabel="time / time of fused_mi, log scale")
        axes.grid(alpha=0.3)
        _plain_numbers(axes.xaxis)
    grid[0].set_ylabel("error against float64 (value or gradients)")
    handles = _handles(r for of_panel in points.values() for r, _ in of_panel)
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=5)
    figure.suptitle("Accuracy against speed: low and left is good; float32, all cases")
    return figure


def training(records: Sequence[Record]) -> Figure | None:
    """The loss within a training step."""
    rows = [(r, r.median, r.loss_share) for r in records if r.loss_share and r.median]
    if not rows:
        return None
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r.contestant} ({r.group.rpartition(', ')[2]} encoder)" for r, *_ in rows]
    of_loss = [share * ms for _, ms, share in rows]
    rest = [max(0.0, (1 - share) * ms) for _, ms, share in rows]
    axes.barh(labels, rest, color="#BBBBBB", label="everything else")
    axes.barh(labels, of_loss, left=rest, color="#0072B2", label="the loss and its gradients")
    for y, (_, ms, share) in enumerate(rows):
        axes.text(ms, y, f" loss {share:.1%}", va="center", fontsize=9)
    axes.set(xlabel="ms", title="A training step of the example")
    axes.set_xlim(0, 1.15 * max(ms for _, ms, _ in rows))
    axes.invert_yaxis()
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


PICTURES = {
    function.__name__: function
    for function in (speedups, scaling, roofline, memory, accuracy, training)
}


def _workloads(records: Sequence[Record]) -> Iterator[tuple[str, list[Record], Record]]:
    """Cases that are neither options nor sweeps, without what is the same in all their names:
    records of both passes, and ours."""
    chosen = [r for r in records if not r.group.startswith((SWEEP, "options", "training"))]
    for case, of_case in by_case(chosen).items():
        own = ours(of_case)
        rows = [r for r in whole(of_case) if r.kind in ("backend", "peer") and r.status != REFUSED]
        if own is not None:
            yield case.replace(", sub_batch", "").replace(", float32", ""), rows, own


def _bars(panels: Sequence[Bars], title: str, label: str) -> Figure | None:
    if not panels:
        return None
    figure, grid = _grid([0.26 * len(panel.rows) + 0.9 for panel in panels], 2)
    for axes, panel in zip(grid, panels, strict=False):
        rows = sorted(panel.rows, key=lambda row: -(row[1] or math.inf))
        values = [value for _, value, _ in rows if value] or [panel.line]
        least = min(*values, panel.line) / 1.3
        for r, value, said in rows:
            color, _ = _STYLES.get(r.contestant, _OTHER)
            (bar,) = axes.barh([r.contestant], [value or 0.0], height=0.7, color=color)
            if "compiled" in r.contestant:
                bar.set(hatch="///", edgecolor="white")
            at = value or least, bar.get_y() + bar.get_height() / 2
            beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points"}
            axes.annotate(said, at, **beside, va="center", fontsize=8, bbox=_FRAME)
        axes.axvline(panel.line, color="black", linewidth=0.8)
        axes.set(xscale="log", xlim=(least, max(*values, panel.line) * 8))
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        _plain_numbers(axes.xaxis)
    for axes in grid[max(0, len(panels) - 2) : len(panels)]:
        axes.set_xlabel(label, fontsize=8)
    figure.suptitle(title)
    return figure


def _grid(heights: Sequence[float], columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels in rows, each as many inches high as its row needs."""
    count, columns = len(heights), min(columns, len(heights))
    of_rows = [max(heights[i : i + columns]) for i in range(0, count, columns)]
    figure = Figure(figsize=(max(6, 4.8 * columns), sum(of_rows) + 0.9), layout="constrained")
    panels = figure.subplots(len(of_rows), columns, squeeze=False, height_ratios=of_rows)
    grid = panels.flatten().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid


def _handles(records: Iterator[Record]) -> list[Line2D]:
    """For a legend: each contestant once."""
    style: dict[str, Any] = {"linestyle": "", "mec": "k", "mew": 0.4}
    names = dict.fromkeys(r.contestant for r in records)
    found = {name: _STYLES.get(name, _OTHER) for name in names}
    return [Line2D([], [], marker=m, color=c, label=n, **style) for n, (c, m) in found.items()]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _plain_numbers(axis: Any) -> None:
    axis.set_major_locator(LogLocator(10, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
