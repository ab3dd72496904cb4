"""What tables, plots and reports ask of records; nothing is measured here."""

import math
from collections.abc import Iterable, Sequence
from statistics import linear_regression

from .records import OK, Record

ORDER = ("triton", "cpu", "reference")  # backends, the fastest first
SWEEP = "sweep "


def by_case(records: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case, []).append(record)
    return found


def whole(records: Iterable[Record]) -> list[Record]:
    """One for each contestant of a case: both passes, or the only one there is."""
    modes = {"both": 2, "step": 1, "fwd": 0}
    best: dict[tuple[str, str], Record] = {}
    for record in records:
        before = best.get((record.case, record.contestant))
        if record.mode in modes and (before is None or modes[record.mode] > modes[before.mode]):
            best[record.case, record.contestant] = record
    return list(best.values())


def ours(records: Sequence[Record]) -> Record | None:
    """Of one case: the backend that serves it when nobody forces one."""
    found = {r.contestant: r for r in whole(records) if r.kind == "backend" and r.status == OK}
    return next((found[name] for name in ORDER if name in found), None)


def speedup(record: Record, own: Record | None) -> float | None:
    if own is None or own.median is None or record.median is None:
        return None
    return record.median / own.median


def slopes(
    records: Iterable[Record],
) -> list[tuple[str, str, str, list[float], list[float], float]]:
    """Of each sweep: group, estimator, contestant, sizes, ms and the slope of their logarithms."""
    lines: dict[tuple[str, str, str], dict[int, float]] = {}
    for r in whole(records):
        if r.group.startswith(SWEEP) and r.status == OK and r.median:
            size = r.shape["BSE".index(r.group[-1])]
            lines.setdefault((r.group, r.estimator, r.contestant), {})[size] = r.median
    found = []
    for key, points in lines.items():
        sizes, ms = zip(*sorted(points.items()), strict=True)
        if len(sizes) > 1:
            line = linear_regression(list(map(math.log, sizes)), list(map(math.log, ms)))
            found.append((*key, list(sizes), list(ms), line.slope))
    return found


def failures(records: Iterable[Record]) -> dict[tuple[str, str, str], list[str]]:
    """Cases by contestant, status and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for r in whole(records):
        if r.status != OK:
            found.setdefault((r.contestant, r.status, r.reason or ""), []).append(r.case)
    return found
