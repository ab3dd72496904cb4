"""The estimators on Gaussian channels whose information is known, and the time of CLUB.

x ~ N(0, 1) and y = x + sigma N(0, 1) in each of d features: I = d/2 log(1 + 1/r), r = sigma^2.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fused_mi
import torch
from torch import Tensor

BATCHES = 100
CLUB = "Both passes of `club`, processor time of one thread:"
MARKS = "<!-- channels -->", "<!-- end of channels -->"


class Channel(NamedTuple):
    rows: int = 128
    d: int = 16
    r: float = 4.0

    @property
    def information(self) -> float:
        return self.d / 2 * math.log(1 + 1 / self.r)

    def batches(self, count: int) -> Iterator[list[Tensor]]:
        """(mu, sigma, mask, x, y) of each."""
        generator = torch.Generator().manual_seed(0)
        stds = torch.full((self.rows, self.d), math.sqrt(self.r))
        fixed = [torch.zeros_like(stds), stds, torch.ones(self.rows, dtype=torch.bool)]
        for _ in range(count):
            x, noise = torch.randn(2, self.rows, self.d, generator=generator)
            yield [*fixed, x, x + stds * noise]


def _loss(estimator: Any) -> Callable[..., Tensor]:
    def loss(mu: Tensor, stds: Tensor, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return fused_mi.mutual_information_sub_batch(
            *(mu, stds, mask, x, y),
            estimator=estimator,
            pairing="leave_one_out",
            reduction="mean",
            constant="subtract",
        )

    return loss


def _pairwise(bound: Any) -> Callable[..., Tensor]:
    return lambda mu, stds, mask, x, y: fused_mi.kolchinsky_tracey(mu, stds, None, x, bound=bound)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "jensen": _loss("jensen"),
    "club": lambda mu, stds, mask, x, y: fused_mi.club(x + mu, 2 * stds.log(), y),
    "logsumexp": _loss("logsumexp"),
    "l1out": fused_mi.l1out,
    "kolchinsky_tracey, upper": _pairwise("upper"),
    "kolchinsky_tracey, lower": _pairwise("lower"),
    "infonce": fused_mi.infonce,
}
SWEEPS: dict[str, list[Channel]] = {
    "features d": [Channel(d=d) for d in (1, 4, 16, 64, 256)],
    "noise r = sigma^2": [Channel(r=r) for r in (0.25, 1.0, 4.0, 16.0, 64.0)],
    "batch B": [Channel(rows=rows) for rows in (8, 32, 128, 512)],
}
FIELDS = {"features d": "d", "noise r = sigma^2": "r", "batch B": "rows"}


def measured(count: int = BATCHES) -> dict[tuple[Channel, str], tuple[float, float]]:
    """Mean and standard deviation of each estimator over `count` batches of each channel."""
    found = {}
    for channel in dict.fromkeys(c for sweep in SWEEPS.values() for c in sweep):
        for name, estimator in ESTIMATORS.items():
            values = [estimator(*batch).item() for batch in channel.batches(count)]
            found[channel, name] = statistics.mean(values), statistics.stdev(values)
    return found


def table(found: dict[tuple[Channel, str], tuple[float, float]]) -> str:
    """Mean ± standard deviation of one batch, in Markdown."""
    header = ["d", "r", "B", "truth", *ESTIMATORS]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for channel in dict.fromkeys(channel for channel, _ in found):
        numbers = [f"{channel.d}", f"{channel.r:g}", f"{channel.rows}"]
        numbers.append(f"**{channel.information:.3g}**")
        for name in ESTIMATORS:
            mean, deviation = found[channel, name]
            numbers.append(f"{mean:.3g} ± {deviation:.2g}")
        lines.append(f"| {' | '.join(numbers)} |")
    return "\n".join(lines)


def draw(found: dict[tuple[Channel, str], tuple[float, float]], file: Path) -> None:
    """Above the means with a band of one standard deviation, below the standard deviations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharex="col", layout="constrained")
    for (title, sweep), (above, below) in zip(SWEEPS.items(), axes.T, strict=True):
        at = [getattr(channel, FIELDS[title]) for channel in sweep]
        for name in ESTIMATORS:
            means, deviations = zip(*(found[c, name] for c in sweep), strict=True)
            (line,) = above.plot(at, means, label=name, marker=".")
            low, high = (
                [m + sign * s for m, s in zip(means, deviations, strict=True)] for sign in (-1, 1)
            )
            above.fill_between(at, low, high, color=line.get_color(), alpha=0.15)
            if max(deviations) > 0 and not name.startswith("kolchinsky"):
                seen = [s if s > 1e-4 else math.nan for s in deviations]  # else it is at log B
                below.plot(at, seen, color=line.get_color(), marker=".")
        above.plot(at, [c.information for c in sweep], "k--", label="truth")
        above.set(xscale="log", title=_fixed(title))
        above.set_yscale("symlog", linthresh=0.1)
        below.set(xscale="log", yscale="log", xlabel=title)
    axes[0, 0].set_ylabel("nats: mean ± standard deviation")
    axes[1, 0].set_ylabel("standard deviation of one batch")
    axes[0, 0].legend(fontsize="small")
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def _fixed(title: str) -> str:
    base = Channel()
    said = {"features d": f"d = {base.d}", "noise r = sigma^2": f"r = {base.r:g}"}
    said["batch B"] = f"B = {base.rows}"
    return ", ".join(text for name, text in said.items() if name != title)


def times(rows: tuple[int, ...] = (1024, 4096, 16384, 65536), d: int = 64) -> list[str]:
    """Both passes of CLUB, and of its formula over pairs where that fits: medians of turns, in
    processor time of one thread, which no neighbour disturbs."""
    torch.set_num_threads(1)
    lines = [f"| B, D = {d} | `club` | all pairs |", "|---|---|---|"]
    for b in rows:
        generator = torch.Generator().manual_seed(0)
        tensors = [t.requires_grad_() for t in torch.randn(3, b, d, generator=generator)]
        losses: list[Callable[..., Tensor]] = [fused_mi.club]
        if b * b * d <= 1 << 28:  # 1 GiB a temporary
            losses.append(_pairs)
        taken: list[list[float]] = [[] for _ in losses]
        for _ in range(7):
            for loss, kept in zip(losses, taken, strict=True):
                start = time.thread_time()
                torch.autograd.grad(loss(*tensors), tensors)
                kept.append(1e3 * (time.thread_time() - start))
        said = [f"{statistics.median(kept[1:]):.3g} ms" for kept in taken]
        size = f"{4 * b * b * d / 2**30:.0f} GiB a temporary"
        lines.append(f"| {b:,} | {said[0]} | {said[1] if len(said) > 1 else size} |")
    return lines


def _pairs(mean: Tensor, logvar: Tensor, y: Tensor) -> Tensor:
    """CLUB as it is usually written: every sample against every mean."""
    spread = (y - mean[:, None]).square().mean(1)
    return ((spread - (y - mean).square()) / (2 * logvar.exp())).sum(1).mean()


def write(folder: Path, count: int = BATCHES) -> list[Path]:
    """The picture, and the tables into the page between its marks."""
    page, picture = folder / "estimators.md", folder / "estimators.png"
    found = measured(count)
    draw(found, picture)
    before, _, rest = page.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    said = f"Mean ± standard deviation of one batch, over {count} batches:"
    tables = f"{said}\n\n{table(found)}\n\n{CLUB}\n\n" + "\n".join(times())
    page.write_text(f"{before}{MARKS[0]}\n\n{tables}\n\n{MARKS[1]}{after}")
    return [page, picture]
