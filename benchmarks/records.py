"""What a measurement leaves: one record per case, contestant and mode; files of JSON lines."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .cases import Case

OK, WRONG, OOM, REFUSED = "ok", "wrong", "OOM", "refused"
OURS = ("backend", "kernels")  # kinds


class BadFile(Exception):
    """A file that holds no records."""


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
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    samples: tuple[float, ...] = ()
    host: float | None = None  # of a GPU: until both passes are queued
    bytes: float | None = None
    flops: float | None = None
    gb_per_s: float | None = None
    of_copy: float | None = None
    gflop_per_s: float | None = None
    of_gemm: float | None = None
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


def timed(record: Record, samples: Sequence[float]) -> Record:
    """With everything that follows from its times."""
    middle = median(samples)
    fifths = quantiles(samples, n=5, method="inclusive") if len(samples) > 1 else 4 * [middle]
    rates: dict[str, Any] = {}
    if record.bytes and record.kind != "bound":
        rates["gb_per_s"] = record.bytes / middle / 1e6
        if record.copy:
            rates["of_copy"] = rates["gb_per_s"] / record.copy
    if record.flops and record.kind != "bound":
        rates["gflop_per_s"] = record.flops / middle / 1e6
        if record.gemm:
            rates["of_gemm"] = rates["gflop_per_s"] / record.gemm
    return dataclasses.replace(
        record,
        median=middle,
        p20=fifths[0],
        p80=fifths[3],
        samples=tuple(round(s, 6) for s in samples),
        **rates,
    )


def record_of(case: Case, contestant: str, kind: str, about: dict[str, Any], **more: Any) -> Record:
    """Without a mode yet."""
    return Record(
        case=case.name,
        group=case.group,
        op=case.op,
        mode="",
        contestant=contestant,
        kind=kind,
        estimator=case.estimator,
        pairing=case.pairing,
        shape=case.shape,
        dtype=case.dtype,
        masked=1 - case.active / case.S,
        wanted=case.wanted,
        machine=about,
        **more,
    )


def write(records: Iterable[Record], path: Path) -> None:
    """Append."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        for record in records:
            stream.write(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n")


def read(*paths: Path) -> list[Record]:
    """Of all files.

    Raises:
        BadFile: one of them holds something else, or nothing.
    """
    found = []
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadFile(f"{path}: cannot be read: {error}") from None
        if not lines:
            raise BadFile(f"{path}: there is no record in it")
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                for name in ("shape", "wanted", "samples"):
                    values[name] = tuple(values[name])
                values["faults"] = values.get("faults") and tuple(values["faults"])
                found.append(Record(**values))
            except (ValueError, TypeError, KeyError) as error:
                raise BadFile(f"{path}, line {number}: no record: {error}") from None
    return found
