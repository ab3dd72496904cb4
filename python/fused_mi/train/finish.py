"""After training: evaluate, compare with isotropic noise and with the floor, write the report."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import language, language_report, plots, report
from .evaluate import HeldOut, tune_isotropic
from .language import HeldOutLanguage
from .language_report import LanguageOutcome
from .noise import ConstantVector, IsotropicNoise
from .report import Outcome
from .trainer import Run

# The isotropic curve: multiples of the table's spread, from harmless to illegible.
CURVE = (1.0, 2.0, 3.5, 5.0, 7.0, 11.0)
CURVE_PASSAGES = 64
LANGUAGE_CURVE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LANGUAGE_PASSAGES = 16
EXAMPLES, FREQUENT, RARE = 4, 50, 3


def finish(run: Run) -> Outcome:
    """Evaluates the layer of a finished run; report, plots and numbers go into its folder."""
    run.layer.eval()
    pairing = run.config.pairing
    held_out = HeldOut(run.encoder, run.held_out, run.train, run.config.seed)
    guessed = held_out.guesses(run.layer, held_out.draw(run.layer)[0])
    trained = held_out.evaluate(run.layer, pairing, guessed)
    isotropic = tune_isotropic(held_out, trained.retrieval_top1)
    few = HeldOut(run.encoder, run.held_out[:CURVE_PASSAGES], run.train, run.config.seed)
    spread = float(held_out.table.std())
    curve = [
        (factor * spread, few.evaluate(IsotropicNoise(factor * spread), pairing))
        for factor in CURVE
    ]
    strongest = max(trained.attacks, key=lambda name: trained.attacks[name])
    kinds, examples = _read(run, held_out, guessed[strongest])
    constant = ConstantVector(held_out.table.mean(0))
    outcome = Outcome(
        config=run.config,
        seeds=[run.config.seed],
        steps=run.step,
        held_out=len(run.held_out),
        tokens=len(held_out.tokens),
        token_entropy_nats=held_out.token_entropy,
        trained=trained,
        baselines={"isotropic": held_out.evaluate(isotropic, pairing)},
        floors={"constant vector": held_out.evaluate(constant, pairing)},
        kinds=kinds,
        examples=examples,
        isotropic_std=isotropic.std,
        isotropic_curve=curve,
    )
    _write(outcome, run, held_out, run.folder)
    return outcome


def finish_language(run: Run) -> LanguageOutcome:
    """The same for a causal model."""
    run.layer.eval()
    held_out = HeldOutLanguage(run.encoder, run.held_out, run.train, run.config.seed)
    guessed = held_out.guesses(run.layer, held_out.draw(run.layer)[0])
    trained = held_out.evaluate_language(run.layer, guessed)
    isotropic = language.tune_isotropic(held_out, trained.kl_nats)
    strongest = max(trained.attacks, key=lambda name: trained.attacks[name])
    kinds, examples = _read(run, held_out, guessed[strongest])
    constant = ConstantVector(held_out.table.mean(0))
    passages = run.held_out[:LANGUAGE_PASSAGES]
    few = HeldOutLanguage(run.encoder, passages, run.train, run.config.seed)
    stds = [factor * float(held_out.table.std()) for factor in LANGUAGE_CURVE]
    outcome = LanguageOutcome(
        config=run.config,
        seeds=[run.config.seed],
        steps=run.step,
        held_out=len(run.held_out),
        tokens=len(held_out.tokens),
        token_entropy_nats=held_out.token_entropy,
        clean_next_token_nats=held_out.clean_next_token(),
        trained=trained,
        baselines={"isotropic": held_out.evaluate_language(isotropic)},
        floors={"constant vector": held_out.evaluate_language(constant)},
        kinds=kinds,
        examples=examples,
        isotropic_std=isotropic.std,
        isotropic_curve=[(std, few.evaluate_language(IsotropicNoise(std))) for std in stds],
    )
    _draw_sigma(run, held_out, isotropic.std)
    plots.curves(run.folder)
    outcome.save(run.folder)
    language_report.write_markdown(outcome, run.folder)
    return outcome


def _read(
    run: Run, held_out: HeldOut, guess: Tensor
) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str]]]:
    """What an attack that named `guess` (T,) reads: by kinds of tokens, and in some passages."""
    right = (guess == held_out.tokens).double()
    kinds = {
        name: (here.double().mean().item(), right[here].mean().item())
        for name, here in _kinds(run, held_out.tokens).items()
        if bool(here.any())
    }
    ids = run.held_out.ids.clone()
    ids[run.held_out.noise_mask] = guess
    examples = []
    for row in range(min(EXAMPLES, len(ids))):
        here = run.held_out.noise_mask[row]
        clean, read = (run.tokenizer.decode(t[row][here].tolist()) for t in (run.held_out.ids, ids))
        examples.append((clean, read))
    return kinds, examples


def _kinds(run: Run, tokens: Tensor) -> dict[str, Tensor]:
    """Which of the tokens (T,) are of which kind."""
    counts = run.vocabulary.counts
    often = counts.argsort(descending=True)[:FREQUENT]
    words = run.tokenizer.convert_ids_to_tokens(tokens.tolist())
    return {
        f"the {FREQUENT} most frequent words": torch.isin(tokens, often),
        "numbers": torch.tensor([w.strip("#Ġ▁").isdecimal() for w in words], device=tokens.device),
        f"words that training saw at most {RARE} times": counts[tokens] <= RARE,
        "all": torch.ones_like(tokens, dtype=torch.bool),
    }


def _write(outcome: Outcome, run: Run, held_out: HeldOut, folder: Path) -> None:
    plots.curves(folder)
    plots.recovery(outcome, folder)
    _draw_sigma(run, held_out, outcome.isotropic_std)
    outcome.save(folder)
    report.write_markdown(outcome, folder)


def _draw_sigma(run: Run, held_out: HeldOut, isotropic_std: float) -> None:
    sigma = held_out.draw(run.layer)[2][run.held_out.noise_mask]
    plots.sigma(sigma, isotropic_std, run.config.min_std, run.config.max_std, run.folder)
