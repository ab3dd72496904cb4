"""How close is close: the comparison that the tests make, for results that come from a device.

    error <= 2 * error of eager torch in the same dtype + 8 * finfo(dtype).eps * sum |terms|

on the host, against float64; see tests/rules.py. Once eps is known the loss is a sum over positions
and features, and a gradient depends on its own position only: of large inputs a sample is compared.
Its eps is that of the whole, because the sample has the least stds, see `_loss.small_inputs`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import rules
import torch
from cases import FLOATING, value_and_gradients
from oracle import (
    LOG_DETERMINANT,
    MAHALANOBIS,
    STD_LOG,
    TOTAL,
    accumulation_dtype,
    broadcast_energies,
    loop_energies,
    mutual_information,
)
from torch import Tensor

from ._loss import Evaluation, Inputs, terms_without_gradients

_NAMES = ("means", "stds", "clean", "noisy")
_PAIR_ELEMENTS = 1 << 22  # pairs times positions times features that the host compares
_LOOP_ROWS = 16  # above, the double loop over pairs takes too long, and a broadcast does it


class Outcome(NamedTuple):
    """Of several comparisons, the one that comes closest to its bound, or exceeds it most."""

    what: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # never with NaN

    @property
    def share(self) -> float:
        """The error in units of its bound."""
        if self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound > 0 else float("inf")


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome that says most: one that fails where there is any."""
    return max(outcomes, key=lambda o: (not o.passed, o.share))


def rule10(
    inputs: Inputs,
    found: Evaluation,
    *,
    pairing: str = "sub_batch",
    combine: bool = True,
    entry: str = TOTAL,
    estimator: str = "jensen",
) -> Outcome:
    """Compare value and gradients; of large inputs the value with the plain implementation, which
    adds up in float64, and a sample of the gradients. Under logsumexp every gradient depends on all
    positions, and inputs must be small enough to be compared whole."""
    B, S, E = inputs[0].shape
    rows = B if pairing == "leave_one_out" else B // 2
    positions, features = _sample(S, E, _PAIR_ELEMENTS // rows**2)
    whole = len(positions) == S and len(features) == E
    if not whole and estimator != "jensen":
        raise ValueError(f"{(B, S, E)} is too large to be compared whole")
    part = [_cut(t, positions, features) for t in inputs]
    acc = accumulation_dtype(*(inputs[i] for i in FLOATING))
    options = {
        "estimator": estimator,
        "pairing": pairing,
        "combine": combine,
        "reduction": "sum",
        "safety_factor": 100.0,
    }

    def formula(energies, dtype, tensors):
        wide = [t.to(dtype) if t.dim() == 3 else t for t in tensors]
        return mutual_information(wide, eps_dtype=acc, energies=energies, **options)[entry]

    exact = loop_energies if B <= _LOOP_ROWS else broadcast_energies
    true = value_and_gradients(
        lambda t: formula(exact, torch.float64, t), part, dtype=torch.float64
    )
    naive = value_and_gradients(lambda t: formula(broadcast_energies, acc, t), part)
    scales = rules.scales(part, eps_dtype=acc, **options)

    outcomes = []
    if whole:
        outcomes += [_compare("value", found.value.cpu(), naive[0], true[0], scales[0])]
    else:
        outcomes += [_value_of_large(inputs, found, pairing, combine)]
    for name, gradient, eager, want, scale in zip(
        _NAMES, found.gradients, naive[1], true[1], scales[1], strict=True
    ):
        ours = _cut(gradient, positions, features)
        # Where an entry does not depend on an input, autograd has no gradient.
        eager, want = (torch.zeros_like(scale) if g is None else g for g in (eager, want))
        outcomes.append(_compare(f"gradient of {name}", ours, eager, want, scale))
    return worst(outcomes)


def _compare(what: str, ours: Tensor, naive: Tensor, true: Tensor, scale: Tensor) -> Outcome:
    """The element that comes closest to its bound."""
    if ours.dtype == torch.float64:
        # The double loop rounds as well.
        bound = rules.FLOAT64_RELATIVE * scale
    else:
        bound = 2 * (naive.double() - true).abs().max()
        bound = bound + 8 * torch.finfo(ours.dtype).eps * scale
    error, bound = torch.broadcast_tensors((ours.double() - true).abs(), torch.as_tensor(bound))
    if not error.numel():
        return Outcome(what, 0.0, 0.0)
    share = torch.where(error == 0, 0, error / bound).nan_to_num(nan=torch.inf)
    at = share.argmax()
    return Outcome(what, error.flatten()[at].item(), bound.flatten()[at].item())


def _value_of_large(inputs: Inputs, found: Evaluation, pairing: str, combine: bool) -> Outcome:
    plain = terms_without_gradients(inputs, backend="reference", pairing=pairing, combine=combine)
    scale = sum(abs(plain[name]) for name in (MAHALANOBIS, LOG_DETERMINANT, STD_LOG))
    error = abs(found.value.item() - plain[TOTAL])
    return Outcome("value", error, 8 * torch.finfo(found.value.dtype).eps * scale)


def _sample(S: int, E: int, budget: int) -> tuple[Tensor, Tensor]:
    """Positions and features, the first and the last among them; all where no more than `budget`
    of their combinations exist."""
    if budget >= S * E:
        return torch.arange(S), torch.arange(E)
    positions = min(S, 8 if budget >= 32 else 2)
    features = min(E, max(budget // positions, 2))
    return _spread(S, positions), _spread(E, features)


def _spread(size: int, count: int) -> Tensor:
    return torch.linspace(0, size - 1, count, dtype=torch.float64).round().long().unique()


def _cut(t: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    """Those positions (and features) of `t` (B, S, E) or (B, S), on the host."""
    columns = torch.stack([t[:, s].cpu() for s in positions.tolist()], 1)
    return columns[..., features] if t.dim() == 3 else columns
