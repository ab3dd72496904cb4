"""The table of the README: one row for each workload, everything else as a multiple of ours."""

from collections.abc import Iterator, Sequence

from .records import OK, OOM, SWEEP, Record, by_case, ours, whole
from .table import number

_OTHERS = {  # columns; of several contestants the fastest counts
    "plain torch path": ("reference",),
    "linear form, compiled": ("linear form, compiled",),
    "linear form, eager": ("linear form, eager", "linear form, leanest"),
    "matrix products": ("GEMM expansion",),
    "KeOps": ("KeOps",),
    "pairs, compiled": ("pair formula, compiled",),
    "pairs, eager": ("pair formula, eager",),
}


def lines(records: Sequence[Record]) -> Iterator[str]:
    """Medians of both passes, and the peak of memory beyond inputs and gradients; below, the peer
    that comes nearest in any case, options and sweeps included."""
    yield f"| inputs (B, S, E) | fused_mi | {' | '.join(_OTHERS)} |"
    yield "|---" * (len(_OTHERS) + 2) + "|"
    nearest: tuple[float, Record] | None = None
    for of_case in by_case(records).values():
        own, found = ours(of_case), {r.contestant: r for r in whole(of_case)}
        if own is None or own.median is None:
            continue
        for r in found.values():
            ratio = r.times(own) if r.kind == "peer" and r.status == OK else None
            if ratio is not None and (nearest is None or ratio < nearest[0]):
                nearest = ratio, r
        if own.group.startswith((SWEEP, "options", "training")):
            continue
        cells = [_cell([found[name] for name in names if name in found], own)
                 for names in _OTHERS.values()]  # fmt: skip
        yield f"| {_name(own)} | **{number(own.median)} ms**{_memory(own)} | {' | '.join(cells)} |"
    if nearest is not None:
        ratio, r = nearest
        yield f"\nThe nearest in any case: {r.contestant}, {number(ratio)} x, in {r.case}."


def _name(own: Record) -> str:
    sizes = " x ".join(map(str, own.shape))
    parts = [own.group, f'`"{own.estimator}"`', sizes]
    parts += [own.op] if own.op != "mutual information" else []
    return ", ".join(parts)


def _cell(of_column: Sequence[Record], own: Record) -> str:
    done = [r for r in of_column if r.status == OK and r.median is not None]
    if not done:
        return "out of memory" if any(r.status == OOM for r in of_column) else ""
    best = min(done, key=lambda r: r.median or 0.0)
    return f"{number(best.times(own))} x{_memory(best)}"


def _memory(record: Record) -> str:
    if record.extra_bytes is None:
        return ""
    return f", {number(max(record.extra_bytes / 2**20, 0.01))} MiB"
