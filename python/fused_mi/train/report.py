"""The outcome of a run as report.md and terminal table; its verdict is computed from numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .attacks import ATTACKS
from .checkpoint import replacing
from .config import TrainConfig
from .evaluate import Evaluation

CLEARLY = 0.05  # "clearly fewer": at least this share of all tokens, under the strongest attack
SAME_UTILITY = 0.03  # shares of own passages found that are closer than this count as equal

ROWS: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
    ("own passage found first", lambda e: f"{e.retrieval_top1:.3f}"),
    ("own passage among the first five", lambda e: f"{e.retrieval_top5:.3f}"),
    ("cosine to the clean passage", lambda e: f"{e.cosine:.3f}"),
    (
        "token information, nats",
        lambda e: f"{e.token_information_nats:.3f} +- {e.token_information_error:.3f}",
    ),
    ("token information, bits", lambda e: f"{e.token_information_nats / math.log(2):.3f}"),
    ("tokens recovered: nearest", lambda e: f"{e.attacks['nearest']:.3f}"),
    ("tokens recovered: informed", lambda e: f"{e.attacks['informed']:.3f}"),
    ("tokens recovered: posterior", lambda e: f"{e.attacks['posterior']:.3f}"),
    ("tokens recovered: neighbours", lambda e: f"{e.attacks['neighbours']:.3f}"),
    ("passages, Jensen bound, nats", lambda e: f"{e.mi['jensen']:.4g}"),
    ("passages, logsumexp, nats", lambda e: f"{e.mi['logsumexp']:.4g}"),
)


@dataclass(frozen=True)
class Outcome:
    """A trained layer, isotropic noise of the same utility, the floor, and the isotropic curve;
    ``kinds`` and ``examples`` are of the trained layer and its strongest attack."""

    config: TrainConfig
    seeds: list[int]
    steps: int
    held_out: int  # passages
    tokens: int  # of them, under noise
    token_entropy_nats: float  # -mean log p(t) of these tokens
    trained: Evaluation
    baselines: dict[str, Evaluation]
    floors: dict[str, Evaluation]
    kinds: dict[str, tuple[float, float]]  # of tokens: their share, and what of them is recovered
    examples: list[tuple[str, str]]  # clean, and what the strongest attack reads
    isotropic_std: float
    isotropic_curve: list[tuple[float, Evaluation]]

    @property
    def isotropic(self) -> Evaluation:
        return self.baselines["isotropic"]

    def save(self, folder: Path) -> None:
        with replacing(folder / "evaluation.json") as path:
            numbers = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
            path.write_text(numbers + "\n")


def verdict(outcome: Outcome) -> str:
    """One sentence about the strongest attack on each side, from the numbers."""
    ours, theirs = outcome.trained, outcome.isotropic
    found = f"own passages found {ours.retrieval_top1:.1%} of the time"
    if abs(ours.retrieval_top1 - theirs.retrieval_top1) > SAME_UTILITY:
        return (
            f"No comparison at equal utility: with {found}, isotropic noise could not be tuned to "
            f"that, it reached {theirs.retrieval_top1:.1%}."
        )
    most, baseline = max(ours.attacks.values()), max(theirs.attacks.values())
    numbers = (
        f"with {found} the strongest attack names {most:.1%} of the tokens under the trained noise "
        f"and {baseline:.1%} under isotropic noise, whose own passages are found "
        f"{theirs.retrieval_top1:.1%} of the time."
    )
    floor = outcome.floors["constant vector"]
    useless = ""
    if ours.retrieval_top1 <= floor.retrieval_top1 + SAME_UTILITY:
        useless = " Neither finds more passages than a constant vector does."
    if baseline - most >= CLEARLY:
        return f"Trained noise hides clearly more: {numbers}{useless}"
    if min(most, baseline) > 0.95:
        useless += (
            " Both are so weak that nearly every token can be read: a larger --alpha adds noise."
        )
    return f"Trained noise does NOT hide clearly more: {numbers}{useless}"


def columns(outcome: Outcome) -> dict[str, Evaluation]:
    """What is compared, by its title."""
    isotropic = {f"isotropic, sigma {outcome.isotropic_std:.4f}": outcome.isotropic}
    return {"trained noise": outcome.trained, **isotropic, **outcome.floors}


def cells(outcome: Outcome) -> list[tuple[str, ...]]:
    """Name, then one of each column."""
    evaluations = columns(outcome).values()
    return [(name, *(value(e) for e in evaluations)) for name, value in ROWS]


def write_markdown(outcome: Outcome, folder: Path) -> None:
    titles = columns(outcome)
    bits = outcome.token_entropy_nats / math.log(2)
    lines = [
        "# Training report",
        "",
        verdict(outcome),
        "",
        f"| held-out text ({outcome.held_out} passages) | " + " | ".join(titles) + " |",
        "|---|" + "---:|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in cells(outcome)),
        "",
        f"There is {outcome.token_entropy_nats:.3f} nats ({bits:.3f} bits) to be told of each of",
        f"the {outcome.tokens} noised tokens: -mean log p, p the word frequencies of the training",
        "text, smoothed over the whole vocabulary. *Token information* is what one noisy embedding",
        "tells of it to somebody who knows the layer and p; +- is its standard error. *Passages*:",
        "bounds of the information about a whole passage among the others; far above what there is",
        "to be told, and they do not rank layers of different kinds.",
        "",
        "Attackers: *nearest* row of the embedding table; *informed*, the most likely word for",
        "somebody who knows the layer; *posterior*, the same with the frequencies p, which of all",
        "guesses from one embedding is right most often if p holds; *neighbours*, with those of a",
        "whole passage and the pairs of words of the training text. Who knows the language better",
        "may do better. The numbers are of these attacks, not a guarantee.",
        "",
        "Isotropic noise has the largest sigma that finds own passages as often. The constant",
        "vector is the floor: every token becomes the same one.",
        "",
        "| what the strongest attack names | share of the tokens | of them recovered |",
        "|---|---:|---:|",
        *(
            f"| {name} | {share:.3f} | {read:.3f} |"
            for name, (share, read) in outcome.kinds.items()
        ),
        "",
        "Held-out passages, and what that attack reads under the trained noise:",
        "",
        *(f"- {clean}\n  - {read}" for clean, read in outcome.examples),
        "",
        "![training curves](curves.png)",
        "![recovery against utility](recovery.png)",
        "![sigma](sigma.png)",
        "",
        "| isotropic sigma | own passage found | token information | " + " | ".join(ATTACKS) + " |",
        "|---:|---:|---:|" + "---:|" * len(ATTACKS),
        *(
            f"| {std:.4f} | {e.retrieval_top1:.4f} | {e.token_information_nats:.4f} | "
            + " | ".join(f"{e.attacks[name]:.4f}" for name in ATTACKS)
            + " |"
            for std, e in outcome.isotropic_curve
        ),
        "",
        f"After {outcome.steps} steps, alpha {outcome.config.weight:g}, with",
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
    for title in columns(outcome):
        table.add_column(title, justify="right")
    for row in cells(outcome):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(verdict(outcome), highlight=False)


def write_sweep(outcomes: list[Outcome], folder: Path) -> None:
    """sweep.csv and sweep.md over the alphas of a sweep; the plot is in ``plots.py``."""
    own = ["retrieval_top1", "cosine", "token_information_nats"]
    head = ["alpha", *own, *ATTACKS, "isotropic_std"]
    head += [f"isotropic_{name}" for name in (*own, *ATTACKS)]
    rows = []
    for o in outcomes:
        row = [o.config.weight]
        for e, before in ((o.trained, []), (o.isotropic, [o.isotropic_std])):
            row += [*before, *(getattr(e, name) for name in own), *e.attacks.values()]
        rows.append([f"{value:.6g}" for value in row])
    with replacing(folder / "sweep.csv") as path:
        path.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    lines = ["# Privacy against utility", "", "![privacy against utility](sweep.png)", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- alpha {o.config.weight:g}: {verdict(o)}" for o in outcomes), ""]
    with replacing(folder / "sweep.md") as path:
        path.write_text("\n".join(lines))
