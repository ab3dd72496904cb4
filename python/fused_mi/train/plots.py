"""The PNG plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor

from . import metrics
from .attacks import ATTACKS
from .checkpoint import replacing
from .report import Outcome

matplotlib.use("Agg")  # no display is needed

from matplotlib.figure import Figure

COLORS = dict(zip(ATTACKS, ("tab:blue", "tab:orange", "tab:red", "tab:purple"), strict=True))


def curves(folder: Path) -> None:
    """Loss, own passages found and the information over the steps."""
    rows = metrics.read(folder)
    figure = Figure(figsize=(12, 3.5))
    kept = "found" if "found" in rows[0] else "agreement"
    for axes, name in zip(figure.subplots(1, 3), ("loss", kept, "information"), strict=True):
        axes.plot([row["step"] for row in rows], [row[name] for row in rows])
        axes.set(xlabel="step", title=name.replace("_", " "))
        if name == "information":
            axes.set(ylabel="nats")
        axes.grid(alpha=0.3)
    _save(figure, folder / "curves.png")


def recovery(outcome: Outcome, folder: Path) -> None:
    """Recovered tokens against utility: the isotropic curves and the trained layer."""
    _privacy_utility([outcome], folder / "recovery.png")


def sweep(outcomes: list[Outcome], folder: Path) -> None:
    """The same for all layers of a sweep."""
    _privacy_utility(outcomes, folder / "sweep.png")


def _privacy_utility(outcomes: list[Outcome], path: Path) -> None:
    figure = Figure(figsize=(7, 5))
    axes: Any = figure.subplots()
    points = [pair for o in outcomes for pair in o.isotropic_curve]
    points += [(o.isotropic_std, o.isotropic) for o in outcomes]
    points.sort(key=lambda pair: pair[0])
    floor = max(outcomes[0].floors["constant vector"].attacks.values())
    ours = sorted((o.trained for o in outcomes), key=lambda e: e.retrieval_top1)
    for name in ATTACKS:
        color = COLORS[name]
        if name != "informed":  # for isotropic noise it is the nearest one
            label = "isotropic: " + ("nearest = informed" if name == "nearest" else name)
            xs = [e.retrieval_top1 for _, e in points]
            ys = [e.attacks[name] for _, e in points]
            axes.plot(xs, ys, "--o", color=color, markersize=3, label=label)
        xs, ys = [e.retrieval_top1 for e in ours], [e.attacks[name] for e in ours]
        axes.plot(xs, ys, "-*", color=color, markersize=12, label=f"trained: {name}")
    axes.axhline(floor, color="black", linestyle=":", label="constant vector: strongest")
    axes.set(
        xlabel="own passage found first", ylabel="share of tokens recovered", ylim=(-0.03, 1.03)
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    _save(figure, path)


def sigma(values: Tensor, isotropic_std: float, low: float, high: float, folder: Path) -> None:
    """Histogram of the trained standard deviations; values of any shape."""
    figure = Figure(figsize=(7, 4))
    axes: Any = figure.subplots()
    axes.hist(values.flatten().double().cpu().numpy(), bins=np.geomspace(low, high, 80).tolist())
    axes.axvline(isotropic_std, color="tab:red", linestyle="--", label="isotropic, same utility")
    axes.set(xscale="log", xlabel="sigma", ylabel="features of held-out tokens")
    axes.legend()
    _save(figure, folder / "sigma.png")


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
