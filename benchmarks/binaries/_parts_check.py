"""The kernels of ranks and micro-batches, for `kernels_check`: registers, spills, wide accesses,
and what loops over rows ask of a GPU beside the memory, see `_budget`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from _ahead_of_time import Binary
from _budget import LIMIT, worst
from _part import Part
from _targets import LIMITED, Row, specialised
from fused_mi._building_blocks import Partners
from fused_mi._mixture import Mixture, Scoring, mixtures_of
from fused_mi._precision import accumulation_dtype
from fused_mi.triton_kernels._launch import Launch, recorded
from fused_mi.triton_kernels.parts import merge, parts, pull

B, S, E = 64, 4, (4096, 1000)  # rows of this rank, features: see `kernels_check`
PAIRINGS = ("sub_batch", "symmetric", "leave_one_out")
SETS = 8
STREAMING = ("parts_kernel", "pull_kernel")
"""They read the inputs, in a loop over rows."""
KERNELS = (*STREAMING, "parts_finish_kernel", "parts_again_kernel", "merge_kernel", "meet_kernel")
IN_FLOAT64 = ("parts_again_kernel", "merge_kernel")
"""Whatever the inputs are."""
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")  # their loops are those of the moments

# Least warps of an SM that have registers, as those of the moments.
LIMITS = {"parts_kernel": 8, "halves": 16, "both": 12, "float64": 8, "other": 16}
MOST_SPILLED, FEW_SPILLED = {"sm_100": 64, "gfx942": 0}, 8

COLUMNS = ("128-bit loads", "stores", "per byte", "share")
LEGEND = """in the loop over rows: 128-bit of all load and store instructions; all instructions,
FP32, FP64 and MUFU of a lane for each byte, and what takes longest of them as a share of the
memory's time"""


def launches(
    pairing: str,
    features: int,
    planes: torch.dtype | None,
    wanted: tuple[bool, ...],
    dtype: torch.dtype,
    same_mask: bool = True,
) -> list[Launch]:
    """What a rank, or with `planes` a micro-batch, launches for a loss and its gradients."""
    y, x, mu, stds = (torch.empty((B, S, features), dtype=dtype, device="meta") for _ in range(4))
    mask = torch.empty((B, S), dtype=torch.bool, device="meta")
    T = accumulation_dtype(y)
    told = T if planes is None else planes
    mixtures = mixtures_for(pairing, (y, x, mu, stds), mask, T, same_mask)
    partners = [Partners(*mask.new_empty((2, S), dtype=torch.int32)) for _ in mixtures]
    kept = [Partners(*(t.to(torch.float64) for t in p)) for p in partners]
    in_float64 = [
        m._replace(
            component_eps=m.component_eps.to(torch.float64),
            sample_eps=None if m.sample_eps is None else m.sample_eps.to(torch.float64),
        )
        for m in mixtures
    ]
    with recorded() as found:
        of_rows = parts(y, x, mu, stds, mixtures, partners, told)
        sets = of_rows.planes.flatten(2)[:, None].expand(-1, SETS, -1, -1)
        counts = of_rows.counts[:, None].expand(-1, SETS, -1).long()
        merge(sets, counts, features, 0, pairing == "leave_one_out")
        met = of_rows.planes.to(torch.float64)
        pull(of_rows.sums, y, x, mu, stds, in_float64, kept, met, wanted)
    return [this for this in found if this.kernel.__name__ in KERNELS]


def mixtures_for(
    pairing: str,
    inputs: tuple[torch.Tensor, ...],
    mask: torch.Tensor,
    T: torch.dtype,
    same_mask: bool,
) -> list[Mixture]:
    """Of a rank that has rows of both halves."""
    y, x, mu, stds = inputs
    scoring = Scoring(mask, mask if same_mask else None, pairing=pairing, own_stds=pairing != "all")
    eps = mask.new_empty((), dtype=T)
    return mixtures_of(scoring, (y, x, mu, stds), lambda _, roles, *__: [eps] * len(roles))


def rows(targets: list[str]) -> list[Row]:
    """With the roles of a pass as their case."""
    every = (True,) * 4
    cases = {}
    for features in E:
        for pairing in PAIRINGS:
            of = f"{pairing} of {features}"
            cases[of] = partial(launches, pairing, features, None, every)
        cases[f"micro-batches of {features}"] = partial(
            launches, PAIRINGS[1], features, torch.float64, every
        )
    here = [target for target in targets if target in TARGETS]
    return [row._replace(case=_roles(row)) for row in specialised(here, cases)]


def _roles(row: Row) -> str:
    flags = row.constants
    if row.kernel == "parts_kernel":
        one = "leave_one_out" if flags["TOGETHER"] else "sub_batch"
        return one if flags["MIXTURES"] == 1 else "symmetric"
    if row.kernel == "merge_kernel":
        return "apart" if flags["APART"] else ""
    if row.kernel != "pull_kernel":
        return ""
    if flags["CAREFUL"]:
        return "careful"
    # None is a constant: the first pass of "sub_batch" is of samples, the second of components.
    return "halves" if "met_by_components" in flags else "both"


def least_warps(row: Row) -> int:
    if row.in_float64 or row.kernel in IN_FLOAT64:
        return LIMITS["float64"]
    return LIMITS.get(row.kernel, LIMITS.get(row.case, LIMITS["other"]))


def most_spilled(row: Row) -> int:
    return MOST_SPILLED.get(row.target, FEW_SPILLED)


def _in_rows(row: Row) -> bool:
    return row.kernel in STREAMING and row.case != "careful"


def problems(row: Row, binary: Binary) -> Iterator[str]:
    # Divisions in float64 are calls, for which a number may wait; few items are out of range.
    if row.case != "careful" and any(kind == "local" for kind, _ in binary.in_loops):
        yield "accesses to local memory in a loop"
    if not _in_rows(row):
        return
    widths = [bits for kind, bits in binary.in_loops if kind in ("load", "store") and bits > 8]
    narrow = all(dtype.itemsize == 2 for dtype in row.dtypes)
    both = narrow and row.case in ("both", "symmetric", "leave_one_out")
    least = 64 if row.in_float64 or both else 128
    if min(widths, default=0) < least:
        yield f"{min(widths, default=0)} bits in the loop over rows"
    if row.in_float64:
        return
    loops = [loop for loop in binary.loops if loop.bytes]
    if any(name in ("DADD", "DMUL", "DFMA") for loop in loops for name in loop.names):
        yield "float64 in the loop over rows"
    found = worst(row.target, binary)
    if found and row.target == LIMITED and found[1] > LIMIT:
        yield f"more than {LIMIT} of the memory's time"


def numbers(row: Row, binary: Binary) -> list[str]:
    if not _in_rows(row):
        return ["", "", "", ""]
    found = worst(row.target, binary)
    budget = ["", ""] if found is None else [str(found[0]), f"{found[1]:.2f}"]
    return [_wide(binary, "load"), _wide(binary, "store"), *budget]


def _wide(binary: Binary, kind: str) -> str:
    of_kind = {bits: n for (name, bits), n in binary.in_loops.items() if name == kind}
    wide = sum(n for bits, n in of_kind.items() if bits >= 128)
    return f"{wide}/{sum(of_kind.values())}" if of_kind else ""


PART = Part(rows, least_warps, most_spilled, numbers, problems, COLUMNS, LEGEND)
