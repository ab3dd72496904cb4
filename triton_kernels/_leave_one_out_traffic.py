"""What the kernels of "leave_one_out" move and compute, see `_traffic`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._forward_traffic import ActiveRoles, Arguments, Elements, counted, expected, flags_of

__all__ = ["KERNELS", "counted", "expected"]

# Operations per element, as in the source; 1/4 of those of a group: 12 pairs of 3, means and
# squares of both roles, and one merge with two sums over pairs.
_ROW = 1 + 3 + 2 + 1 + 1 + 9 + 3 + 5 + 10
_MERGE = 38  # of the parts of one split
_PAIR = 3 + 4  # of a gradient: in the first role of a row, and in its second


def _leave_one_out(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    E, splits = a["E"], a["splits"]
    plane, shifts = a["S"] * E, splits * active.positions * E
    roles = ["component_active"] if a["SHARED"] else ["sample_active", "component_active"]
    read = {name: flags_of(a, a["rows"], active.whole[0]) for name in roles}
    read |= {name: programs for name in ("sample_eps", "component_eps") if name in a}
    read |= {"counts": 3 * programs, "y": active.samples * E, "stds": active.stds * E}
    read |= dict.fromkeys(("x", "mu"), active.components * E + shifts)
    written: dict[str, float] = {"partial_sums": 3 * programs}
    if splits == 1:
        written["state"] = 4 * plane
    else:
        written |= {"parts": 9 * splits * plane, "split_samples": programs}
    return read, written, _ROW * active.stds * E


def _finish(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    plane, shifts = a["S"] * a["E"], active.positions * a["E"]
    if not programs:
        return {}, {}, 0
    read = {"x": shifts, "mu": shifts, "counts": 3 * programs}
    read |= {"parts": 9 * a["splits"] * plane, "split_samples": programs * a["splits"]}
    return read, {"state": 4 * plane, "partial_sums": 3 * programs}, _MERGE * a["splits"] * plane


def _gradient_of_few(programs: int, a: Arguments, active: ActiveRoles) -> Elements:
    """Every row once, and once more, from the cache, for each group of four rows that it meets."""
    E, S, rows, tiles = a["E"], a["S"], a["rows"], a["tiles"]
    groups = -(-rows // 4)
    pull_y, pull_stds = "d_y" in a, "d_stds" in a
    pull_c = pull_stds or "d_x" in a or "d_mu" in a
    shifts = programs // (tiles * S) * active.positions * E
    met_in_whole = 0 if rows % 4 else E // a["FEATURES"] * active.whole[0]
    flags = tiles * S * 2 * rows + (tiles * S - met_in_whole) * (groups - 1) * rows
    read = {"sample_active": flags, "component_active": flags, "counts": 3 * programs}
    read |= {name: programs for name in ("sample_eps", "component_eps") if name in a}
    if "upstream" in a:
        read["upstream"] = 3 * programs
    else:
        read["of_total"] = programs * a["has_total"]
        read["of_terms"] = 5 * programs * a["has_terms"]
    read["y"] = active.samples * E * (pull_y + groups * pull_c)
    centres = active.components * E * (pull_c + groups * pull_y) + shifts
    read |= {"x": centres, "mu": centres}
    read["stds"] = active.stds * E * pull_c + active.components * E * groups * pull_y
    written: dict[str, float] = {
        name: rows * S * E for name in ("d_y", "d_x", "d_mu", "d_stds") if name in a
    }
    return read, written, _PAIR * active.stds * (rows - 1) * E


KERNELS: dict[str, Callable[[int, Arguments, Any], Elements]] = {
    "leave_one_out_kernel": _leave_one_out,
    "leave_one_out_finish_kernel": _finish,
    "gradient_of_few_kernel": _gradient_of_few,
}
