"""After training: evaluate, compare with isotropic noise and with the floor, write the report."""

from __future__ import annotations

import torch
from torch import Tensor

from . import plots, report
from .evaluate import HeldOut, tune_isotropic
from .noise import ConstantVector, IsotropicNoise
from .report import Outcome
from .trainer import Run

# The isotropic curve: multiples of the table's spread, from harmless to illegible.
CURVE = (1.0, 2.0, 3.5, 5.0, 7.0, 11.0)
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
    strongest = max(trained.attacks, key=lambda name: trained.attacks[name])
    kinds, examples = _read(run, test, guessed[strongest])
    frequent = run.vocabulary.counts.argmax()
    floors = {"constant vector": test.table.mean(0), "most frequent word": test.table[frequent]}
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
        floors={
            name: test.evaluate(ConstantVector(vector), pairing) for name, vector in floors.items()
        },
        kinds=kinds,
        examples=examples,
        isotropic_std=isotropic.std,
        isotropic_curve=curve,
    )
    plots.curves(run.folder)
    plots.recovery(outcome, run.folder)
    plots.sigma(test.draw(run.layer)[2][run.test.noise_mask], isotropic.std, run)
    plots.frequency(test.token_information(run.layer, y), test, run)
    outcome.save(run.folder)
    report.write_markdown(outcome, run.folder)
    return outcome


def _read(
    run: Run, test: HeldOut, guess: Tensor
) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str]]]:
    """What an attack that named `guess` (T,) reads: by kinds of tokens, and in some passages."""
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
        "numbers": torch.tensor([w.strip("#").isdecimal() for w in words], device=tokens.device),
        f"words that training saw at most {RARE} times": counts[tokens] <= RARE,
        "all": torch.ones_like(tokens, dtype=torch.bool),
    }
