"""Every form of the losses through the front end of Triton, for one GPU: what a version of it does
not take, it does not take on any. No machine code: that takes ten times as long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any
from unittest import mock

import _parts_check
import torch
from _ahead_of_time import Specialisation, loaded, specialisations
from _targets import LIMITED, TARGETS
from fused_mi import _estimators
from fused_mi._mixture import AnyInputs, Scoring
from fused_mi.triton_kernels import estimators
from fused_mi.triton_kernels._launch import Launch, recorded
from triton.backends.nvidia.compiler import CUDABackend

TARGET, _ = TARGETS[LIMITED]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # the first one with every wanted gradient
ROWS = (6, 40)  # one group of each role, and more
PAIRINGS = ("all", "sub_batch", "symmetric", "leave_one_out")
WANTED = tuple(product((True, False), repeat=4))  # the first: all
FEW_WANTED = tuple(wanted for wanted in WANTED if sum(wanted) in (1, 4))


def forms(brief: bool) -> list[Specialisation]:
    """Each once: entropies, losses and token information, forward and all gradients that can be
    wanted, `brief`: all of them, and one at a time; the same of ranks and micro-batches."""
    found: dict[Specialisation, None] = {}

    def note(*options: Any) -> None:
        launches = _launches(FEW_WANTED if brief else WANTED, *options)
        found.update(dict.fromkeys(specialisations(launches, TARGET)))

    for options in product(DTYPES, ROWS, PAIRINGS, (True, False), ("jensen", "logsumexp")):
        note(*options)
    _note_weighted(note)
    # The same of many pairs, whose energies are not kept.
    with mock.patch.object(_estimators, "PAIRS_KEPT", 0):
        for options in product(DTYPES, ROWS, PAIRINGS, (True,), ("logsumexp",)):
            note(*options)
        _note_weighted(note)
    sets = FEW_WANTED if brief else WANTED
    of_all = product(DTYPES, PAIRINGS, (True, False), (None, torch.float64))
    for dtype, pairing, same_mask, planes in of_all:
        every = dtype == DTYPES[0] and same_mask and planes is None
        for wanted in sets if every else sets[:1]:
            of_ranks = _parts_check.launches(pairing, 256, planes, wanted, dtype, same_mask)
            found.update(dict.fromkeys(specialisations(of_ranks, TARGET)))
    return list(found)


def _note_weighted(note: Callable[..., None]) -> None:
    for dtype, rows, origins in product(DTYPES, ROWS, (True, False)):
        for left_out in (True, False) if origins else (False,):
            note(dtype, rows, "all", True, "logsumexp", True, origins, left_out)


def _launches(
    sets: Sequence[tuple[bool, ...]],
    dtype: torch.dtype,
    rows: int,
    pairing: str,
    combine: bool,
    estimator: str,
    weighted: bool = False,
    origins: bool = False,
    left_out: bool = False,
) -> list[Launch]:
    """Of inputs without data; of weighted components, the losses of each sample."""
    components = rows + (pairing == "all")
    y, x, mu, stds = (
        torch.empty((n, 2, 256), dtype=dtype, device="meta") for n in (rows, *[components] * 3)
    )
    inputs: AnyInputs = y, x, mu, stds
    mask, other = (torch.empty((n, 2), dtype=torch.bool, device="meta") for n in (rows, components))
    scoring = Scoring(
        mask,
        other if combine else None,
        torch.empty(rows, dtype=torch.int64, device="meta") if origins else None,
        pairing=pairing,
        own_stds=pairing != "all",
        reduction="none" if weighted else "sum",
        safety_factor=100.0,
        leave_origins_out=left_out,
    )
    if weighted:
        weights = torch.empty(components, dtype=torch.float32, device="meta")
        inputs = y, x, mu, stds, weights
    forward = getattr(estimators, estimator)
    backward = getattr(estimators, f"{estimator}_backward")
    with recorded() as launches:
        *upstream, state = forward(inputs, scoring)
        for wanted in sets if dtype == DTYPES[0] else WANTED[:1]:
            backward(tuple(upstream), inputs, scoring, state, (*wanted, True)[: len(inputs)])
    return launches


class _Taken(BaseException):
    """The front end has done its part: no error, which somebody might handle."""


def _stop(*_: object) -> None:
    raise _Taken


def _front_end(backend: object, stages: dict[str, object], *_: object) -> None:
    stages["ttir"] = _stop


def refusal(form: Specialisation) -> str | None:
    """What the front end says against a form."""
    with mock.patch.object(CUDABackend, "add_stages", _front_end):
        try:
            found = loaded(form)
        except _Taken:
            return None
    return f"{form.kernel}: {found}" if isinstance(found, str) else None  # compiled before, whole
