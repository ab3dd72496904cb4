"""What the kernels of one group of rows move and compute, see `_traffic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._backward_traffic import PULL_C, PULL_OWN, PULL_STDS, PULL_Y
from ._forward_traffic import (
    COMPONENT,
    OWN_STDS,
    SAMPLE,
    ActiveRoles,
    Arguments,
    Elements,
    counted,
    expected,
)

__all__ = ["KERNELS", "counted", "expected"]


def _rows(programs: int, a: Arguments, active: ActiveRoles, own: bool) -> dict[str, float]:
    """Read by either kernel; `own` says whether variances of samples are used."""
    E, two = a["E"], a["MIXTURES"] == 2
    of_tiles = a["tiles"] * a["S"]
    read = dict.fromkeys(("x", "mu"), active.components * E) | {"y": active.samples * E}
    stds = active.stds if own else active.components
    read |= {"stds": stds * E, "counts": 3 * programs}
    rows = a["N"] + a["M"]
    again = rows if own and two and not a["SHARED"] else 0
    read["sample_mask"] = of_tiles * ((rows if two else a["N"]) + again)
    read["component_mask"] = of_tiles * (rows if two else a["M"])
    eps = ["component_eps", "other_component_eps"]
    eps += ["sample_eps", "other_sample_eps"] if own else []
    return read | {name: programs for name in eps if name in a}


def _one_group(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    S, E = a["S"], a["E"]
    written: dict[str, float] = {"lost": a["MIXTURES"] * S * E, "partial_sums": 3 * programs}
    variances = OWN_STDS * active.samples * a["OWN_STDS"] * (not a["SHARED"])
    flops = SAMPLE * active.samples + variances + COMPONENT * active.components
    return _rows(programs, a, active, a["OWN_STDS"]), written, flops * E


def _gradient(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    S, E, two = a["S"], a["E"], a["MIXTURES"] == 2
    own = a["OWN_STDS"] and "d_stds" in a
    read = _rows(programs, a, active, own)
    if "upstream" in a:
        read["upstream"] = 3 * programs * a["MIXTURES"]
    else:
        read["of_total"] = programs * a["has_total"]
        read["of_terms"] = 5 * programs * a["has_terms"]
    everything = a["N"] + a["M"] if two or a["ZEROS"] else 0
    rows = {"d_y": everything or a["N"]} | dict.fromkeys(
        ("d_x", "d_mu", "d_stds"), everything or a["M"]
    )
    written: dict[str, float] = {name: n * S * E for name, n in rows.items() if name in a}
    stds, pulls = "d_stds" in a, any(name in a for name in ("d_x", "d_mu", "d_stds"))
    flops = active.samples * (SAMPLE + PULL_Y * ("d_y" in a) + PULL_OWN * own)
    flops += active.components * (COMPONENT + PULL_C * pulls + PULL_STDS * stds)
    return read, written, flops * E


KERNELS: dict[str, Callable[[int, Arguments, Any], Elements]] = {
    "one_group_kernel": _one_group,
    "one_group_gradient_kernel": _gradient,
}
