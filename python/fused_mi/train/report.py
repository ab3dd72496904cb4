"""The outcome of a run as report.md and terminal table; its verdict is computed from numbers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import replacing
from .config import TrainConfig
from .evaluate import ATTACKS, Evaluation

CLEARLY = 0.05  # "clearly fewer": at least this share of all tokens, under the strongest attack
SAME_UTILITY = 0.01  # utilities closer than this count as equal

ROWS = (
    ("utility (cosine)", lambda e: e.utility),
    ("MI, Jensen bound, nats/passage", lambda e: e.mi["jensen"]),
    ("MI, Jensen bound, nats/feature", lambda e: e.mi_per_feature["jensen"]),
    ("MI, logsumexp, nats/passage", lambda e: e.mi["logsumexp"]),
    ("MI, logsumexp, nats/feature", lambda e: e.mi_per_feature["logsumexp"]),
    ("tokens recovered: nearest", lambda e: e.recovery["nearest"]),
    ("tokens recovered: informed", lambda e: e.recovery["informed"]),
    ("tokens recovered: informed + prior", lambda e: e.recovery["prior"]),
)


@dataclass(frozen=True)
class Outcome:
    """A trained layer, the isotropic noise of the same utility, and the isotropic curve."""

    config: TrainConfig
    steps: int
    features: int
    held_out: int
    trained: Evaluation
    isotropic_std: float
    isotropic: Evaluation
    isotropic_curve: list[tuple[float, Evaluation]]

    def save(self, folder: Path) -> None:
        with replacing(folder / "evaluation.json") as path:
            path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def verdict(outcome: Outcome) -> str:
    """One sentence about the strongest attack on each side."""
    ours, theirs = outcome.trained, outcome.isotropic
    gap = abs(ours.utility - theirs.utility)
    if gap > SAME_UTILITY:
        return (
            f"No comparison at equal utility: isotropic noise could not be tuned to "
            f"{ours.utility:.3f}, it reached {theirs.utility:.3f}."
        )
    most, baseline = max(ours.recovery.values()), max(theirs.recovery.values())
    numbers = (
        f"at utility {ours.utility:.3f} the strongest attack recovers {most:.1%} of the tokens "
        f"under the trained noise and {baseline:.1%} under isotropic noise."
    )
    if baseline - most >= CLEARLY:
        return f"Trained noise hides clearly more: {numbers}"
    weak = ""
    if min(most, baseline) > 0.95:
        weak = " Both are so weak that nearly every token can be read; a larger --alpha adds noise."
    return f"Trained noise does NOT hide clearly more: {numbers}{weak}"


def cells(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Name, trained, isotropic."""
    return [
        (name, f"{value(outcome.trained):.4f}", f"{value(outcome.isotropic):.4f}")
        for name, value in ROWS
    ]


def write_markdown(outcome: Outcome, folder: Path) -> None:
    isotropic = f"isotropic, sigma {outcome.isotropic_std:.4f}"
    lines = [
        "# Training report",
        "",
        verdict(outcome),
        "",
        f"| held-out text ({outcome.held_out} passages) | trained noise | {isotropic} |",
        "|---|---:|---:|",
        *(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in cells(outcome)),
        "",
        "Isotropic noise is tuned by bisection to the same utility. d/2 is subtracted from every",
        "MI; both estimators are evaluated, whichever was trained. Attackers: *nearest* row of the",
        "embedding table; *informed*, the most likely word for somebody who knows the layer;",
        "*prior*, the same with the word frequencies of the training text.",
        "",
        "![training curves](curves.png)",
        "![recovery against utility](recovery.png)",
        "![sigma](sigma.png)",
        "",
        "| isotropic sigma | utility | " + " | ".join(ATTACKS) + " |",
        "|---:|---:|" + "---:|" * len(ATTACKS),
        *(
            f"| {std:.4f} | {e.utility:.4f} | "
            + " | ".join(f"{e.recovery[name]:.4f}" for name in ATTACKS)
            + " |"
            for std, e in outcome.isotropic_curve
        ),
        "",
        f"After {outcome.steps} steps, with",
        "",
        "```json",
        json.dumps(dataclasses.asdict(outcome.config), indent=2),
        "```",
        "",
    ]
    with replacing(folder / "report.md") as path:
        path.write_text("\n".join(lines))


def print_table(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Held-out text, {outcome.held_out} passages")
    table.add_column("")
    table.add_column("trained", justify="right")
    table.add_column(f"isotropic, sigma {outcome.isotropic_std:.4f}", justify="right")
    for row in cells(outcome):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(verdict(outcome), highlight=False)


def write_sweep(outcomes: list[Outcome], folder: Path) -> None:
    """sweep.csv and sweep.md over the alphas of a sweep; the plot is in ``plots.py``."""
    head = ["alpha", "utility", "mi_per_feature", *ATTACKS]
    head += ["isotropic_std", "isotropic_utility", *(f"isotropic_{name}" for name in ATTACKS)]
    rows = []
    for o in outcomes:
        ours, theirs = o.trained, o.isotropic
        row = [o.config.alpha, ours.utility, ours.mi_per_feature["jensen"]]
        row += [ours.recovery[name] for name in ATTACKS]
        row += [o.isotropic_std, theirs.utility, *(theirs.recovery[name] for name in ATTACKS)]
        rows.append([f"{value:.6g}" for value in row])
    with replacing(folder / "sweep.csv") as path:
        path.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    lines = ["# Privacy against utility", "", "![privacy against utility](sweep.png)", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- alpha {o.config.alpha:g}: {verdict(o)}" for o in outcomes), ""]
    with replacing(folder / "sweep.md") as path:
        path.write_text("\n".join(lines))
