"""What a measurement leaves: one record per case, contestant and mode; files of JSON lines; and
what tables and pictures ask of them."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .cases import Case

OK, WRONG, OOM, REFUSED = "ok", "wrong", "OOM", "refused"
OURS = ("backend", "kernels")  # kinds
ORDER = ("triton", "cpu", "reference")  # backends, the fastest first
SWEEP = "sweep "  # what groups begin with in which one size grows
_DERIVED = ("median", "p20", "p80", "gb_per_s", "of_copy", "gflop_per_s", "of_gemm")
_MODES = ("fwd", "step", "both")  # the last one stands for the whole


class NoRecords(Exception):
    """What was named is no file of records."""


@dataclass(frozen=True)
class Record:
    """Times in ms, rates in 10^9 per second, memory in bytes, errors relative."""

    case: str
    group: str
    op: str
    mode: str  # fwd, bwd, both; of a training step: step
    contestant: str
    kind: str  # backend, kernels, peer, bound
    estimator: str
    pairing: str
    shape: tuple[int, int, int]
    dtype: str
    masked: float
    wanted: tuple[str, ...]
    status: str = OK
    reason: str | None = None
    samples: tuple[float, ...] = ()
    host: float | None = None  # of a GPU: until both passes are queued
    bytes: float | None = None
    flops: float | None = None
    extra_bytes: int | None = None
    error: float | None = None
    gradient_error: float | None = None
    loss_share: float | None = None  # of a training step
    copy: float | None = None  # GB/s, measured between the samples of the case
    gemm: float | None = None  # GFLOP/s, the same
    fma: float | None = None  # of a GPU: GFLOP/s of multiply-adds in registers
    faults: tuple[float, float] | None = None  # of a CPU: page faults of a pass, ms in the system
    kernels: dict[str, float] | None = None  # of a GPU: us of both passes by kernel
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.case, self.mode, self.contestant

    def timed(self, samples: Iterable[float]) -> "Record":
        return dataclasses.replace(self, samples=tuple(round(s, 6) for s in samples))

    @cached_property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def p20(self) -> float | None:
        return self._fifth(0)

    @property
    def p80(self) -> float | None:
        return self._fifth(3)

    def _fifth(self, which: int) -> float | None:
        if len(self.samples) < 2:
            return self.median
        return statistics.quantiles(self.samples, n=5, method="inclusive")[which]

    @property
    def gb_per_s(self) -> float | None:
        return self._rate(self.bytes)

    @property
    def of_copy(self) -> float | None:
        return _ratio(self.gb_per_s, self.copy)

    @property
    def gflop_per_s(self) -> float | None:
        return self._rate(self.flops)

    @property
    def of_gemm(self) -> float | None:
        return _ratio(self.gflop_per_s, self.gemm)

    @property
    def errors(self) -> list[float]:
        """Of the value and of the gradients."""
        return [e for e in (self.error, self.gradient_error) if e is not None]

    def _rate(self, amount: float | None) -> float | None:
        rate = _ratio(amount, self.median) if self.kind != "bound" else None
        return rate and rate / 1e6

    def times(self, own: "Record | None") -> float | None:
        """How many times as long as `own` it takes."""
        return _ratio(self.median, own.median if own else None)


_FIELDS = [field.name for field in dataclasses.fields(Record)]


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def record_of(case: Case, contestant: str, kind: str, about: dict[str, Any], **more: Any) -> Record:
    """Without a mode yet."""
    names = ("group", "op", "estimator", "pairing", "shape", "dtype", "wanted")
    of_case = {name: getattr(case, name) for name in names}
    masked = 1 - case.active / case.S
    more = {"mode": "", **of_case, "masked": masked, "machine": about, **more}
    return Record(case=case.name, contestant=contestant, kind=kind, **more)


def write(records: Iterable[Record], path: Path) -> None:
    """Append; with what follows from the times, for other readers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        for record in records:
            derived = {name: getattr(record, name) for name in _DERIVED}
            line = {**dataclasses.asdict(record), **derived}
            stream.write(json.dumps(line, allow_nan=False) + "\n")


def read(*paths: Path) -> list[Record]:
    """Of all files.

    Raises:
        NoRecords: one of them holds something else, or nothing.
    """
    found = []
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise NoRecords(f"{path}: cannot be read: {error}") from None
        if not lines:
            raise NoRecords(f"{path}: there is no record in it")
        for number, line in enumerate(lines, 1):
            try:
                values = {k: v for k, v in json.loads(line).items() if k in _FIELDS}
                lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
                found.append(Record(**(values | lists)))
            except (ValueError, TypeError, AttributeError) as error:
                raise NoRecords(f"{path}, line {number}: no record: {error}") from None
    return found


def by_case(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case, []).append(record)
    return found


def whole(records: Iterable[Record]) -> list[Record]:
    """One for each contestant of a case: both passes, or the only one there is."""
    best: dict[tuple[str, str], Record] = {}
    for record in records:
        if record.mode in _MODES:
            before = best.setdefault((record.case, record.contestant), record)
            if _MODES.index(record.mode) > _MODES.index(before.mode):
                best[record.case, record.contestant] = record
    return list(best.values())


def ours(records: Iterable[Record]) -> Record | None:
    """Of one case: the backend that serves it when nobody forces one; none where that one failed,
    and with it whatever is said in multiples of its time."""
    found = {r.contestant: r for r in whole(records) if r.kind == "backend"}
    first = next((found[name] for name in ORDER if name in found), None)
    return first if first and first.status == OK else None


class Line(NamedTuple):
    """A contestant in a sweep."""

    group: str
    estimator: str
    contestant: str
    sizes: list[int]
    ms: list[float]
    slope: float  # of their logarithms


def sweeps(records: Iterable[Record]) -> Iterator[Line]:
    lines: dict[tuple[str, str, str], dict[int, float]] = {}
    for r in whole(records):
        if r.group.startswith(SWEEP) and r.status == OK and r.median:
            size = r.shape["BSE".index(r.group[-1])]
            lines.setdefault((r.group, r.estimator, r.contestant), {})[size] = r.median
    for key, points in lines.items():
        sizes, ms = map(list, zip(*sorted(points.items()), strict=True))
        if len(sizes) > 1:
            logs = [list(map(math.log, values)) for values in (sizes, ms)]
            yield Line(*key, sizes, ms, statistics.linear_regression(*logs).slope)
