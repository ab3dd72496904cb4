"""Every form of the losses through the front end of Triton, for one GPU: what a version of it does
not take, it does not take on any. No machine code: that takes ten times as long."""

from __future__ import annotations

from itertools import product
from unittest import mock

import torch
from _ahead_of_time import Specialisation, loaded, specialisations
from _targets import TARGETS
from fused_mi._mixture import Scoring
from fused_mi.triton_kernels import estimators
from fused_mi.triton_kernels._launch import Launch, recorded
from triton.backends.nvidia.compiler import CUDABackend

TARGET, _ = TARGETS["sm_90"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)  # the first one with every wanted gradient
ROWS = (6, 40)  # one group of each role, and more
PAIRINGS = ("all", "sub_batch", "symmetric", "leave_one_out")
WANTED = tuple(product((True, False), repeat=4))  # the first: all


def forms() -> list[Specialisation]:
    """Each once: entropies and losses, forward and all gradients that can be wanted."""
    found: dict[Specialisation, None] = {}
    for options in product(DTYPES, ROWS, PAIRINGS, (True, False), ("jensen", "logsumexp")):
        found |= dict.fromkeys(specialisations(_launches(*options), TARGET))
    return list(found)


def _launches(
    dtype: torch.dtype, rows: int, pairing: str, combine: bool, estimator: str
) -> list[Launch]:
    """Of inputs without data."""
    components = rows + (pairing == "all")
    y, *of_components = (
        torch.empty((n, 2, 256), dtype=dtype, device="meta") for n in (rows, *[components] * 3)
    )
    inputs = y, *of_components
    mask, other = (torch.empty((n, 2), dtype=torch.bool, device="meta") for n in (rows, components))
    scoring = Scoring(mask, other if combine else None, pairing, pairing != "all", True, 100.0)
    forward = getattr(estimators, estimator)
    backward = getattr(estimators, f"{estimator}_backward")
    with recorded() as launches:
        *upstream, state = forward(inputs, scoring)
        for wanted in WANTED if dtype == DTYPES[0] else WANTED[:1]:
            backward(tuple(upstream), inputs, scoring, state, wanted)
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
