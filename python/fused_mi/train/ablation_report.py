"""What an ablation found: ``ablation.md``, ``ablation.json`` and a plot. Its first line is computed
from the numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import plots
from .ablation import CURVES, FLOORS, TOLERANCE, Ablation, Layer, next_alpha
from .attacks import ATTACKS
from .checkpoint import replacing
from .report import strongest

COMPARED = (*CURVES, "isotropic-x1")
# Student's t at 97.5 %, of 1, 2, ... degrees of freedom; the last one of all others.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Interval(NamedTuple):
    """Mean over seeds, and half of the 95 % interval of it; NaN of one seed."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if math.isnan(self.half) else f" +- {self.half:.3f}")


def interval(values: Sequence[float]) -> Interval:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan)
    t = _STUDENT[min(len(values) - 1, len(_STUDENT)) - 1]
    return Interval(mean, t * statistics.stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Row:
    """A kind of noise: its layers at the retrieval that is aimed at, at most one of a seed, and
    why other seeds have none."""

    noise: str
    layers: dict[int, Layer]
    missing: dict[int, str]

    @property
    def title(self) -> str:
        return self.noise.removesuffix("-x1")

    def over_seeds(self, values: Sequence[float]) -> str:
        return str(interval(values)) if values else ""


def rows_of(ablation: Ablation) -> list[Row]:
    """Of everything that is to be compared, in the order of `COMPARED`."""
    layers = ablation.layers()
    seeds = sorted({layer.seed for layer in layers})
    rows = []
    for noise in COMPARED:
        row = Row(noise, {}, {})
        for seed in seeds:
            found = [x for x in layers if (x.noise, x.seed) == (noise, seed)]
            if not found:
                continue
            best = min(found, key=lambda x: abs(x.validation_top1 - ablation.target))
            if ablation.reached(best.validation_top1):
                row.layers[seed] = best
            else:
                row.missing[seed] = _why(noise, found, ablation.target)
        if row.layers or row.missing:
            rows.append(row)
    return rows


def _why(noise: str, found: list[Layer], target: float) -> str:
    name = "sigma" if noise.startswith("isotropic") else "alpha"
    above = [x for x in found if x.validation_top1 >= target]
    below = [x for x in found if x.validation_top1 < target]
    ends = []
    if above:
        last = max(above, key=lambda x: x.strength)
        ends.append(f"{last.validation_top1:.3f} at {name} {last.strength:g}")
    if below:
        first = min(below, key=lambda x: x.strength)
        ends.append(f"{first.validation_top1:.3f} at {name} {first.strength:g}")
    known = {x.strength: x.validation_top1 for x in found}
    over = noise not in CURVES or noise == "none" or next_alpha(known, target) is None
    return f"{'not reachable' if over else 'not reached so far'}: " + ", ".join(ends)


def most(layer: Layer) -> float:
    """The share of tokens that its strongest attack reads."""
    return strongest(layer.test)[0]


def verdict(rows: list[Row], target: float) -> str:
    """Which noise lets its strongest attack read least, and whether the seeds agree on it."""
    found = (
        f"own passages found {target:.0%} +- {TOLERANCE:.0%} of the time on the validation split"
    )
    compared = [row for row in rows if row.layers]
    ranked = sorted(compared, key=lambda r: statistics.fmean(map(most, r.layers.values())))
    if len(ranked) < 2:
        return f"Nothing to compare: fewer than two kinds of noise reach {found}."
    best, second = ranked[:2]
    common = sorted(best.layers.keys() & second.layers.keys())
    own = interval([most(x) for x in best.layers.values()])
    numbers = f"the strongest attack reads {_percent(own)} % of the tokens"
    if not common:
        return f"With {found} {best.title} comes first ({numbers}); no seed has {second.title} too."
    less = interval([most(second.layers[s]) - most(best.layers[s]) for s in common])
    by = f"{_percent(less)} percentage points less than under {second.title}"
    seeds = f"95 % intervals over {len(common)} seed{'s' * (len(common) > 1)}"
    if less.mean - less.half > 0:
        return f"{best.title} hides most with {found}: {numbers}, {by} ({seeds})."
    return (
        f"No objective hides measurably more than all others with {found}: under {best.title} "
        f"{numbers}, {by} ({seeds})."
    )


def _percent(value: Interval) -> str:
    half = "" if math.isnan(value.half) else f" +- {100 * value.half:.1f}"
    return f"{100 * value.mean:.1f}{half}"


def write(ablation: Ablation) -> str:
    """Table, numbers and plot of what is there; returns the first line."""
    layers, rows = ablation.layers(), rows_of(ablation)
    line = verdict(rows, ablation.target)
    with replacing(ablation.folder / "ablation.json") as path:
        numbers = {
            "verdict": line,
            "target": ablation.target,
            "tolerance": TOLERANCE,
            "config": dataclasses.asdict(ablation.base),
            "reached": {r.noise: {s: x.name for s, x in r.layers.items()} for r in rows},
            "not_reached": {r.noise: r.missing for r in rows if r.missing},
            "seconds": sum(layer.seconds for layer in layers),
            "layers": {layer.name: dataclasses.asdict(layer) for layer in layers},
        }
        path.write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    with replacing(ablation.folder / "ablation.md") as path:
        path.write_text("\n".join(_markdown(ablation, layers, rows, line)))
    plots.ablation(layers, [row.layers for row in rows], ablation.folder)
    return line


def _markdown(ablation: Ablation, layers: list[Layer], rows: list[Row], line: str) -> list[str]:
    trained = [layer for layer in layers if layer.noise in CURVES]
    entropy = interval([x.token_entropy_nats for x in {x.seed: x for x in layers}.values()])
    titles = "noise", "alpha or sigma", "validation", "test", "nats", *ATTACKS
    floors = [Row(noise, {x.seed: x for x in layers if x.noise == noise}, {}) for noise in FLOORS]
    return [
        "# Objectives at equal retrieval",
        "",
        line,
        "",
        "| " + " | ".join(titles) + " |",
        "|---|" + "---:|" * (len(titles) - 1),
        *(_line(row) for row in [*rows, *floors] if row.layers),
        "",
        *(f"- {row.title}, seed {s}: {why}." for row in rows for s, why in row.missing.items()),
        "",
        "*Validation*, *test*: how often a noisy passage finds its own clean one, on the split",
        "that alpha (sigma of isotropic noise) was searched on, and on the one that everything to",
        "the right is measured on. *nats*: what one embedding tells about its token, of",
        f"{entropy} to be told. Then the shares of tokens that each attack reads. Mean over the",
        "seeds and half of its 95 % interval (Student); a seed fixes splits, weights, batches and",
        "noise. The floors put the same vector in place of every token.",
        "",
        "![what is hidden against utility](ablation.png)",
        "",
        "Lines join the layers of one seed, bars are two standard errors over passages; large: the",
        "layers of the table.",
        "",
        f"{len(trained)} layers were trained, {ablation.base.steps} steps each;",
        f"{sum(layer.seconds for layer in layers) / 60:.0f} minutes for all, added up.",
        "All numbers of each layer: [ablation.json](ablation.json).",
        "",
        "| layer | validation | test | nats | " + " | ".join(ATTACKS) + " | seconds |",
        "|---|" + "---:|" * (4 + len(ATTACKS)),
        *(
            f"| {x.name} | {x.validation_top1:.3f} | {x.test.retrieval_top1:.3f} | "
            f"{x.test.token_information_nats:.3f} | "
            + " | ".join(f"{x.test.attacks[name]:.3f}" for name in ATTACKS)
            + f" | {x.seconds:.0f} |"
            for x in layers
        ),
        "",
    ]


def _line(row: Row) -> str:
    layers = list(row.layers.values())
    cells = [
        row.title,
        ", ".join(f"{x.strength:.3g}" for x in layers),
        row.over_seeds([x.validation_top1 for x in layers]),
        row.over_seeds([x.test.retrieval_top1 for x in layers]),
        row.over_seeds([x.test.token_information_nats for x in layers]),
        *(row.over_seeds([x.test.attacks[name] for x in layers]) for name in ATTACKS),
    ]
    return "| " + " | ".join(cells) + " |"
