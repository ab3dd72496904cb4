"""The training loop: prepare everything that can fail, then step, save and stop cleanly."""

from __future__ import annotations

import contextlib
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import checkpoint as checkpoints
from . import loading, metrics, ranks, text
from .config import ConfigError, TrainConfig, TrainingError
from .encoder import Model
from .metrics import MetricsWriter
from .monitor import EVERY, Monitor
from .noise import NoiseLayer
from .objective import objective
from .seeds import generator

if TYPE_CHECKING:
    from accelerate import Accelerator

Progress = Callable[[dict[str, float]], None]


class Interrupted(Exception):
    """Ctrl-C: everything up to ``step`` is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass
class Run:
    """A run that is ready to go: all input was read and checked, and nothing was written yet."""

    config: TrainConfig
    folder: Path
    encoder: Model
    tokenizer: Any
    layer: NoiseLayer
    optimizer: torch.optim.Optimizer
    train: text.Passages
    validation: text.Passages
    test: text.Passages
    vocabulary: text.Vocabulary  # of the training passages
    accelerator: Accelerator
    step: int = 0
    targets: torch.Tensor | None = None  # (P, H), clean embeddings of `train`; None: computed anew


def prepare(config: TrainConfig, folder: Path, saved: checkpoints.Checkpoint | None) -> Run:
    """Loads model and text and checks them against config, folder and checkpoint."""
    if config.device == "auto":
        config = replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    _check_device(config)
    _check_writable(folder)
    accelerator = ranks.accelerator_of(config, folder)
    if saved is not None and saved.step:
        metrics.read(folder)
    documents = text.read_documents(config.text)  # the cheap checks come before the model loads
    encoder, tokenizer = loading.load(config.model, config.device, config.dtype, config.seq_len)
    config = replace(config, utility=config.utility_for(encoder.causal))
    passages = text.cut(tokenizer, documents, config.seq_len)
    train, *held_out = text.split(passages, config.seed, config.batch_size)
    validation, test = (p[: config.eval_passages // 2 * 2].to(config.device) for p in held_out)
    vocabulary = text.Vocabulary.of(train, len(encoder.table)).to(config.device)
    layer = build_layer(config, encoder)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    if saved is not None:
        checkpoints.restore(saved, layer, optimizer)
    step = saved.step if saved else 0
    if step > config.steps:
        raise ConfigError(f"--steps {config.steps}: the saved run is already at step {step}")
    model = encoder, tokenizer, layer, optimizer
    splits = train, validation, test
    return Run(config, folder, *model, *splits, vocabulary, accelerator, step)


def build_layer(config: TrainConfig, encoder: Model) -> NoiseLayer:
    """The noise layer; float32 at least, because Adam's small steps vanish in bfloat16."""
    table = encoder.table
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator("cpu", config.seed, "layer").initial_seed())
        layer = NoiseLayer(
            table.shape[1],
            config.min_std,
            config.max_std,
            float(table.float().std()),
            config.start_of_sigma,
        )
    return layer.to(config.device, torch.promote_types(table.dtype, torch.float32))


def train(run: Run, progress: Progress = lambda row: None, watched: bool = True) -> None:
    """Steps until ``config.steps``; saves regularly, at the end and at Ctrl-C (Interrupted). Of
    several ranks the first writes; they all stop after the same step. ``watched``: with what a
    `Monitor` sees among the metrics, that of the first rank."""
    config, main = run.config, run.accelerator.is_main_process
    watched = watched and main
    monitor = Monitor(config, run.encoder, run.validation, run.vocabulary) if watched else None
    if run.step == 0 and main:
        claim(run.folder)
    columns = metrics.columns(config.utility_for(run.encoder.causal))
    curve = MetricsWriter(run.folder, run.step, columns, run.accelerator) if main else None
    with curve or contextlib.nullcontext(), _ctrl_c() as signals:
        while run.step < config.steps:
            row, stopped = _one_step(run, signals)
            if monitor is not None and run.step % EVERY == 0:
                row |= monitor(run.layer, run.step)
            if curve is not None:
                curve.write(row)
            progress(row)
            due = run.step % config.save_every == 0 or run.step == config.steps
            if main and (due or stopped):
                checkpoints.save(run.folder, config, run.step, run.layer, run.optimizer)
            if stopped:
                raise Interrupted(run.step)


def _one_step(run: Run, signals: Sequence[int] = ()) -> tuple[dict[str, float], bool]:
    """The row of the curve, and whether a signal has reached any rank; both the same on all."""
    config, accelerator, start = run.config, run.accelerator, time.perf_counter()
    rows = text.batch_rows(len(run.train), config.batch_size, config.seed, run.step)
    rank, ranks_there = accelerator.process_index, accelerator.num_processes
    rows = rows[rank::ranks_there]
    batch = run.train[rows].to(config.device)
    noise = generator(config.device, config.seed, "noise", run.step, *([rank] if rank else []))
    target = None if run.targets is None else run.targets[rows.to(run.targets.device)]
    with accelerator.autocast():
        terms = objective(run.layer, run.encoder, run.vocabulary, batch, config, noise, target)
    run.optimizer.zero_grad()
    accelerator.backward(terms.loss)
    ranks.average_gradients(accelerator, run.layer.parameters())
    run.optimizer.step()
    run.step += 1
    row = terms.numbers()
    row["tokens_per_second"] = float(batch.attention_mask.sum()) * ranks_there
    *numbers, stopped = ranks.average(accelerator, [*row.values(), float(bool(signals))])
    row = dict(zip(row, numbers, strict=True))
    if not _finite(run.layer, row.values()):
        raise TrainingError(
            f"step {run.step}: loss {row['loss']:g}, and what follows from it would mean nothing; "
            "what was saved before is kept. A smaller --lr or --max-std may help"
        )
    row["tokens_per_second"] /= time.perf_counter() - start
    return {"step": run.step, **row}, stopped > 0


def _finite(layer: torch.nn.Module, numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers)) and all(
        bool(p.isfinite().all()) for p in layer.parameters()
    )


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Collects the first SIGINT, so that no step is cut in half; the second one raises."""
    stopped: list[int] = []

    def handle(number: int, frame: object) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # only the main thread may set handlers
        yield stopped
        return
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def claim(folder: Path) -> None:
    """Makes the folder that of a new run; of several that start together one gets it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / metrics.FILE_NAME).open("x").close()
    except FileExistsError:
        raise ConfigError(
            f"--output {folder} holds a run: add --resume or name another folder"
        ) from None


def resumed_config(saved: TrainConfig, given: dict[str, object]) -> TrainConfig:
    """The saved config with what may change on resume; anything else would be another curve."""
    may_change = {"steps", "device", "save_every", "eval_passages"}
    for field, value in given.items():
        if field not in may_change and value != getattr(saved, field):
            raise ConfigError(
                f"--{field.replace('_', '-')} {value} differs from the saved run "
                f"({getattr(saved, field)}); leave it out to resume, or start in another folder"
            )
    return replace(saved, **{k: v for k, v in given.items() if k in may_change})  # type: ignore[arg-type]


def _check_device(config: TrainConfig) -> None:
    try:
        torch.zeros(1, device=config.device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--device {config.device} cannot be used: {reason}") from None


def _check_writable(folder: Path) -> None:
    """Fails before training, not after it; creates nothing."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"--output {folder}: {existing} is not a folder")
    try:
        tempfile.TemporaryFile(dir=existing).close()  # access() is not to be trusted for root
    except OSError as error:
        raise ConfigError(f"--output {folder}: not writable: {error.strerror}") from None
