"""After training: evaluate, compare with isotropic noise and with the floors, write the report."""

from __future__ import annotations

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
LANGUAGE_CURVE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
LANGUAGE_PASSAGES = 16
EXAMPLES, FREQUENT, RARE = 4, 50, 3


def finish(run: Run) -> Outcome:
    """Evaluates the layer of a finished run; report, plots and numbers go into its folder."""
    run.layer.eval()
    pairing = run.config.pairing
    validation, test = (
        HeldOut(run.encoder, passages, run.train, run.config.seed)
        for passages in (run.validation, run.test)
    )
    y = test.draw(run.layer)[0]
    guessed = test.guesses(run.layer, y)
    trained = test.evaluate(run.layer, pairing, guessed)
    chosen_by = validation.retrieval(run.layer)
    isotropic = tune_isotropic(validation, chosen_by.top1)
    spread = float(test.table.std())
    curve = [
        (factor * spread, test.evaluate(IsotropicNoise(factor * spread), pairing))
        for factor in CURVE
    ]
    kinds, examples = _read(run, test, guessed)
    outcome = Outcome(
        config=run.config,
        seeds=[run.config.seed],
        steps=run.step,
        test_passages=len(run.test),
        tokens=len(test.tokens),
        token_entropy_nats=test.token_entropy,
        validation_top1=chosen_by.top1,
        validation_top1_error=chosen_by.top1_error,
        trained=trained,
        baselines={"isotropic": test.evaluate(isotropic, pairing)},
        floors={name: test.evaluate(floor, pairing) for name, floor in _floors(run, test).items()},
        kinds=kinds,
        examples=examples,
        isotropic_std=isotropic.std,
        isotropic_curve=curve,
    )
    _draw(run, test, y, isotropic.std)
    plots.recovery(outcome, run.folder)
    outcome.save(run.folder)
    report.write_markdown(outcome, run.folder)
    return outcome


def finish_language(run: Run) -> LanguageOutcome:
    """The same for a causal model."""
    run.layer.eval()
    validation, test = (
        HeldOutLanguage(run.encoder, passages, run.train, run.config.seed)
        for passages in (run.validation, run.test)
    )
    y = test.draw(run.layer)[0]
    guessed = test.guesses(run.layer, y)
    trained = test.evaluate_language(run.layer, guessed)
    chosen_by = validation.prediction(run.layer)
    isotropic = language.tune_isotropic(validation, chosen_by.kl)
    kinds, examples = _read(run, test, guessed)
    passages = run.test[:LANGUAGE_PASSAGES]
    few = HeldOutLanguage(run.encoder, passages, run.train, run.config.seed)
    stds = [factor * float(test.table.std()) for factor in LANGUAGE_CURVE]
    outcome = LanguageOutcome(
        config=run.config,
        seeds=[run.config.seed],
        steps=run.step,
        test_passages=len(run.test),
        tokens=len(test.tokens),
        token_entropy_nats=test.token_entropy,
        validation_kl_nats=chosen_by.kl,
        validation_kl_error=chosen_by.kl_error,
        clean_next_token_nats=test.clean_next_token(),
        trained=trained,
        baselines={"isotropic": test.evaluate_language(isotropic)},
        floors={name: test.evaluate_language(floor) for name, floor in _floors(run, test).items()},
        kinds=kinds,
        examples=examples,
        isotropic_std=isotropic.std,
        isotropic_curve=[(std, few.evaluate_language(IsotropicNoise(std))) for std in stds],
    )
    _draw(run, test, y, isotropic.std)
    outcome.save(run.folder)
    language_report.write_markdown(outcome, run.folder)
    return outcome


def _floors(run: Run, test: HeldOut) -> dict[str, ConstantVector]:
    """Layers that tell nothing."""
    frequent = run.vocabulary.counts.argmax()
    vectors = {"constant vector": test.table.mean(0), "most frequent word": test.table[frequent]}
    return {name: ConstantVector(vector) for name, vector in vectors.items()}


def _draw(run: Run, test: HeldOut, y: Tensor, isotropic_std: float) -> None:
    """What is drawn of every run; y is (P, S, E)."""
    plots.curves(run.folder)
    plots.sigma(test.draw(run.layer)[2][run.test.noise_mask], isotropic_std, run)
    plots.frequency(test.token_information(run.layer, y), test, run)


def _read(
    run: Run, test: HeldOut, guessed: dict[str, Tensor]
) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str]]]:
    """What the strongest attack reads, of guesses (T,): by kinds of tokens, and in some
    passages."""
    guess = max(guessed.values(), key=lambda guess: test.share(guess)[0])
    right = (guess == test.tokens).double()
    kinds = {
        name: (here.double().mean().item(), right[here].mean().item())
        for name, here in _kinds(run, test.tokens).items()
        if bool(here.any())
    }
    ids = run.test.ids.clone()
    ids[run.test.noise_mask] = guess
    examples = []
    for row in range(min(EXAMPLES, len(ids))):
        here = run.test.noise_mask[row]
        clean, read = (run.tokenizer.decode(t[row][here].tolist()) for t in (run.test.ids, ids))
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
