"""The PNG plots of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from . import metrics
from .ablation import Layer
from .attacks import ATTACKS
from .checkpoint import replacing
from .evaluate import HeldOut, over_passages
from .monitor import PREFIX
from .report import Outcome, strongest
from .trainer import Run

matplotlib.use("Agg")  # no display is needed

from matplotlib.figure import Figure

COLORS = dict(zip(ATTACKS, ("tab:blue", "tab:orange", "tab:red", "tab:purple"), strict=True))


SMOOTHED = 5  # values of the validation split on either side, whose mean and error are drawn
BINS = 12  # of frequencies
KINDS = {
    "tokens": "tab:blue",
    "passages": "tab:green",
    "std": "tab:orange",
    "none": "tab:brown",
    "isotropic": "tab:gray",
}
FLOORS = dict(zip(("constant vector", "most frequent word"), (":", "-."), strict=True))


def curves(folder: Path) -> None:
    """Loss, own passages found (of a causal model: agreement) and the information over the steps;
    of the validation split smoothed, with two standard errors."""
    rows = metrics.read(folder)
    figure = Figure(figsize=(12, 3.5))
    kept = "found" if "found" in rows[0] else "agreement"
    for axes, name in zip(figure.subplots(1, 3), ("loss", kept, "information"), strict=True):
        steps, values = _column(rows, name)
        axes.plot(steps, values, color="0.7", linewidth=0.8, label="batch")
        steps, values = _column(rows, f"{PREFIX}{name}")
        if len(steps):
            mean, error = smoothed(values)
            axes.plot(steps, mean, color="tab:blue", label="validation, smoothed")
            axes.fill_between(steps, mean - 2 * error, mean + 2 * error, alpha=0.25)
        axes.set(xlabel="step", title=name.replace("_", " "))
        if name == "information":
            axes.set(ylabel="nats")
        axes.legend()
        axes.grid(alpha=0.3)
    _save(figure, folder / "curves.png")


def _column(rows: list[dict[str, float]], name: str) -> tuple[Any, Any]:
    """Steps and values, where there are any."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def smoothed(values: Any) -> tuple[Any, Any]:
    """Mean of each value's neighbourhood, and its standard error; of a line fitted to it, so that
    the slope is no error."""
    means, errors = [], []
    for n in range(len(values)):
        here = np.arange(max(0, n - SMOOTHED), min(len(values), n + SMOOTHED + 1))
        if len(here) < 3:
            means.append(values[n])
            errors.append(0.0)
            continue
        (_, middle), residuals, *_ = np.polyfit(here - n, values[here], 1, full=True)
        leverage = 1 / len(here) + (here.mean() - n) ** 2 / ((here - here.mean()) ** 2).sum()
        variance = float(residuals[0]) / (len(here) - 2) if len(residuals) else 0.0
        means.append(middle)
        errors.append(np.sqrt(variance * leverage))
    return np.array(means), np.array(errors)


def recovery(outcome: Outcome, folder: Path) -> None:
    """Recovered tokens against utility: the isotropic curves, the trained layer, both floors."""
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
    ours = sorted((o.trained for o in outcomes), key=lambda e: e.retrieval_top1)
    for name in ATTACKS:
        color = COLORS[name]
        if name != "informed":  # for isotropic noise it is the nearest one
            label = "isotropic: " + ("nearest = informed" if name == "nearest" else name)
            xs = [e.retrieval_top1 for _, e in points]
            ys = [e.attacks[name] for _, e in points]
            axes.plot(xs, ys, "--o", color=color, markersize=3, label=label)
        axes.errorbar(
            [e.retrieval_top1 for e in ours],
            [e.attacks[name] for e in ours],
            xerr=[2 * e.retrieval_top1_error for e in ours],
            yerr=[2 * e.attack_errors[name] for e in ours],
            fmt="-*",
            color=color,
            markersize=10,
            capsize=2,
            label=f"trained: {name}",
        )
    for name, style in FLOORS.items():
        floor = strongest(outcomes[0].floors[name])[0]
        axes.axhline(floor, color="black", linestyle=style, label=f"{name}: strongest")
    axes.set(
        xlabel="own passage found first", ylabel="share of tokens recovered", ylim=(-0.03, 1.03)
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    _save(figure, path)


def frequency(information: Tensor, test: HeldOut, run: Run) -> None:
    """What is told of a noised token (T,) against how often training saw its word, beside what
    there is to be told."""
    figure = Figure(figsize=(7, 4))
    axes: Any = figure.subplots()
    counts = run.vocabulary.counts[test.tokens]
    edges = torch.logspace(0, np.log10(float(counts.max()) + 1), BINS + 1).round().unique()
    xs, means, errors, most = [], [], [], []
    # Words that training never saw stand at the left, as if seen half a time.
    for low, high in zip([0.0, *edges[:-1].tolist()], edges.tolist(), strict=True):
        here = (counts >= low) & (counts < high)
        if not bool(here.any()):
            continue
        mask = run.test.noise_mask.clone()
        mask[run.test.noise_mask] = here
        mean, error = over_passages(information[here], mask)
        xs.append(float(counts[here].double().clamp(min=0.5).log().mean().exp()))
        means.append(mean)
        errors.append(2 * error)
        most.append(-float(test.log_prior[test.tokens[here]].mean()))
    axes.errorbar(xs, means, yerr=errors, fmt="-o", capsize=2, label="token information")
    axes.plot(xs, most, "--", color="black", label="to be told: -log p")
    axes.set(xscale="log", xlabel="times that training saw the word", ylabel="nats, test split")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, run.folder / "frequency.png")


def sigma(values: Tensor, isotropic_std: float, run: Run) -> None:
    """Histogram of the trained standard deviations; values of any shape."""
    figure = Figure(figsize=(7, 4))
    axes: Any = figure.subplots()
    low, high = run.config.min_std, run.config.max_std
    axes.hist(values.flatten().double().cpu().numpy(), bins=np.geomspace(low, high, 80).tolist())
    axes.axvline(isotropic_std, color="tab:red", linestyle="--", label="isotropic, same utility")
    axes.set(xscale="log", xlabel="sigma", ylabel="features of test tokens")
    axes.legend()
    _save(figure, run.folder / "sigma.png")


def ablation(layers: list[Layer], reached: list[dict[int, Layer]], folder: Path) -> None:
    """The strongest attack and the information, against the retrieval, of all layers; lines join
    those of one seed; large where the retrieval is the one that was aimed at."""
    large = {layer.name for row in reached for layer in row.values()}
    figure = Figure(figsize=(14, 5))
    for number, axes in enumerate(figure.subplots(1, 2)):
        for noise, color in KINDS.items():
            here = [x for x in layers if x.noise.split("-")[0] == noise]
            if not here:
                continue
            here.sort(key=lambda x: x.strength)
            xs = [x.test.retrieval_top1 for x in here]
            ys = [_hidden(x)[number] for x in here]
            for seed in {x.seed for x in here}:
                line = [n for n, x in enumerate(here) if x.seed == seed]
                axes.plot([xs[n] for n in line], [ys[n][0] for n in line], color=color, alpha=0.5)
            axes.errorbar(
                xs,
                [y for y, _ in ys],
                xerr=[2 * x.test.retrieval_top1_error for x in here],
                yerr=[2 * error for _, error in ys],
                fmt="none",
                ecolor=color,
                elinewidth=0.7,
            )
            sizes = [60 if x.name in large else 15 for x in here]
            axes.scatter(xs, [y for y, _ in ys], s=sizes, color=color, label=noise)
        for name, style in FLOORS.items():
            floors = [_hidden(x)[number][0] for x in layers if x.noise == name]
            if floors:
                mean = sum(floors) / len(floors)
                axes.axhline(mean, color="black", linestyle=style, label=f"floor: {name}")
        what = ("share of tokens that the strongest attack reads", "token information, nats")
        axes.set(xlabel="own passage found first, test split", ylabel=what[number])
        axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    _save(figure, folder / "ablation.png")


def _hidden(layer: Layer) -> tuple[tuple[float, float], tuple[float, float]]:
    """Share that the strongest attack reads, and token information, with their errors."""
    test = layer.test
    return strongest(test), (test.token_information_nats, test.token_information_error)


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
