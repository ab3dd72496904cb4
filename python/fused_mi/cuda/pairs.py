"""The energies of all pairs: calls of the library for each mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._mixture import Mixture
from .._passes import Pass, gradients, nothing
from .._precision import accumulation_dtype
from ._library import operators

_Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]


class _Meeting(NamedTuple):
    """Which positions of a mixture contribute, and memory of its kernels."""

    mixture: Mixture
    sample_active: Tensor  # (N, S) bool
    component_active: Tensor  # (M, S) bool
    irregular: Tensor  # (1,) int32, 0: becomes 1 where something is out of range
    shift: Tensor  # (S, E), written by each call that needs it

    @classmethod
    def of(cls, mixture: Mixture, inputs: _Inputs) -> _Meeting:
        y = inputs[0]
        samples, components = (mask.contiguous() for mask in mixture.contributing())
        irregular = torch.zeros(1, dtype=torch.int32, device=y.device)
        shift = y.new_empty(y.shape[1:], dtype=_dtype(inputs))
        return cls(mixture, samples, components, irregular, shift)

    def arguments(self, inputs: _Inputs) -> tuple[Any, ...]:
        """The first ones of all operators of pairs."""
        m = self.mixture
        return (
            *inputs,
            self.sample_active,
            self.component_active,
            m.component_eps,
            m.sample_rows[0],
            m.component_rows[0],
            self.irregular,
            self.shift,
        )


def pairs(
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    mixtures: Sequence[Mixture],
    energies: Tensor | None = None,
) -> Tensor:
    """See `fused_mi.reference.pairs.pairs`."""
    inputs = (y, x, mu, stds)
    if energies is None:
        shape = len(mixtures), 3, mixtures[0].samples, mixtures[0].components
        energies = torch.empty(shape, dtype=torch.float64, device=y.device)
    if nothing(y, mixtures):
        return energies.zero_()
    for mixture, (q, g, k) in zip(mixtures, energies, strict=True):
        met = _Meeting.of(mixture, inputs)
        start, eps = mixture.component_rows[0], mixture.component_eps
        # First: it looks at every variance.
        logs = _log_determinants(inputs, met.component_active, eps, start, met.irregular)
        torch.matmul(met.sample_active.double(), logs.T, out=g)
        if mixture.sample_eps is None:
            k.zero_()
        else:
            start, eps = mixture.sample_rows[0], mixture.sample_eps
            logs = _log_determinants(inputs, met.sample_active, eps, start, met.irregular)
            torch.matmul(logs, met.component_active.double().T, out=k)
        operators().distances(*met.arguments(inputs), q)
    return energies


def _log_determinants(
    inputs: _Inputs, active: Tensor, eps: Tensor, start: int, irregular: Tensor
) -> Tensor:
    """`1/2 sum_e (log v + log 2 pi)` (rows, S) in float64, 0 where not active."""
    logs = torch.empty(active.shape, dtype=torch.float64, device=active.device)
    wide = _dtype(inputs) == torch.float64
    operators().log_determinants(inputs[3], active, eps, start, wide, irregular, logs)
    return logs


def pairs_backward(
    upstream: Tensor,
    y: Tensor,
    x: Tensor,
    mu: Tensor | None,
    stds: Tensor,
    state: None,
    mixtures: Sequence[Mixture],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """See `fused_mi.reference.pairs.pairs_backward`."""
    inputs = (y, x, mu, stds)
    plan = gradients(inputs, mixtures, wanted)
    met = [_Meeting.of(mixture, inputs) for mixture in mixtures] if plan.passes else []
    for this, write in plan.passes:
        d_y, *rest = (t if here else None for t, here in zip(plan.tensors, write, strict=True))
        i = this.as_samples
        if d_y is not None and i is None:
            d_y[slice(*this.rows)].zero_()
        elif d_y is not None and i is not None:
            of_q = upstream[i, 0].to(_dtype(inputs)).contiguous()
            operators().samples_gradient(*met[i].arguments(inputs), of_q, d_y)
        if any(write[1:]):
            _components_gradient(inputs, met, this, upstream, rest)
    return plan.tensors


def _components_gradient(
    inputs: _Inputs,
    met: Sequence[_Meeting],
    this: Pass,
    upstream: Tensor,
    tensors: Sequence[Tensor | None],
) -> None:
    i, j = this.as_samples, this.as_components
    of_q = of_logs = None
    own: tuple[Tensor | None, ...] = None, None, None
    if j is not None:
        arguments = met[j].arguments(inputs)
        of_q = upstream[j, 0].to(_dtype(inputs)).contiguous()
        if tensors[2] is not None:
            of_logs = (upstream[j, 1].T @ met[j].sample_active.double()).contiguous()
    else:  # rows that are no components, and meet no samples
        assert i is not None
        rows = met[i].mixture._replace(sample_rows=(0, 0), component_rows=this.rows)
        nobody = met[i].sample_active[:0]
        here = met[i]._replace(
            mixture=rows, sample_active=nobody, component_active=met[i].sample_active
        )
        arguments = here.arguments(inputs)
    if tensors[2] is not None and i is not None:
        eps = met[i].mixture.sample_eps
        if eps is not None:
            of_own = upstream[i, 2] @ met[i].component_active.double()
            own = eps, met[i].sample_active, of_own
    operators().components_gradient(*arguments, of_q, of_logs, *own, *tensors)


def _dtype(inputs: _Inputs) -> torch.dtype:
    return accumulation_dtype(*(t for t in inputs if t is not None))
