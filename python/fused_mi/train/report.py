"""The outcome of a run as report.md and terminal table; its verdict is computed from numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .attacks import ATTACKS
from .checkpoint import replacing
from .config import TrainConfig
from .evaluate import Evaluation
from .language import LanguageEvaluation

CLEARLY = 0.05  # "clearly fewer": at least this share of all tokens, under the strongest attack
SAME_UTILITY = 0.03  # shares of own passages found that are closer than this count as equal
USEFUL = 0.9  # of own passages that a useful layer finds


Attacked = Evaluation | LanguageEvaluation


def _attack(name: str) -> Callable[[Attacked], str]:
    return lambda e: f"{e.attacks[name]:.3f} +- {e.attack_errors[name]:.3f}"


# What is shown of any layer, whatever its utility.
HIDDEN: tuple[tuple[str, Callable[[Attacked], str]], ...] = (
    (
        "token information, nats",
        lambda e: f"{e.token_information_nats:.3f} +- {e.token_information_error:.3f}",
    ),
    ("token information, bits", lambda e: f"{e.token_information_nats / math.log(2):.3f}"),
    *((f"tokens recovered: {name}", _attack(name)) for name in ATTACKS),
)

ROWS: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
    (
        "own passage found first",
        lambda e: f"{e.retrieval_top1:.3f} +- {e.retrieval_top1_error:.3f}",
    ),
    ("own passage among the first five", lambda e: f"{e.retrieval_top5:.3f}"),
    ("cosine to the clean passage", lambda e: f"{e.cosine:.3f}"),
    *HIDDEN,
    ("passages, Jensen bound, nats", lambda e: f"{e.mi['jensen']:.4g}"),
    ("passages, logsumexp, nats", lambda e: f"{e.mi['logsumexp']:.4g}"),
)


@dataclass(frozen=True)
class Outcome:
    """A trained layer, isotropic noise of the same utility, both floors, and the isotropic curve,
    on the test split; ``kinds`` and ``examples`` are of the trained layer's strongest attack."""

    config: TrainConfig
    seeds: list[int]
    steps: int
    test_passages: int
    tokens: int  # of them, under noise
    token_entropy_nats: float  # -mean log p(t) of these tokens
    validation_top1: float  # what alpha and the sigma of the baseline are chosen by
    validation_top1_error: float
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
    (most, _), (baseline, _) = strongest(ours), strongest(theirs)
    clearly = hides_clearly_more(ours, theirs)
    more = ours.retrieval_top1 - theirs.retrieval_top1
    # Who finds more and hides more needs no equal utility to be better.
    if abs(more) > SAME_UTILITY and not (clearly and more > 0):
        return (
            f"No comparison at equal utility: {found}, under isotropic noise, tuned to the same on "
            f"the validation split, {theirs.retrieval_top1:.1%}."
        )
    numbers = (
        f"with {found} the strongest attack names {most:.1%} of the tokens under the trained noise "
        f"and {baseline:.1%} under isotropic noise, whose own passages are found "
        f"{theirs.retrieval_top1:.1%} of the time."
    )
    floor = outcome.floors["constant vector"]
    useless = ""
    if ours.retrieval_top1 <= floor.retrieval_top1 + SAME_UTILITY:
        useless = " Neither finds more passages than a constant vector does."
    if clearly:
        return f"Trained noise hides clearly more: {numbers}{useless}"
    if min(most, baseline) > 0.95:
        useless += (
            " Both are so weak that nearly every token can be read: a larger --alpha adds noise."
        )
    return f"Trained noise does NOT hide clearly more: {numbers}{useless}"


def strongest(evaluation: Attacked) -> tuple[float, float]:
    """The share that the strongest attack reads, and its standard error."""
    name = max(evaluation.attacks, key=lambda name: evaluation.attacks[name])
    return evaluation.attacks[name], evaluation.attack_errors[name]


def hides_clearly_more(ours: Attacked, theirs: Attacked) -> bool:
    """By the strongest attack on each side, and by more than two standard errors."""
    (most, error), (baseline, its_error) = strongest(ours), strongest(theirs)
    return baseline - most >= max(CLEARLY, 2 * math.hypot(error, its_error))


def usefulness(outcome: Outcome) -> str:
    """One sentence about the validation split, by which alpha is to be chosen."""
    found = f"{outcome.validation_top1:.1%} +- {outcome.validation_top1_error:.1%}"
    enough = outcome.validation_top1 >= USEFUL
    more = "" if enough else " It is below: a smaller --alpha keeps more."
    return (
        f"On the validation split own passages are found {found} of the time; the aim is "
        f"{USEFUL:.0%}.{more}"
    )


def chosen(outcomes: list[Outcome]) -> Outcome | None:
    """Of a sweep, the run of the largest alpha that is useful on the validation split."""
    useful = [o for o in outcomes if o.validation_top1 >= USEFUL]
    return max(useful, key=lambda o: o.config.weight, default=None)


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
        usefulness(outcome),
        "",
        f"| test split ({outcome.test_passages} passages) | " + " | ".join(titles) + " |",
        "|---|" + "---:|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in cells(outcome)),
        "",
        f"There is {outcome.token_entropy_nats:.3f} nats ({bits:.3f} bits) to be told of each of",
        f"the {outcome.tokens} noised tokens: -mean log p, p the word frequencies of the training",
        "text, smoothed over the whole vocabulary. *Token information* is what one noisy embedding",
        "tells of it to somebody who knows the layer and p. +- is a standard error, over passages:",
        "of this layer on other text; other seeds would differ by more. *Passages*: bounds",
        "of the information about a whole passage among the others; far above what there is",
        "to be told, and they do not rank layers of different kinds.",
        "",
        "Attackers: *nearest* row of the embedding table; *informed*, the most likely word for",
        "somebody who knows the layer; *posterior*, the same with the frequencies p, which of all",
        "guesses from one embedding is right most often if p holds; *neighbours*, with those of a",
        "whole passage and the pairs of words of the training text. Who knows the language better",
        "may do better. The numbers are of these attacks, not a guarantee.",
        "",
        "Three splits, disjoint: the layer is trained on the first, on the validation split",
        "alpha and the sigma of isotropic noise are chosen, all figures of the tables are of the",
        "test split. Isotropic noise has the largest sigma that finds own passages as often there.",
        "Two floors: every token becomes the same vector, the mean of all words or that of the",
        "most frequent one.",
        "",
        "| what the strongest attack names | share of the tokens | of them recovered |",
        "|---|---:|---:|",
        *(
            f"| {name} | {share:.3f} | {read:.3f} |"
            for name, (share, read) in outcome.kinds.items()
        ),
        "",
        "Test passages, and what that attack reads under the trained noise:",
        "",
        *(f"- {clean}\n  - {read}" for clean, read in outcome.examples),
        "",
        "![training curves](curves.png)",
        "![recovery against utility](recovery.png)",
        "![information by frequency](frequency.png)",
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


def show(
    passages: int, titles: Iterable[str], rows: Iterable[tuple[str, ...]], lines: Iterable[str]
) -> None:
    """A table of the test split in the terminal, and what follows from it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Test split, {passages} passages")
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)


def print_table(outcome: Outcome) -> None:
    lines = verdict(outcome), usefulness(outcome)
    show(outcome.test_passages, columns(outcome), cells(outcome), lines)


def write_sweep(outcomes: list[Outcome], folder: Path) -> None:
    """sweep.csv and sweep.md over the alphas of a sweep; the plot is in ``plots.py``."""
    own = ["retrieval_top1", "cosine", "token_information_nats"]
    head = ["alpha", "validation_top1", *own, *ATTACKS, "isotropic_std"]
    head += [f"isotropic_{name}" for name in (*own, *ATTACKS)]
    rows = []
    for o in outcomes:
        row = [o.config.weight, o.validation_top1]
        for e, before in ((o.trained, []), (o.isotropic, [o.isotropic_std])):
            row += [*before, *(getattr(e, name) for name in own), *e.attacks.values()]
        rows.append([f"{value:.6g}" for value in row])
    with replacing(folder / "sweep.csv") as path:
        path.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    best = chosen(outcomes)
    line = f"No alpha of these finds own passages {USEFUL:.0%} of the time on the validation split."
    if best:
        line = (
            f"Alpha {best.config.weight:g} is the largest of these that finds own passages "
            f"{USEFUL:.0%} of the time on the validation split ({best.validation_top1:.1%})."
        )
    lines = ["# What is hidden, against utility", "", line, ""]
    lines += ["![recovery against utility](sweep.png)", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- alpha {o.config.weight:g}: {verdict(o)}" for o in outcomes), ""]
    with replacing(folder / "sweep.md") as path:
        path.write_text("\n".join(lines))
