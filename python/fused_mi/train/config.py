"""Everything a run depends on, in one frozen dataclass, checked before anything is touched."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

PACKAGED_MODEL = "minilm"  # of those in `loading.py`
BUILT_IN_TEXT = "pydoc"  # CPython's language reference, pydoc_data.topics
Estimator = Literal["jensen", "logsumexp"]
Pairing = Literal["sub_batch", "symmetric", "leave_one_out"]
Objective = Literal["tokens", "passages", "std", "none"]
Utility = Literal["retrieval", "cosine", "kl"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
UTILITIES: tuple[Utility, ...] = get_args(Utility)
OF_ENCODERS: tuple[Utility, ...] = ("retrieval", "cosine")  # the first is the default
OF_CAUSAL: tuple[Utility, ...] = ("kl",)
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)
_ALPHA: dict[Objective, float] = {"tokens": 0.3, "passages": 3.0, "std": 0.5, "none": 0.0}
PRECISIONS = ("no", "bf16")
DTYPES = ("float32", "bfloat16", "float64")


class ConfigError(ValueError):
    """Bad input from the user: one clear line, shown without a traceback, exit code 2."""


class TrainingError(RuntimeError):
    """A run that cannot go on: one clear line, exit code 1."""


@dataclass(frozen=True)
class TrainConfig:
    """One run. Stds are in the units of the embedding table; alpha weighs nats: of a token, or per
    feature."""

    objective: Objective = "tokens"
    utility: Utility | None = None  # None: see `utility_for`
    alpha: float | None = None  # None: see `weight`
    start: float | None = None  # None: see `start_of_sigma`
    tokens: int = 256
    batch_size: int = 64
    steps: int = 160
    lr: float = 5e-3
    seq_len: int = 32
    estimator: Estimator = "jensen"
    pairing: Pairing = "sub_batch"
    device: str = "auto"  # a GPU where torch can use one
    dtype: str = "float32"
    precision: str = "no"  # of autocast
    tracker: str = "tensorboard"
    seed: int = 0
    min_std: float = 0.01
    max_std: float = 1.0
    model: str = PACKAGED_MODEL
    text: str = BUILT_IN_TEXT
    eval_passages: int = 128
    save_every: int = 20

    def __post_init__(self) -> None:
        for field in ("batch_size", "seq_len", "steps", "eval_passages", "save_every", "tokens"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{option(field)} must be at least 1, got {getattr(self, field)}")
        for field in ("alpha", "start", "lr", "min_std", "max_std"):
            value = getattr(self, field)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{option(field)} must be finite, got {value}")
        for field in ("device", "model", "text"):
            if not getattr(self, field):
                raise ConfigError(f"{option(field)} must not be empty")
        one_of("objective", self.objective, OBJECTIVES)
        if self.utility is not None:
            one_of("utility", self.utility, UTILITIES)
        one_of("estimator", self.estimator, ESTIMATORS)
        one_of("pairing", self.pairing, PAIRINGS)
        one_of("dtype", self.dtype, DTYPES)
        one_of("precision", self.precision, PRECISIONS)
        if self.alpha is not None and self.alpha < 0:
            raise ConfigError(f"--alpha must not be negative, got {self.alpha}")
        if self.start is not None and not 0 < self.start < 1:
            raise ConfigError(f"--start must lie between 0 and 1, got {self.start}")
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

    def utility_for(self, causal: bool) -> Utility:
        """What is kept of a model; one that is causal predicts the next token."""
        fit = OF_CAUSAL if causal else OF_ENCODERS
        if self.utility is None:
            return fit[0]
        if self.utility not in fit:
            kind = "predicts the next token" if causal else "is a sentence encoder"
            raise ConfigError(
                f"--utility {self.utility} does not fit --model {self.model}, which {kind}: "
                f"{' and '.join(fit)} {'does' if len(fit) == 1 else 'do'}"
            )
        return self.utility

    @property
    def weight(self) -> float:
        """Alpha, or what suits the objective."""
        return _ALPHA[self.objective] if self.alpha is None else self.alpha

    @property
    def start_of_sigma(self) -> float:
        """Where sigma starts between its bounds, in the logarithm: as long as every token is told
        apart, "tokens" has no gradient. Under so much noise a causal model expects nothing."""
        if self.start is not None:
            return self.start
        return 0.9 if self.objective == "tokens" and self.utility != "kl" else 0.5

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


def objectives_of(names: list[str]) -> list[Objective]:
    """Raises ConfigError for a name that is none."""
    found = [objective for objective in OBJECTIVES if objective in names]
    if len(found) != len(names):
        raise ConfigError(f"--objectives are some of {','.join(OBJECTIVES)}, each once")
    return found


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{option(field)} must be one of {', '.join(allowed)}, got {value!r}")
