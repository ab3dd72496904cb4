"""Two sets of records: which case became slower by more than the noise.

The ratio of medians is judged in logarithms against a margin: the error of both medians, by
bootstrap of the stored samples, at a level that all comparisons together keep; plus what the
machine itself changed by, as its own copy and GEMM rates between the samples say, or 5 %.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy import stats

from .records import OK, OURS, Record

TOLERANCE = 0.05
LEVEL = 0.01  # chance that one of all comparisons of equal code is called slower
_RESAMPLES = 2000
_FEW = 8
_VERDICTS = ("slower", "broken", "faster", "same", "only in A", "only in B")


class Comparison(NamedTuple):
    case: str
    mode: str
    contestant: str
    a: float | None  # ms
    b: float | None
    ratio: float | None  # b / a
    margin: float | None  # a ratio within 1 / margin .. margin says nothing
    verdict: str

    @property
    def regression(self) -> bool:
        return self.verdict in ("slower", "broken")


def compare(a: Iterable[Record], b: Iterable[Record]) -> list[Comparison]:
    """Ours only, the worst first; several records of one key are pooled."""
    old, new = _pooled(a), _pooled(b)
    common = [key for key in old if key in new]
    z = float(stats.norm.isf(LEVEL / max(1, len(common))))
    found = [_one(key, old[key], new[key], z) for key in common]
    for keys, other, verdict in ((old, new, "only in A"), (new, old, "only in B")):
        missing = [key for key in keys if key not in other]
        found += [Comparison(*key, None, None, None, None, verdict) for key in missing]
    return sorted(found, key=lambda c: (_VERDICTS.index(c.verdict), -(c.ratio or 0)))


def _one(
    key: tuple[str, str, str], a: Sequence[Record], b: Sequence[Record], z: float
) -> Comparison:
    before, after = ([r for r in records if r.status == OK and r.samples] for records in (a, b))
    if not before or not after:
        broken = bool(before) and any(r.status != OK for r in b)
        return Comparison(*key, None, None, None, None, "broken" if broken else "same")
    samples = [np.array([s for r in records for s in r.samples]) for records in (before, after)]
    noise = z * math.hypot(*map(_error_of_log_median, samples))
    margin = noise + max(math.log1p(TOLERANCE), _drift(before, after))
    old, new = (float(np.median(s)) for s in samples)
    change = math.log(new / old)
    verdict = "slower" if change > margin else "faster" if change < -margin else "same"
    return Comparison(*key, old, new, math.exp(change), math.exp(margin), verdict)


def _error_of_log_median(samples: np.ndarray) -> float:
    if len(samples) < _FEW:  # to resample: as wrong as they disagree
        return float(np.log(samples.max() / samples.min()))
    found = stats.bootstrap(
        (np.log(samples),), np.median, n_resamples=_RESAMPLES, method="percentile", rng=0
    )
    return float(found.standard_error)


def _drift(a: Sequence[Record], b: Sequence[Record]) -> float:
    """Of the machine, as a logarithm."""
    found = [0.0]
    for name in ("copy", "gemm"):
        before, after = ([getattr(r, name) for r in records] for records in (a, b))
        if all(before) and all(after):
            found.append(abs(math.log(median(after) / median(before))))
    return max(found)


def _pooled(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.kind in OURS:
            found.setdefault(record.key, []).append(record)
    return found
