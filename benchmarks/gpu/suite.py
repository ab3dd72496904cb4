"""The benchmarks on the GPU: the records of `python -m benchmarks run --suite gpu`, and targets."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import limits
from benchmarks.cases import Case
from benchmarks.records import OK, OURS, WRONG, NoRecords, Record, read, record_of

from ._children import Ended, Row, run

BERT, LLM = (512, 128, 768), (64, 512, 4096)
_RESERVE = 20  # seconds that the last case may take once its time is up


def rows(seconds: float, out: Path, alone: bool = False) -> Iterator[Row]:
    """Records go to the file, each case at once; here the table, targets and what is wrong."""
    options = ["--suite", "gpu", "--device", "cuda", "--out", str(out)]
    options += ["--seconds", str(max(seconds - _RESERVE, 1)), *["--without-peers"] * alone]
    command = [sys.executable, "-m", "benchmarks", "run", *options]
    before = len(_read(out))
    for event in run({"suite": command}, seconds, FUSED_MI_AUTOTUNE="0"):
        if not isinstance(event, Ended):
            continue
        found = _read(out)[before:]
        wrong = [r for r in found if r.status == WRONG and r.kind in OURS and r.mode != "fwd"]
        for r in wrong:
            yield {"name": f"{r.case}: {r.contestant}", "passed": False, "message": r.reason}
        yield {"name": "table", "message": event.stdout, "records": len(found)}
        if event.returncode is None:
            said = event.stderr.splitlines()
            yield {"name": "cut off", "message": f"out of time at {said[-1] if said else 'start'}"}
        elif event.returncode and not wrong:
            message = f"exit code {event.returncode}: {event.tail}"
            yield {"name": "suite", "passed": False, "message": message}
        yield from ({"name": name, "met": met} for name, met in targets(found))


def _read(path: Path) -> list[Record]:
    try:
        return read(path)
    except NoRecords:
        return []


def targets(records: Sequence[Record]) -> Iterator[tuple[str, bool]]:
    """What the GPU kernels are meant to reach in float32, where it was measured."""

    def found(shape: tuple[int, int, int], estimator: str, contestant: str) -> Record:
        """The record, or an empty one."""
        case = Case("target", *shape, estimator)
        names = ("shape", "estimator", "pairing", "dtype", "masked", "wanted", "op")
        for r in records:
            same = all(getattr(r, name) == getattr(case, name) for name in names)
            if same and (r.mode, r.contestant, r.status) == ("both", contestant, OK):
                return r
        return record_of(case, contestant, "", {})

    for shape, estimator, most in (
        (LLM, "jensen", 1.25),
        (BERT, "jensen", 1.25),
        (LLM, "logsumexp", 1.4),
    ):
        if share := found(shape, estimator, "triton").of_copy:
            name = f"{estimator} {shape}: within {most} x the floor ({1 / share:.2f})"
            yield name, 1 / share <= most
    for shape, peer, least in (
        (LLM, "linear form, compiled", 1.5),
        (BERT, "linear form, compiled", 1.5),
        (BERT, "pair formula, compiled", 50.0),
    ):
        if faster := found(shape, "jensen", peer).times(found(shape, "jensen", "triton")):
            yield f"{shape}: {least} x as fast as {peer} ({faster:.2f})", faster >= least
    kernels = found(BERT, "logsumexp", "triton kernels")
    us = [t for name, t in (kernels.kernels or {}).items() if "distances_kernel" in name]
    if kernels.fma and us:
        flops = limits.operations(Case("target", *BERT, "logsumexp"))["fwd"]
        share = flops / (max(us) * 1e3) / kernels.fma
        yield f"energies {BERT}: at 40% of the multiply-adds ({share:.0%})", share >= 0.4
