"""After training: evaluate, compare with isotropic noise and with the floor, write the report."""

from __future__ import annotations

from pathlib import Path

from . import plots, report
from .evaluate import HeldOut, tune_isotropic
from .noise import ConstantVector, IsotropicNoise
from .report import Outcome
from .trainer import Run

# The isotropic curve: multiples of the table's spread, from harmless to illegible.
CURVE = (1.0, 2.0, 3.5, 5.0, 7.0, 11.0)
CURVE_PASSAGES = 64


def finish(run: Run) -> Outcome:
    """Evaluates the layer of a finished run; report, plots and numbers go into its folder."""
    run.layer.eval()
    pairing = run.config.pairing
    held_out = HeldOut(run.encoder, run.held_out, run.train, run.config.seed)
    trained = held_out.evaluate(run.layer, pairing)
    isotropic = tune_isotropic(held_out, trained.retrieval_top1)
    few = HeldOut(run.encoder, run.held_out[:CURVE_PASSAGES], run.train, run.config.seed)
    spread = float(held_out.table.std())
    curve = [
        (factor * spread, few.evaluate(IsotropicNoise(factor * spread), pairing))
        for factor in CURVE
    ]
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
        isotropic_std=isotropic.std,
        isotropic_curve=curve,
    )
    _write(outcome, run, held_out, run.folder)
    return outcome


def _write(outcome: Outcome, run: Run, held_out: HeldOut, folder: Path) -> None:
    sigma = held_out.draw(run.layer)[2][run.held_out.noise_mask]
    plots.curves(folder)
    plots.recovery(outcome, folder)
    plots.sigma(sigma, outcome.isotropic_std, run.config.min_std, run.config.max_std, folder)
    outcome.save(folder)
    report.write_markdown(outcome, folder)
