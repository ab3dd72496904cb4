"""What the command does with its options: one run or a sweep, progress bar, exit codes."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from . import checkpoint, language_report, metrics, plots, ranks, report, trainer
from .config import ConfigError, TrainConfig
from .finish import finish, finish_language
from .language_report import LanguageOutcome
from .report import Outcome

ROOT = Path("runs")
SHOWN = {"loss": "loss", "information": "nats", "found": "found", "agreement": "agreement"}


def pick_folder(resume: bool) -> Path:
    """The last numbered folder below runs/ to resume, otherwise the next free one, which is taken
    by creating it."""
    while True:
        numbers = [int(path.name) for path in ROOT.glob("*") if path.name.isdigit()]
        last = max(numbers, default=0)
        if resume and not numbers:
            raise ConfigError(f"there is no run below {ROOT}/ to resume")
        folder = ROOT / f"{last if resume else last + 1:03d}"
        if resume:
            return folder
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # by a run that started in this moment
            continue


@contextlib.contextmanager
def or_nothing(folder: Path) -> Iterator[None]:
    """A folder that was created for a run, and stays empty because there is none, goes again."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def run_one(given: dict[str, Any], folder: Path, resume: bool) -> int:
    run = _prepare(given, folder, resume)
    if not _train(run):
        return 130
    if not ranks.is_main():
        return 0
    outcome = _finish(run)
    if outcome is None:
        return 130
    if isinstance(outcome, LanguageOutcome):
        language_report.print_table(outcome)
    else:
        report.print_table(outcome)
    print(f"Written to {folder}/: report.md, plots, metrics.csv, events/, {checkpoint.FILE_NAME}")
    return 0


def run_sweep(given: dict[str, Any], alphas: list[float], folder: Path, resume: bool) -> int:
    """One run per alpha in a subfolder; on resume, subfolders without a checkpoint start anew."""
    folders = [folder / f"alpha={alpha:g}" for alpha in alphas]
    exists = [(sub / checkpoint.FILE_NAME).exists() for sub in folders]
    if resume and not any(exists):
        raise ConfigError(f"there is no checkpoint of this sweep in {folder} to resume from")
    for sub in folders if not resume else ():
        _check_free(sub)
    configs = [{**given, "alpha": alpha} for alpha in alphas]
    for config in configs:
        TrainConfig(**config)
    outcomes = []
    for config, sub, saved in zip(configs, folders, exists, strict=True):
        run = _prepare(config, sub, resume and saved)
        if run.encoder.causal:
            raise ConfigError("--sweep is for sentence encoders: give --alpha with a causal model")
        outcome = _finish(run) if _train(run) else None
        if outcome is None:
            return 130
        assert isinstance(outcome, Outcome)
        report.print_table(outcome)
        outcomes.append(outcome)
    plots.sweep(outcomes, folder)
    report.write_sweep(outcomes, folder)
    print(f"Written to {folder}/: sweep.md, sweep.csv, sweep.png and one folder per alpha")
    return 0


def _prepare(given: dict[str, Any], folder: Path, resume: bool) -> trainer.Run:
    if not resume:
        if ranks.is_main():
            _check_free(folder)
        return trainer.prepare(TrainConfig(**given), folder, None)
    saved = checkpoint.read(folder)
    return trainer.prepare(trainer.resumed_config(saved.config, given), folder, saved)


def _check_free(folder: Path) -> None:
    """Nothing saved before is overwritten."""
    if any((folder / name).exists() for name in (checkpoint.FILE_NAME, metrics.FILE_NAME)):
        raise ConfigError(f"--output {folder} holds a run: add --resume or name another folder")


def _train(run: trainer.Run) -> bool:
    """False after Ctrl-C, which has then been explained."""
    try:
        if ranks.is_main():
            _train_with_bar(run)
        else:
            trainer.train(run)
    except trainer.Interrupted as stop:
        if ranks.is_main():
            print(
                f"fused-mi: stopped at step {stop.step} of {run.config.steps}, saved; "
                f"go on with --resume --output {run.folder}",
                file=sys.stderr,
            )
        return False
    return True


def _finish(run: trainer.Run) -> Outcome | LanguageOutcome | None:
    """None after Ctrl-C, which has then been explained."""
    try:
        with rich.console.Console(stderr=True).status("evaluating on held-out text"):
            return finish_language(run) if run.encoder.causal else finish(run)
    except KeyboardInterrupt:
        print(
            f"fused-mi: stopped during the evaluation, the layer is saved; "
            f"evaluate with --resume --output {run.folder}",
            file=sys.stderr,
        )
        return None


def _train_with_bar(run: trainer.Run) -> None:
    columns = (
        MofNCompleteColumn(),
        BarColumn(bar_width=10),
        TextColumn(
            # Short, so that the line fits into 80 columns.
            "{task.description} {task.fields[tokens_per_second]:.0f} tokens/s ETA"
        ),
        TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        trainer.train(run, functools.partial(_line, run.config.steps))
        return
    with Progress(*columns, console=console) as bar:
        total = run.config.steps
        task = bar.add_task("", total=total, completed=run.step, tokens_per_second=0)

        def show(row: dict[str, float]) -> None:
            speed = row["tokens_per_second"]
            bar.update(task, completed=row["step"], description=_said(row), tokens_per_second=speed)

        trainer.train(run, show)


def _line(steps: int, row: dict[str, float]) -> None:
    """Where nobody sees a bar move: ten lines of a run."""
    step = int(row["step"])
    if step % max(1, steps // 10) == 0 or step == steps:
        print(f"step {step}/{steps}: {_said(row)}", file=sys.stderr, flush=True)


def _said(row: dict[str, float]) -> str:
    return " ".join(f"{said} {row[name]:.3f}" for name, said in SHOWN.items() if name in row)
