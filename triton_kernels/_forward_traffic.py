"""What the kernels of the moments move and compute in the forward pass, see `_traffic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Arguments = dict[str, Any]
Elements = tuple[dict[str, float], dict[str, float], float]  # read, written, flops


class ActiveRoles(NamedTuple):
    """Contributing (row, position) pairs of a launch, of all of its mixtures."""

    samples: float
    components: float
    stds: float  # in a role that has variances
    positions: float  # where there is any
    whole: tuple[float, float]  # positions at which every row of the first range, of the other does


# Operations per element, as in the source; 1/4 of those of a group. Beside a difference, a square
# and their sums: v = sigma^2 + eps takes 2, its share of a log and the extremes 4.
_SAMPLE, _OWN_STDS, _COMPONENT = 5 + 3, 2 + 4, 3 + 2 + 4 + 1 + 7 + 4
_MERGE = 20  # of the parts of one split


def expected(a: Arguments, density: float) -> ActiveRoles:
    """For a mask of that density, the same for both roles of a row; no data is looked at."""
    S = a["S"]
    N, M = (a["N"], a["M"]) if "N" in a else (a.get("rows", 0),) * 2
    both = "other_counts" in a
    samples, components = density * S * (N + M * both), density * S * (M + N * both)
    apart = "N" in a and not both and a["OWN_STDS"]  # rows in either role
    stds = samples + components if apart else components
    positions, whole = S * (1 + both), S if density == 1 else 0
    return ActiveRoles(samples, components, stds, positions, (whole, whole))


def counted(a: Arguments) -> ActiveRoles:
    """From the data of the launch, once the launches before it have run."""
    names = ("counts", "other_counts")
    positions = sum(int((a[name][:2] > 0).all(0).sum()) for name in names if name in a)
    if "sample_active" not in a:
        return ActiveRoles(0, 0, 0, positions, (0, 0))
    first: list[Tensor] = [a["sample_active"] != 0]
    other: list[Tensor] = [a["component_active"] != 0]
    samples, components = int(first[0].sum()), int(other[0].sum())
    stds = components + samples * a["OWN_STDS"]
    if "rows" in a or "other_counts" in a:
        first.append(a["component_active" if "rows" in a else "other_component_active"] != 0)
        other.append(a["sample_active" if "rows" in a else "other_sample_active"] != 0)
        stds = int((first[0] | first[1]).sum())
    if "other_counts" in a:
        samples, components = samples + int(other[1].sum()), components + int(first[1].sum())
        stds += int((other[0] | other[1]).sum())
    whole = (int(torch.stack(roles).all(0).all(0).sum()) for roles in (first, other))
    return ActiveRoles(samples, components, stds, positions, (next(whole), next(whole)))


def _accumulate(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    S, E, splits = a["S"], a["E"], a["splits"]
    both = "other_counts" in a
    plane, shifts = S * E, splits * active.positions * E
    names = [("sample_active", 0), ("component_active", 1)]
    if both:
        names += [("other_component_active", 0), ("other_sample_active", 1)]
    if a["SHARED"]:
        names = [name for name in names if "component" in name[0]]
    read = {name: flags_of(a, (a["N"], a["M"])[of], active.whole[of]) for name, of in names}
    eps = [f"{other}{role}_eps" for other in ("", "other_") for role in ("sample", "component")]
    read |= {name: programs for name in eps if name in a}
    read |= {name: 4 * programs for name in ("counts", "other_counts") if name in a}
    read["y"] = active.samples * E + shifts
    read |= dict.fromkeys(("x", "mu"), active.components * E + shifts)
    read["stds"] = active.stds * E
    written: dict[str, float] = {"partial_sums": 3 * programs * (1 + both)}
    if splits == 1:
        written["state"] = 4 * plane * (1 + both)
    else:
        written["parts"] = 5 * splits * plane * (1 + both)
        written["split_samples"] = programs * (1 + both)
    variances = _OWN_STDS * active.samples * a["OWN_STDS"] * (not a["SHARED"])
    flops = _SAMPLE * active.samples + variances + _COMPONENT * active.components
    return read, written, flops * E


def flags_of(a: Arguments, rows: int, whole: float) -> float:
    """Not those of whole groups, of positions at which every row contributes, in whole tiles."""
    groups = rows - rows % (4 * a["ROWS"])
    return float(a["tiles"] * a["S"] * rows - a["E"] // a["FEATURES"] * whole * groups)


def _finish(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    plane, shifts = a["S"] * a["E"], active.positions * a["E"]
    if not programs:
        return {}, {}, 0
    read = {"y": shifts, "x": shifts, "mu": shifts, "counts": 4 * programs}
    read |= {"parts": 5 * a["splits"] * plane, "split_samples": programs * a["splits"]}
    written = {"state": 4 * plane, "partial_sums": 3 * programs}
    return read, written, _MERGE * a["splits"] * plane


KERNELS: dict[str, Callable[[int, Arguments, Any], Elements]] = {
    "accumulate_kernel": _accumulate,
    "finish_kernel": _finish,
}
