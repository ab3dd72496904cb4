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

from .cases import ITEMSIZES
from .records import OOM, REFUSED, SWEEP, Record, by_case, ours, sweeps, whole
from .table import number

matplotlib.use("Agg")  # no display is needed

_STYLES = {
    "triton": ("#0072B2", "o"),
    "triton kernels": ("#0072B2", "D"),
    "cpu": ("#0072B2", "o"),
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


class Panel(NamedTuple):
    """A bar for each contestant, the longest first, and a line across them."""

    title: str
    bars: list[tuple[str, float | None, str]]  # its name, its length and what it says
    line: float


def speedups(records: Sequence[Record]) -> Figure | None:
    """A panel for each workload: how many times as long everything else takes."""
    panels = []
    for case, of_case, own in _workloads(records):
        ratios = ((r, r.times(own)) for r in of_case)
        bars = [(r.contestant, x, f"{number(x)} x" if x else r.status) for r, x in ratios]
        if len(bars) > 1:
            title = f"{case}\n{own.contestant}: {number(own.median or 0)} ms"
            panels.append(Panel(title, bars, 1.0))
    label = "time / time of fused_mi (forward and backward), log scale"
    return _bars(panels, "Time of everything else, as a multiple of fused_mi's", label)


def memory(records: Sequence[Record]) -> Figure | None:
    """Peak beyond inputs and gradients, a panel for each workload."""
    panels = []
    for case, of_case, own in _workloads(records):
        bars: list[tuple[str, float | None, str]] = []
        for r in of_case:
            if r.extra_bytes is not None:
                mib = max(r.extra_bytes / 2**20, 0.01)
                bars.append((r.contestant, mib, f"{number(mib)} MiB"))
            elif r.status == OOM:
                bars.append((r.contestant, None, OOM))
        inputs = 4 * math.prod(own.shape) * ITEMSIZES[own.dtype]
        panels += [Panel(case, bars, inputs / 2**20)] if bars else []
    label = "MiB, 0.01 at least, log scale; the line: the inputs"
    return _bars(panels, "Peak memory beyond inputs and gradients", label)


def roofline(records: Sequence[Record]) -> Figure | None:
    """Rate against operations per byte, below the measured ceilings."""
    points = [
        (r, r.flops / r.bytes, r.gflop_per_s)
        for r in whole(records)
        if r.kind in ("backend", "kernels") and r.dtype == "float32"
        if r.flops and r.bytes and r.gflop_per_s and r.copy and r.gemm
    ]
    if not points:
        return None
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    copy, gemm = np.median([(r.copy, r.gemm) for r, *_ in points], axis=0)
    intensity = [x for _, x, _ in points]
    ends = np.geomspace(min(intensity) / 2, max(*intensity, gemm / copy) * 2, 200)
    roof = f"copy {copy:.3g} GB/s, GEMM {gemm:.3g} GFLOP/s"
    line = axes.plot(ends, np.minimum(ends * copy, gemm), color="black", label=roof)
    handles = {"": line[0]}
    for r, x, rate in points:
        style = _style(r.contestant)
        filled = style["color"] if r.estimator == "jensen" else "none"
        axes.plot(x, rate, markersize=6, mfc=filled, **style)
        handles[r.contestant] = Line2D([], [], label=r.contestant, **style)
    title = "filled: jensen, open: logsumexp"
    axes.legend(handles=[*handles.values()], fontsize=8, loc="lower right", title=title)
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
            style = _style(line.contestant)
            style["linestyle"] = "--" if line.contestant.endswith("kernels") else "-"
            label = f"{line.contestant}: {line.slope:.2f}"
            axes.plot(line.sizes, line.ms, label=label, markersize=5, **style)
        letter = of_panel[0].group[-1]
        axes.set(xscale="log", yscale="log", xlabel=letter, ylabel="ms, both passes")
        axes.set_title(f"{of_panel[0].estimator}, growing {letter}", fontsize=10)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.75)  # room for the legend
        axes.legend(fontsize=7, title="slope", title_fontsize=7, loc="upper left", ncols=2)
        sizes = sorted({size for line in of_panel for size in line.sizes})
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.grid(alpha=0.3)
        axes.minorticks_off()
    figure.suptitle("Growth of the time")
    return figure


PICTURES = {f.__name__: f for f in (speedups, scaling, roofline, memory)}


def _workloads(records: Sequence[Record]) -> Iterator[tuple[str, list[Record], Record]]:
    """Cases that are neither options nor sweeps, without what is the same in all their names:
    records of both passes, and ours."""
    chosen = [r for r in records if not r.group.startswith((SWEEP, "options", "training"))]
    for case, of_case in by_case(chosen).items():
        own = ours(of_case)
        rows = [r for r in whole(of_case) if r.kind in ("backend", "peer") and r.status != REFUSED]
        if own is not None:
            yield case.replace(", sub_batch", "").replace(", float32", ""), rows, own


def _bars(panels: Sequence[Panel], title: str, label: str) -> Figure | None:
    if not panels:
        return None
    figure, grid = _grid([0.26 * len(panel.bars) + 0.9 for panel in panels], 2)
    for axes, panel in zip(grid, panels, strict=False):
        values = [value for _, value, _ in panel.bars if value] + [panel.line]
        least, most = min(values) / 1.3, max(values) * 8
        for name, value, said in sorted(panel.bars, key=lambda bar: -(bar[1] or math.inf)):
            bar = axes.barh(name, value or least, 0.7, color=_style(name)["color"])
            if "compiled" in name:
                bar[0].set(hatch="///", edgecolor="white")
            axes.bar_label(bar, [said], padding=4, fontsize=8)
        axes.axvline(panel.line, color="black", linewidth=0.8)
        axes.set(xscale="log", xlim=(least, most))
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:,.10g}")
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


def _style(contestant: str) -> dict[str, Any]:
    color, marker = _STYLES.get(contestant, ("#777777", "h"))
    return {"color": color, "marker": marker, "linestyle": ""}
