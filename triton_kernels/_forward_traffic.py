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
SAMPLE, OWN_STDS, COMPONENT = 5 + 3, 2 + 4, 3 + 2 + 4 + 1 + 7 + 4
_MERGE = 20  # of the parts of one split


def expected(a: Arguments, density: float) -> ActiveRoles:
    """For a mask of that density, the same for both roles of a row; no data is looked at."""
    S = a["S"]
    N, M = (a["N"], a["M"]) if "N" in a else (a.get("rows", 0),) * 2
    both = a.get("MIXTURES") == 2
    samples, components = density * S * (N + M * both), density * S * (M + N * both)
    apart = "N" in a and not both and a["OWN_STDS"]  # rows in either role
    stds = samples + components if apart else components
    positions, whole = S * (1 + both), S if density == 1 else 0
    return ActiveRoles(samples, components, stds, positions, (whole, whole))


def counted(a: Arguments) -> ActiveRoles:
    """From the data of the launch, once the launches before it have run."""
    counts = a["counts"].view(-1, 4, a["S"])
    positions = int((counts[:, :2] > 0).all(1).sum())
    if "sample_active" in a:
        samples, components = a["sample_active"] != 0, a["component_active"] != 0
        whole = int((samples & components).all(0).sum())
        stds = int((samples | components).sum())
        return ActiveRoles(int(samples.sum()), int(components.sum()), stds, positions, (whole,) * 2)
    if "sample_mask" not in a:
        return ActiveRoles(0, 0, 0, positions, (0, 0))
    sizes = (a["sample_start"], a["N"]), (a["component_start"], a["M"])
    # Of each range of rows those that contribute as samples, and as components.
    found: list[list[Tensor]] = [[], []]
    for d, (n, m, _, _) in enumerate(counts):
        for of, name, partners in ((d, "sample_mask", m), (1 - d, "component_mask", n)):
            start, rows = sizes[of]
            found[of].append(a[name][start : start + rows] & (partners > 0))
    (first, *other), (*other_samples, last) = found[0], found[1][::-1]
    samples = sum(int(t.sum()) for t in (first, *other_samples))
    components = sum(int(t.sum()) for t in (last, *other))
    if len(counts) == 2:
        stds = sum(int((of[0] | of[1]).sum()) for of in found)
    else:
        stds = components + samples * a["OWN_STDS"]
    of_first, of_other = (int(torch.stack(of).all(0).all(0).sum()) for of in found)
    return ActiveRoles(samples, components, stds, positions, (of_first, of_other))


def _accumulate(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    S, E, splits = a["S"], a["E"], a["splits"]
    both = a["MIXTURES"] == 2
    plane, shifts = S * E, splits * active.positions * E
    of_first, of_other = (flags_of(a, a[n], active.whole[of]) for of, n in enumerate("NM"))
    read = {"sample_mask": of_first, "component_mask": of_other}
    if a["SHARED"]:
        read = {"component_mask": of_first + of_other}
    elif both:
        read = dict.fromkeys(read, of_first + of_other)
    eps = [f"{other}{role}_eps" for other in ("", "other_") for role in ("sample", "component")]
    read |= {name: programs for name in eps if name in a}
    read["counts"] = 4 * programs * (1 + both)
    read["y"] = active.samples * E + shifts
    read |= dict.fromkeys(("x", "mu"), active.components * E + shifts)
    read["stds"] = active.stds * E
    written: dict[str, float] = {"partial_sums": 3 * programs * (1 + both)}
    if splits == 1:
        written["state"] = 4 * plane * (1 + both)
    else:
        written["parts"] = 5 * splits * plane * (1 + both)
        written["split_samples"] = programs * (1 + both)
    variances = OWN_STDS * active.samples * a["OWN_STDS"] * (not a["SHARED"])
    flops = SAMPLE * active.samples + variances + COMPONENT * active.components
    return read, written, flops * E


def flags_of(a: Arguments, rows: int, whole: float) -> float:
    """Not those of whole groups, of positions at which every row contributes, in whole tiles."""
    groups = rows - rows % (4 * a["ROWS"])
    return float(a["tiles"] * a["S"] * rows - a["E"] // a["FEATURES"] * whole * groups)


def _finish(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    mixtures = programs // (a["tiles"] * a["S"])
    plane, shifts = mixtures * a["S"] * a["E"], active.positions * a["E"]
    read = {"y": shifts, "x": shifts, "mu": shifts, "counts": 4 * programs}
    read |= {"parts": 5 * a["splits"] * plane, "split_samples": programs * a["splits"]}
    written = {"state": 4 * plane, "partial_sums": 3 * programs}
    return read, written, _MERGE * a["splits"] * plane


KERNELS: dict[str, Callable[[int, Arguments, Any], Elements]] = {
    "accumulate_kernel": _accumulate,
    "finish_kernel": _finish,
}
