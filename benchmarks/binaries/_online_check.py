"""The online log-sum-exp, for `kernels_check`: a thousand samples against a vocabulary, and few."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from _ahead_of_time import Binary
from _pairs_check import COLUMNS, LEGEND, cells, shares
from _part import Part
from _targets import LIMITED, Row, specialised
from fused_mi._building_blocks import Own
from fused_mi._mixture import Mixture
from fused_mi.triton_kernels._launch import Launch, recorded
from fused_mi.triton_kernels.online import online, online_backward

M, E = 50_000, 576
SAMPLES = {"tokens": 1024, "few tokens": 16, "own stds": 1024}  # "own stds": no weights, no origins
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")
KERNELS = {
    "online_kernel": 2,
    "weigh_kernel": 2,
    "samples_gradient_kernel": 3,
    "components_gradient_kernel": 4,
    "online_finish_kernel": 0,
    "sum_weights_kernel": 0,
    "add_gradients_kernel": 0,
}
"""Multiply-adds, multiplications or additions of each pair and feature that the formula needs."""

OWN = ("online_kernel", "weigh_kernel")

LEAST_WARPS = {"regular": 16, "careful": 8}  # of an SM that have registers
# Of the instructions of the inner loop on sm_90, those of the FMA pipe, of a thousand samples.
LEAST_FMA = {
    "online_kernel": 0.5,
    "weigh_kernel": 0.5,
    "samples_gradient_kernel": 0.55,
    "components_gradient_kernel": 0.55,
}
# Bytes of a thread, outside of the inner loop: what waits for the end of a chunk of 1024 features.
# On sm_100 packed arithmetic pairs up registers, for few samples in the inner loop too.
MOST_SPILLED = {"weigh_kernel": 80}
FEW_SPILLED, SPILLED_ELSEWHERE = 32, 96


def launches(case: str, dtype: torch.dtype) -> list[Launch]:
    """Forward and all gradients, without data."""
    N, own_stds = SAMPLES[case], case == "own stds"

    def meta(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    inputs = meta(N, 1, E), meta(M, 1, E), meta(M, 1, E), meta(M, 1, E)
    masks = meta(N, 1, dtype=torch.bool), meta(M, 1, dtype=torch.bool)
    eps = meta(2, dtype=torch.float32)
    mixture = Mixture(*masks, eps[0], eps[1] if own_stds else None, (0, N), (0, M))
    wide = partial(meta, dtype=torch.float64)
    own = None if own_stds else Own(of_samples=meta(N, dtype=torch.int64), left_out=False)
    weights, rows = None if own_stds else wide(M), wide(1, 5, N)
    wanted = [True] * (4 if own_stds else 5)
    with recorded() as found:
        online(inputs, [mixture], own, weights, rows)
        online_backward(wide(1, 5, 1), inputs, [mixture], own, weights, rows, wanted)
    return [launch for launch in found if launch.kernel.__name__ in KERNELS]


def rows(targets: list[str]) -> list[Row]:
    """On sm_90 all kernels; on the others the two that are no others' as well and no rare case."""
    cases = {case: partial(launches, case) for case in SAMPLES}
    found = specialised([target for target in targets if target in TARGETS], cases)
    return [row for row in found if _needed(row)]


def _needed(row: Row) -> bool:
    if not {torch.float32, torch.bfloat16} & {*row.dtypes}:
        return False
    return row.target == LIMITED or (row.kernel in OWN and not careful(row))


def careful(row: Row) -> bool:
    return bool(row.constants.get("CAREFUL"))


def least_warps(row: Row) -> int:
    return LEAST_WARPS["careful" if careful(row) else "regular"]


def most_spilled(row: Row) -> int:
    if row.target != LIMITED:
        return SPILLED_ELSEWHERE
    return MOST_SPILLED.get(row.kernel, FEW_SPILLED)


def loops(row: Row) -> bool:
    """Whether it has the loop over pairs of a thousand samples."""
    rows = row.constants.get("SAMPLES", row.constants.get("ROWS", 0))
    own_only = "component_eps" in row.constants  # None is a constant
    return KERNELS[row.kernel] > 0 and not careful(row) and not own_only and rows >= 32


def problems(row: Row, binary: Binary) -> Iterator[str]:
    needed = loops(row) or row.target == LIMITED
    if needed and (binary.inner["LDL"] or binary.inner["STL"]):
        yield "local memory in the inner loop"
    if loops(row) and row.target == LIMITED:
        pipe, _ = shares(row, binary, KERNELS[row.kernel])
        if pipe < LEAST_FMA[row.kernel]:
            yield f"less than {LEAST_FMA[row.kernel]:.0%} on the FMA pipe"


def numbers(row: Row, binary: Binary) -> list[str]:
    if not loops(row):
        return [""] * 4
    return cells(row, binary, KERNELS[row.kernel])


PART = Part(rows, least_warps, most_spilled, numbers, problems, COLUMNS, LEGEND)
