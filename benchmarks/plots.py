"""Pictures of records. Colours are those of Okabe and Ito, which colour-blind readers tell apart;
every contestant has one colour and one marker in all pictures."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from . import summary
from .records import OK, REFUSED, Record

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
_BOX: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


def speedups(records: Sequence[Record]) -> Figure | None:
    """A panel for each workload: how many times as long everything else takes."""
    panels = [(case, r, own) for case, r, own in _workloads(records) if len(r) > 1]
    if not panels:
        return None
    figure, grid = _grid(len(panels), 2, lambda i: 0.26 * len(panels[i][1]) + 0.9)
    for axes, (case, of_case, own) in zip(grid, panels, strict=False):
        rows = sorted(of_case, key=lambda r: (r.status == OK, -(r.median or math.inf)))
        ratios = [summary.speedup(r, own) or 0.0 for r in rows]
        bars = axes.barh([r.contestant for r in rows], ratios, height=0.7)
        for bar, r, ratio in zip(bars, rows, ratios, strict=True):
            _paint(bar, r)
            said = f"{_short(ratio)} x" if r.status == OK else r.status
            at = ratio if ratio else 1.0
            _note(axes, bar, at, said)
        axes.axvline(1, color="black", linewidth=0.8)
        most = max([*ratios, 2.0])
        axes.set(xscale="log", xlim=(min(0.5, *(r for r in ratios if r)) / 1.3, most * 4))
        axes.set_title(f"{_headline(case)}\n{own.contestant}: {_short(own.median)} ms", fontsize=9)
        axes.tick_params(labelsize=8)
        _plain_numbers(axes.xaxis)
    _label(grid, len(panels), "time / time of fused_mi (forward and backward), log scale")
    figure.suptitle("Time of everything else, as a multiple of fused_mi's")
    return figure


def roofline(records: Sequence[Record]) -> Figure | None:
    """Rate against operations per byte, below the measured ceilings."""
    points = [r for r in summary.whole(records) if r.gflop_per_s and r.bytes and r.gb_per_s]
    points = [r for r in points if r.kind in ("backend", "kernels") and r.dtype == "float32"]
    if not points or not all(r.copy and r.gemm for r in points):
        return None
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    copy, gemm = (float(np.median([getattr(r, n) for r in points])) for n in ("copy", "gemm"))
    intensity = [r.flops / r.bytes for r in points]
    ends = np.geomspace(min(intensity) / 2, max(*intensity, gemm / copy) * 2, 200)
    roof = f"copy {copy:.3g} GB/s, GEMM {gemm:.3g} GFLOP/s"
    axes.plot(ends, np.minimum(ends * copy, gemm), color="black", linewidth=1.5)
    for r in points:
        color, marker = _style(r)
        filled = color if r.estimator == "jensen" else "none"
        axes.plot(r.flops / r.bytes, r.gflop_per_s, marker, markersize=6, color=color, mfc=filled)
    names = list(dict.fromkeys(r.contestant for r in points))
    handles = [Line2D([], [], color="black", label=roof), *(_handle(name) for name in names)]
    grey = {"marker": "o", "linestyle": "", "color": "#555555"}
    handles += [Line2D([], [], label="filled: jensen", **grey)]
    handles += [Line2D([], [], label="open: logsumexp", mfc="none", **grey)]
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    axes.set(xscale="log", yscale="log", xlabel="operations of the formula per byte of the floor")
    axes.set(ylabel="GFLOP/s (formula / time)", title="Roofline, float32, forward and backward")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    return figure


def scaling(records: Sequence[Record]) -> Figure | None:
    """Time against B, S and E, a panel for each sweep and estimator."""
    found = summary.slopes(records)
    keys = list(dict.fromkeys((line[1], line[0]) for line in found))
    if not keys:
        return None
    keys.sort(key=lambda key: (key[0], "BSE".index(key[1][-1])))
    figure, grid = _grid(len(keys), 3, lambda i: 3.4)
    for axes, (estimator, group) in zip(grid, keys, strict=False):
        for of_group, of_estimator, name, sizes, ms, slope in found:
            if (of_estimator, of_group) == (estimator, group) and not name.startswith("bound"):
                color, marker = _STYLES.get(name, _OTHER)
                style = "--" if name.endswith("kernels") else "-"
                label = f"{name}: {slope:.2f}"
                axes.plot(sizes, ms, style, marker=marker, color=color, label=label, markersize=5)
        letter = group[-1]
        axes.set(xscale="log", yscale="log", xlabel=letter)
        axes.set_title(f"{estimator}, growing {letter}", fontsize=10)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.75)  # room for the legend
        axes.legend(fontsize=7, title="slope", title_fontsize=7, loc="upper left", ncols=2)
        axes.grid(alpha=0.3)
        sizes = sorted(
            {s for line in found if (line[1], line[0]) == (estimator, group) for s in line[3]}
        )
        axes.set_xticks(sizes, [f"{s:g}" for s in sizes])
        axes.xaxis.set_minor_formatter(NullFormatter())
        _plain_numbers(axes.yaxis)
    for axes in grid[::3]:
        axes.set_ylabel("ms, forward and backward")
    figure.suptitle("Growth of the time")
    return figure


def memory(records: Sequence[Record]) -> Figure | None:
    """Peak beyond inputs and gradients, a panel for each workload."""
    panels = []
    for case, of_case, _ in _workloads(records):
        rows = [r for r in of_case if r.extra_bytes is not None or r.status == "OOM"]
        if rows:
            panels.append((case, rows))
    if not panels:
        return None
    figure, grid = _grid(len(panels), 2, lambda i: 0.26 * len(panels[i][1]) + 0.9)
    for axes, (case, rows) in zip(grid, panels, strict=False):
        rows = sorted(rows, key=lambda r: -(r.extra_bytes if r.extra_bytes is not None else 1e30))
        mib = [max((r.extra_bytes or 0) / 2**20, 0.01) for r in rows]
        bars = axes.barh([r.contestant for r in rows], mib, height=0.7)
        for bar, r, value in zip(bars, rows, mib, strict=True):
            _paint(bar, r)
            said = f"{_short(value)} MiB" if r.extra_bytes is not None else "OOM"
            said = "< 0.01 MiB" if r.extra_bytes is not None and value <= 0.01 else said
            _note(axes, bar, value, said)
        axes.set(xscale="log", xlim=(0.01, max([*mib, 1]) * 30))
        inputs = 4 * math.prod(rows[0].shape) * {"float64": 8, "float32": 4}.get(rows[0].dtype, 2)
        axes.axvline(inputs / 2**20, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(_headline(case), fontsize=9)
        axes.tick_params(labelsize=8)
        _plain_numbers(axes.xaxis)
    _label(grid, len(panels), "MiB, log scale; dotted: the inputs")
    figure.suptitle("Peak memory beyond inputs and gradients")
    return figure


def accuracy(records: Sequence[Record]) -> Figure | None:
    """Error against time, in multiples of ours; a panel for each estimator, float32."""
    estimators = list(dict.fromkeys(r.estimator for r in records))
    found = {name: list(_accuracies(records, name)) for name in estimators}
    found = {name: points for name, points in found.items() if points}
    if not found:
        return None
    figure, grid = _grid(len(found), 2, lambda i: 4.4)
    for axes, (estimator, points) in zip(grid, found.items(), strict=False):
        for r, ratio, error in points:
            color, marker = _style(r)
            axes.plot(ratio, error, marker, color=color, markersize=7, alpha=0.7, mew=0.4, mec="k")
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", title=estimator)
        axes.set(xlabel="time / time of fused_mi, log scale")
        axes.grid(alpha=0.3)
        _plain_numbers(axes.xaxis)
    grid[0].set_ylabel("error against float64 (value or gradients)")
    names = dict.fromkeys(r.contestant for points in found.values() for r, _, _ in points)
    handles = [_handle(name) for name in names]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=5)
    figure.suptitle("Accuracy against speed: low and left is good; float32, all cases")
    return figure


def training(records: Sequence[Record]) -> Figure | None:
    """The loss within a training step."""
    rows = [r for r in records if r.loss_share is not None and r.median is not None]
    if not rows:
        return None
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r.contestant} ({r.group.rpartition(', ')[2]} encoder)" for r in rows]
    of_loss = [r.loss_share * r.median for r in rows]
    rest = [max(0.0, r.median - part) for r, part in zip(rows, of_loss, strict=True)]
    axes.barh(labels, rest, color="#BBBBBB", label="everything else")
    axes.barh(labels, of_loss, left=rest, color="#0072B2", label="the loss and its gradients")
    for y, r in enumerate(rows):
        axes.text(r.median, y, f" loss {r.loss_share:.1%}", va="center", fontsize=9)
    axes.set(
        xlabel="ms",
        title="A training step of the example",
        xlim=(0, 1.15 * max(r.median for r in rows)),
    )
    axes.invert_yaxis()
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


PICTURES = {
    "speedups": speedups,
    "scaling": scaling,
    "roofline": roofline,
    "memory": memory,
    "accuracy": accuracy,
    "training": training,
}


def _workloads(records: Iterable[Record]) -> Iterator[tuple[str, list[Record], Record]]:
    """Cases that are neither options nor sweeps: records of both passes, and ours."""
    chosen = [r for r in records if not r.group.startswith((summary.SWEEP, "options", "training"))]
    for case, of_case in summary.by_case(chosen).items():
        own = summary.ours(of_case)
        rows = [r for r in summary.whole(of_case) if r.kind in ("backend", "peer")]
        if own is not None:
            yield case, [r for r in rows if r.status != REFUSED], own


def _accuracies(records: Sequence[Record], estimator: str) -> Iterator[tuple[Record, float, float]]:
    chosen = [r for r in records if r.estimator == estimator and r.dtype == "float32"]
    for of_case in summary.by_case(chosen).values():
        own = summary.ours(of_case)
        for r in summary.whole(of_case):
            ratio = summary.speedup(r, own)
            errors = [e for e in (r.error, r.gradient_error) if e is not None]
            if ratio and errors and r.kind in ("backend", "peer") and r.status == OK:
                yield r, ratio, max(*errors, 1e-12)


def _grid(count: int, columns: int, height: object) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows; `height(i)` inches for panel i."""
    columns = min(columns, count)
    rows = -(-count // columns)
    heights = [
        max(height(i) for i in range(r * columns, min(count, (r + 1) * columns)))
        for r in range(rows)
    ]
    figure = Figure(figsize=(max(6, 4.8 * columns), sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flatten().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid


def _label(grid: Sequence[Axes], count: int, text: str) -> None:
    for axes in grid[max(0, count - 2) : count]:
        axes.set_xlabel(text, fontsize=8)


def _style(record: Record) -> tuple[str, str]:
    return _STYLES.get(record.contestant, _OTHER)


def _note(axes: Axes, bar: Rectangle, at: float, text: str) -> None:
    """Beside the end of a bar."""
    middle = bar.get_y() + bar.get_height() / 2
    beside = {"xytext": (4, 0), "textcoords": "offset points"}
    axes.annotate(text, (at, middle), **beside, va="center", fontsize=8, bbox=_BOX)


def _paint(bar: Rectangle, record: Record) -> None:
    bar.set_facecolor(_style(record)[0])
    if "compiled" in record.contestant:
        bar.set(hatch="///", edgecolor="white")


def _handle(name: str) -> Line2D:
    color, marker = _STYLES.get(name, _OTHER)
    return Line2D([], [], linestyle="", marker=marker, color=color, mec="k", mew=0.4, label=name)


def _headline(case: str) -> str:
    """The name of a case without what is the same everywhere."""
    return case.replace(", sub_batch", "").replace(", float32", "")


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _plain_numbers(axis: Any) -> None:
    axis.set_major_locator(LogLocator(10, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
