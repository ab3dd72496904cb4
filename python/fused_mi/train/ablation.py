"""``fused-mi ablation``: what each objective hides where own passages are found equally often.

For every objective and seed, alpha is searched on the validation split. The first seed trains a
curve of alphas at the end. A layer that was measured is kept as a JSON file and not trained again:
an ablation that was stopped goes on, and parts of one may run beside each other in one folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import trainer
from .checkpoint import replacing
from .config import ConfigError, Objective, TrainConfig
from .evaluate import DRAWS, Evaluation, HeldOut, tune_isotropic
from .noise import ConstantVector, IsotropicNoise

TARGET, TOLERANCE = 0.93, 0.03  # of own passages found on the validation split
MEASURED = 512  # draws of noise and passage that this is measured on, at least
CURVES: Mapping[Objective, tuple[float, ...]] = {
    "tokens": (0.1, 0.3, 0.6),
    "passages": (3.0, 10.0, 30.0),
    "std": (0.3, 1.0, 3.0),
    "none": (0.0,),
}
ISOTROPIC = (0.5, 1.0, 1.5, 2.5)  # times the sigma of the retrieval that is aimed at
FLOORS = ("constant vector", "most frequent word")
_FACTOR, _LIMITS = 3.0, (1e-3, 1e3)  # of the search
_CHUNK = 64  # passages per forward pass
_OPTIONS = "config.json"


@dataclass(frozen=True)
class Layer:
    """One noise layer, measured. `strength`: alpha; sigma of isotropic noise; 0 of a floor."""

    noise: str  # an objective, "isotropic", or a floor
    seed: int
    strength: float
    validation_top1: float
    validation_top1_error: float
    test: Evaluation
    token_entropy_nats: float
    seconds: float

    @property
    def name(self) -> str:
        return name_of(self.noise, self.seed, self.strength)

    @classmethod
    def read(cls, path: Path) -> Layer:
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "test": Evaluation(**values["test"])})
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{path} is damaged: without it the layer is trained again") from None


def name_of(noise: str, seed: int, strength: float) -> str:
    return f"{noise.replace(' ', '-')}-seed{seed}-{strength:g}"


def next_alpha(points: Mapping[float, float], target: float) -> float | None:
    """Where to look next for the alpha of a retrieval, which falls with alpha; points: alpha ->
    retrieval. Between two that enclose it, by interpolation in log alpha, not too near to either;
    otherwise a factor further. None: too far."""
    below = [alpha for alpha, found in points.items() if found < target]
    above = [alpha for alpha in points if alpha not in below]
    if not below:
        alpha = max(above) * _FACTOR
    else:
        high = min(below)
        low = max((alpha for alpha in above if alpha < high), default=None)
        if low is None:
            alpha = high / _FACTOR
        else:
            share = (points[low] - target) / (points[low] - points[high])
            alpha = low * (high / low) ** min(max(share, 0.25), 0.75)
    alpha = float(f"{alpha:.3g}")
    return alpha if _LIMITS[0] <= alpha <= _LIMITS[1] and alpha not in points else None


def first_alpha(points: Mapping[float, float], target: float, start: float) -> float:
    """Where a seed begins, by what others found: between alphas that enclose the target, else at
    the one that came nearest; `start` where there is none."""
    falls = [found > target for found in points.values()]
    between = next_alpha(points, target) if any(falls) and not all(falls) else None
    return between or min(points, key=lambda alpha: abs(points[alpha] - target), default=start)


@dataclass(frozen=True)
class _Texts:
    """What the layers of one seed share."""

    validation: HeldOut
    test: HeldOut
    targets: torch.Tensor  # (P, H), clean sentence embeddings of the training passages
    word: torch.Tensor  # (E,), that of the most frequent word


class Ablation:
    """Layers in a folder. ``searches``: layers that a search for one alpha may train, not
    counting those of the curve."""

    def __init__(self, base: TrainConfig, folder: Path, target: float, searches: int) -> None:
        self.base, self.folder, self.target, self.searches = base, folder, target, searches
        if (folder / _OPTIONS).exists():
            self._claim()
        self.texts = functools.cache(self._texts)

    def run(self, objectives: Sequence[Objective], seeds: Sequence[int]) -> None:
        """Trains and measures what is not there yet."""
        for seed in seeds:
            for objective in objectives:
                self.search(objective, seed, seeds[0])
            self.isotropic(seed, 1.0)
        for noise in FLOORS:
            self.floor(noise, seeds[0])
        # What no comparison needs comes last: the curves of the first seed.
        for factor in ISOTROPIC:
            self.isotropic(seeds[0], factor)
        for objective in objectives:
            for alpha in CURVES[objective]:
                self.trained(objective, seeds[0], alpha)

    def layers(self) -> list[Layer]:
        """All that are kept."""
        return [Layer.read(path) for path in sorted(self.folder.glob("*-seed*.json"))]

    def search(self, objective: Objective, seed: int, first: int) -> None:
        """Alphas of one objective, until one gives the retrieval that is aimed at."""
        if objective == "none":
            return self.trained(objective, seed, 0.0)
        curve = CURVES[objective]
        while True:
            points = self._tried(objective, seed)
            of_search = points.keys() - (curve if seed == first else ())
            if any(map(self.reached, points.values())) or len(of_search) >= self.searches:
                return None
            if points:
                alpha = next_alpha(points, self.target)
            else:
                alpha = first_alpha(self._tried(objective), self.target, curve[1])
            if alpha is None:
                return None
            self.trained(objective, seed, alpha)

    def reached(self, found: float) -> bool:
        return abs(found - self.target) <= TOLERANCE

    def _tried(self, objective: Objective, seed: int | None = None) -> dict[float, float]:
        """Alpha -> retrieval, the mean over all seeds unless one is named."""
        found: dict[float, list[float]] = {}
        for layer in self.layers():
            if layer.noise == objective and seed in (None, layer.seed):
                found.setdefault(layer.strength, []).append(layer.validation_top1)
        return {alpha: statistics.fmean(values) for alpha, values in found.items()}

    def trained(self, objective: Objective, seed: int, alpha: float) -> None:
        path = self.folder / f"{name_of(objective, seed, alpha)}.json"
        if path.exists():
            return
        start = time.perf_counter()
        config = dataclasses.replace(self.base, objective=objective, seed=seed, alpha=alpha)
        targets = self.texts(seed).targets
        with tempfile.TemporaryDirectory() as folder:
            run = trainer.prepare(config, Path(folder), None)
            trainer.train(dataclasses.replace(run, targets=targets), watched=False)
        self._measure(run.layer.eval(), objective, seed, alpha, start)

    def isotropic(self, seed: int, factor: float) -> None:
        name = f"isotropic-x{factor:g}"
        if list(self.folder.glob(f"{name}-seed{seed}-*.json")):
            return
        start = time.perf_counter()
        tuned = tune_isotropic(self.texts(seed).validation, self.target)
        layer = IsotropicNoise(factor * tuned.std)
        self._measure(layer, name, seed, layer.std, start)

    def floor(self, noise: str, seed: int) -> None:
        if (self.folder / f"{name_of(noise, seed, 0.0)}.json").exists():
            return
        start, texts = time.perf_counter(), self.texts(seed)
        vector = texts.word if noise == FLOORS[1] else texts.test.table.mean(0)
        self._measure(ConstantVector(vector), noise, seed, 0.0, start)

    def _measure(
        self, layer: nn.Module, noise: str, seed: int, strength: float, start: float
    ) -> None:
        texts = self.texts(seed)
        draws = max(DRAWS, math.ceil(MEASURED / len(texts.validation.passages)))
        found = texts.validation.retrieval(layer, draws)
        measured = Layer(
            noise,
            seed,
            strength,
            found.top1,
            found.top1_error,
            texts.test.evaluate(layer, self.base.pairing),
            texts.test.token_entropy,
            time.perf_counter() - start,
        )
        self._claim()
        with replacing(self.folder / f"{measured.name}.json") as path:
            path.write_text(json.dumps(dataclasses.asdict(measured), indent=1, allow_nan=False))
        print(
            f"{measured.name}: own passages found {found.top1:.3f} (validation), strongest attack "
            f"{max(measured.test.attacks.values()):.3f}, {measured.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def _texts(self, seed: int) -> _Texts:
        config = dataclasses.replace(self.base, seed=seed)
        run = trainer.prepare(config, self.folder, None)
        if run.encoder.causal:
            raise ConfigError(f"--model {config.model}: an ablation is for sentence encoders")
        validation, test = (
            HeldOut(run.encoder, passages, run.train, seed)
            for passages in (run.validation, run.test)
        )
        targets, train = [], run.train.to(run.config.device)
        for start in range(0, len(train), _CHUNK):
            part = train[slice(start, start + _CHUNK)]
            with torch.no_grad():
                clean = run.encoder.embed(part.ids)
                targets.append(run.encoder.encode(clean, part.attention_mask))
        word = test.table[run.vocabulary.counts.argmax()]
        return _Texts(validation, test, torch.cat(targets), word)

    def _claim(self) -> None:
        """The folder holds layers of one way of training only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _OPTIONS
        mine = json.dumps({**dataclasses.asdict(self.base), "target": self.target}, indent=1)
        try:
            with path.open("x") as file:
                file.write(mine)
        except FileExistsError:
            if path.read_text() != mine:
                raise ConfigError(
                    f"{path}: the layers there were trained with other options; name another folder"
                ) from None
