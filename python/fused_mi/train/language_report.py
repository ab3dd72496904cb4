"""The outcome of a run with a causal model as report.md and terminal table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import replacing
from .config import TrainConfig
from .language import LanguageEvaluation
from .report import HIDDEN, hides_clearly_more, show, strongest

SAME_KL = 0.05  # divergences that are closer than this share of the larger one count as equal

ROWS: tuple[tuple[str, Callable[[LanguageEvaluation], str]], ...] = (
    ("KL of the next token, nats", lambda e: f"{e.kl_nats:.3f} +- {e.kl_error:.3f}"),
    ("same most likely next token", lambda e: f"{e.top1_agreement:.3f}"),
    ("-log p of the next token, nats", lambda e: f"{e.next_token_nats:.3f}"),
    *HIDDEN,
)


@dataclass(frozen=True)
class LanguageOutcome:
    """As `report.Outcome`; ``clean_next_token_nats`` is -log p of the next token without noise."""

    config: TrainConfig
    seeds: list[int]
    steps: int
    test_passages: int
    tokens: int  # of them, under noise
    token_entropy_nats: float  # -mean log p(t) of these tokens
    validation_kl_nats: float  # what the sigma of the baseline is chosen by
    validation_kl_error: float
    clean_next_token_nats: float
    trained: LanguageEvaluation
    baselines: dict[str, LanguageEvaluation]
    floors: dict[str, LanguageEvaluation]
    kinds: dict[str, tuple[float, float]]  # of tokens: their share, and what of them is recovered
    examples: list[tuple[str, str]]  # clean, and what the strongest attack reads
    isotropic_std: float
    isotropic_curve: list[tuple[float, LanguageEvaluation]]

    def save(self, folder: Path) -> None:
        with replacing(folder / "evaluation.json") as path:
            numbers = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
            path.write_text(numbers + "\n")


def verdict(outcome: LanguageOutcome) -> str:
    """One sentence about the strongest attack on each side, from the numbers."""
    ours, theirs = outcome.trained, outcome.baselines["isotropic"]
    floor = outcome.floors["constant vector"]
    clearly = hides_clearly_more(ours, theirs)
    more = ours.kl_nats - theirs.kl_nats
    # Who keeps more and hides more needs no equal utility to be better.
    if abs(more) > SAME_KL * max(ours.kl_nats, theirs.kl_nats) and not (clearly and more < 0):
        return (
            f"No comparison at equal utility: the KL is {ours.kl_nats:.3f} nats, under isotropic "
            f"noise, tuned to the same on the validation split, {theirs.kl_nats:.3f}."
        )
    (most, _), (baseline, _) = strongest(ours), strongest(theirs)
    numbers = (
        f"with a KL of {ours.kl_nats:.3f} nats per token the strongest attack names {most:.1%} of "
        f"the tokens under the trained noise and {baseline:.1%} under isotropic noise, whose KL is "
        f"{theirs.kl_nats:.3f}."
    )
    useless = ""
    if ours.kl_nats >= (1 - SAME_KL) * floor.kl_nats:
        useless = " Neither predicts better than from a constant vector."
    if clearly:
        return f"Trained noise hides clearly more: {numbers}{useless}"
    return f"Trained noise does NOT hide clearly more: {numbers}{useless}"


def columns(outcome: LanguageOutcome) -> dict[str, LanguageEvaluation]:
    """What is compared, by its title."""
    title = f"isotropic, sigma {outcome.isotropic_std:.4f}"
    return {
        "trained noise": outcome.trained,
        title: outcome.baselines["isotropic"],
        **outcome.floors,
    }


def cells(outcome: LanguageOutcome) -> list[tuple[str, ...]]:
    """Name, then one of each column."""
    return [(name, *(value(e) for e in columns(outcome).values())) for name, value in ROWS]


def write_markdown(outcome: LanguageOutcome, folder: Path) -> None:
    titles, config = columns(outcome), outcome.config
    seen = outcome.steps * config.batch_size * config.seq_len
    lines = [
        "# Training report",
        "",
        verdict(outcome),
        "",
        f"On the validation split the KL is {outcome.validation_kl_nats:.3f} +- "
        f"{outcome.validation_kl_error:.3f} nats.",
        "",
        f"| test split ({outcome.test_passages} passages) | " + " | ".join(titles) + " |",
        "|---|" + "---:|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in cells(outcome)),
        "",
        "*KL*: of the distributions of the next token, that of the clean text from that under",
        "noise, mean over the positions. +- is a standard error, over passages: of this layer on",
        "other text; other seeds would differ by more. Without noise -log p of the next token is",
        f"{outcome.clean_next_token_nats:.3f} nats. There is",
        f"{outcome.token_entropy_nats:.3f} nats to be told of each of the {outcome.tokens} noised",
        "tokens: -mean log p, p the word frequencies of the training text, smoothed over the whole",
        "vocabulary. *Token information* is what one noisy embedding tells of it to somebody who",
        "knows the layer and p. Attackers are those of docs/training.md; a language model that",
        "reads the noisy embeddings may do better. The numbers are of these attacks, not a",
        "guarantee.",
        "",
        "Three splits, disjoint: the layer is trained on the first, on the validation split the",
        "sigma of isotropic noise is chosen, the largest whose KL is no larger there; all figures",
        "of the tables are of the test split. Two floors: every token becomes the same vector, the",
        "mean of all words or that of the most frequent one.",
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
        "| isotropic sigma | KL | same next token | token information | posterior |",
        "|---:|---:|---:|---:|---:|",
        *(
            f"| {std:.4f} | {e.kl_nats:.3f} | {e.top1_agreement:.3f} | "
            f"{e.token_information_nats:.3f} | {e.attacks['posterior']:.3f} |"
            for std, e in outcome.isotropic_curve
        ),
        "",
        "![training curves](curves.png)",
        "![information by frequency](frequency.png)",
        "![sigma](sigma.png)",
        "",
        f"After {outcome.steps} steps of {config.batch_size} passages of at most {config.seq_len}",
        f"tokens ({seen:,} at most in all), alpha {config.weight:g}, with",
        "",
        "```json",
        json.dumps(dataclasses.asdict(config), indent=2),
        "```",
        "",
    ]
    with replacing(folder / "report.md") as path:
        path.write_text("\n".join(lines))


def print_table(outcome: LanguageOutcome) -> None:
    show(outcome.test_passages, columns(outcome), cells(outcome), [verdict(outcome)])
