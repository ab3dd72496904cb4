"""What looks wrong in the values of a loss's arguments, for `explain(..., check=True)`.

Nothing here is an error to the losses: they compute what they are given. Each question is asked of
the positions that are active, once, with the device waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _calls, _checks
from ._mixture import Scoring
from ._precision import working_dtype
from .ops._backends import Finding

_FITS = 0.9, 1.1
"""Root mean squares of what should be N(0, 1): a cause that has such a one explains the data."""


class _Given(NamedTuple):
    """Active elements (n, E) of a batch whose samples were made from its own components."""

    names: Mapping[str, str]  # of y, x, mu, stds and mask, as the function calls them
    y: Tensor
    x: Tensor
    mu: Tensor
    stds: Tensor


def findings(tensors: Sequence[Any], eps: float | None) -> list[Finding]:
    """Of the first five arguments of `mutual_information_sub_batch` or `gaussian_mixture_entropy`;
    the place of the mask, which has a dimension less, tells which.

    Raises:
        TypeError, ValueError: as the loss; or there are not five tensors.
    """
    eps = _checks.fixed(eps)
    if len(tensors) != 5:
        raise TypeError(
            "tensors: expected the first five arguments of mutual_information_sub_batch or of "
            f"gaussian_mixture_entropy, got {len(tensors)} tensors"
        )
    if tensors[4].dim() < tensors[2].dim():
        return list(_of_entropy(tensors, eps))
    return list(_of_information(tensors, eps))


def _of_information(tensors: Sequence[Any], eps: float | None) -> Iterator[Finding]:
    mu, stds, mask, x, y = tensors
    arguments = (mu, stds, x, y, mask, True, None, 100.0, "jensen", "sum", "sub_batch", "keep")
    inputs, scoring = _calls.information(*arguments, eps, "raise")
    names = {
        "y": "noisy_input_embeddings",
        "x": "clean_input_embeddings",
        "mu": "means_tensor",
        "stds": "stds_tensor",
        "mask": "noise_mask",
    }
    here = _Given(names, *(t.detach()[scoring.sample_mask] for t in inputs))
    yield from _of_mask(names["mask"], mask, scoring, shared=True)
    yield from _of_values(here, eps)
    yield from _of_residuals(here, scoring.sample_mask)
    yield from _of_resolution(names["y"], here.y, here.stds)
    yield from _of_rows(names["x"], inputs[1].detach(), scoring.sample_mask)
    if torch.is_grad_enabled() and not y.requires_grad and (mu.requires_grad or stds.requires_grad):
        yield Finding(
            names["y"],
            "needs no gradient, while means or stds do",
            "make it from them, without detach() or no_grad(): they act through it as well",
        )


def _of_entropy(tensors: Sequence[Any], eps: float | None) -> Iterator[Finding]:
    x, y, mu, stds, mask = tensors
    arguments = (x, y, mu, stds, mask, None, 100.0, None, None, "jensen", "mean", eps)
    inputs, scoring = _calls.entropy(*arguments)
    names = {
        "y": "transformed_embeddings",
        "x": "clean_embeddings",
        "mu": "means",
        "stds": "stds",
        "mask": "mask",
    }
    samples, *components = (t.detach() for t in inputs)
    here = _Given(names, samples[scoring.sample_mask], *(t.flatten(0, 1) for t in components))
    yield from _of_mask(names["mask"], mask, scoring, shared=False)
    yield from _of_values(here, eps)
    everywhere = scoring.components(inputs[1])
    yield from _of_rows(names["x"], components[0], everywhere)
    if samples.shape == components[0].shape:
        active = scoring.sample_mask
        own = _Given(names, *(t[active] for t in (samples, *components)))
        if _fits(_residuals(own.y, own.x, own.mu, own.stds)):
            yield Finding(
                names["y"],
                f"row for row it is {names['x']} + {names['mu']} + {names['stds']} * N(0, 1)",
                "give samples of another batch: each of these is scored against its own component",
            )


def _of_mask(name: str, mask: Tensor, scoring: Scoring, shared: bool) -> Iterator[Finding]:
    """`shared`: samples meet at positions that several of them have."""
    if mask.dtype != torch.bool:
        values = mask.detach()
        if values.is_floating_point():
            values = values.float()  # float8 has no comparisons
        if values.dtype.is_signed and (values < 0).any():
            yield Finding(
                name,
                "has negative values, as masks have that are added to attention scores",
                "give 0 for positions without noise, and 1 or True for those with noise",
            )
        elif ((values != 0) & (values != 1)).any():
            yield Finding(
                name,
                "has values other than 0 and 1",
                "weigh the loss elsewhere: what is not 0 counts as 1",
            )
    active = scoring.sample_mask
    if not active.any():
        yield Finding(name, "no position is active", "the loss is 0, and so is each gradient")
    elif shared and len(active) > 1 and active.sum(0).max() < 2:
        yield Finding(
            name,
            "no position is active in two rows",
            "rows have nothing in common: the loss is 0; align them, or set "
            "combine_noise_masks_for_mutual_information_sub_batches=False",
        )
    elif (alone := int((~active.any(1)).sum())) > 0:
        yield Finding(
            name,
            f"{alone} of {len(active)} rows have no active position",
            "leave them out: they count among the samples, with an energy of 0",
        )


def _of_values(here: _Given, eps: float | None) -> Iterator[Finding]:
    """Each number by itself."""
    for role, t in (("y", here.y), ("x", here.x), ("mu", here.mu), ("stds", here.stds)):
        bad = int((~t.isfinite()).sum())
        if bad:
            yield Finding(
                here.names[role],
                f"{bad} of {t.numel()} active elements are NaN or infinite",
                f"find where they come from, or leave their positions out of {here.names['mask']}",
            )
    stds, count = here.stds, here.stds.numel()
    negative = int((stds < 0).sum())
    if negative and (here.mu >= 0).all() and 5 * negative > count:
        yield Finding(
            here.names["stds"],
            f"{negative} of {count} active elements are negative, and no mean is",
            f"look whether {here.names['mu']} and {here.names['stds']} are swapped",
        )
    elif negative:
        yield Finding(
            here.names["stds"],
            f"{negative} of {count} active elements are negative, least {stds.min().item():.3g}",
            "give exp() or softplus() of what the layer predicts: this loss sees only squares, and "
            "logs of stds are NaN",
        )
    squares = _wide(stds).square()
    zeros = int((squares == 0).sum()) if eps is None else int((squares < eps).sum())
    if zeros:
        what = "0" if eps is None else f"below the root of eps = {eps:.3g}"
        yield Finding(
            here.names["stds"],
            f"{zeros} of {count} active elements are {what}",
            "give the layer a least std: here the stabiliser is all the noise there is",
        )
    positive = squares[(squares > 0) & squares.isfinite()]
    if positive.numel() and (least := positive.min().item()) < 1e-8 * positive.median().item():
        yield Finding(
            here.names["stds"],
            f"the least is {math.sqrt(least):.3g}, less than 1e-4 of the median",
            "give the layer a least std: a loss weighs each element by 1 / std^2",
        )


def _wide(t: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return t.to(working_dtype(t.device))


def _residuals(y: Tensor, x: Tensor, mu: Tensor, stds: Tensor) -> Tensor:
    """What is N(0, 1) of y = x + mu + stds N(0, 1), where it can be told."""
    found = (_wide(y) - _wide(x) - _wide(mu)) / _wide(stds)
    return found[found.isfinite()]


def _size(residuals: Tensor) -> float:
    """Their root mean square; NaN where there are too few."""
    return residuals.square().mean().sqrt().item() if residuals.numel() > 1 else math.nan


def _fits(residuals: Tensor) -> bool:
    """Whether they are of size 1, but for their number."""
    slack = 4 / math.sqrt(2 * max(residuals.numel(), 1))
    return _FITS[0] - slack < _size(residuals) < _FITS[1] + slack


def _of_residuals(here: _Given, active: Tensor) -> Iterator[Finding]:
    """Whether the samples are what means and stds say."""
    names, y, x, mu, stds = here
    found = _residuals(y, x, mu, stds)
    if found.numel() < 2:
        return
    size = _size(found)
    formula = f"({names['y']} - {names['x']} - {names['mu']}) / {names['stds']}"
    if _fits(found):
        if _same_noise(here, active):
            yield Finding(
                names["y"],
                "every row has the same noise",
                "draw noise of the shape of the embeddings: rows tell each other's noise",
            )
        return
    zero = torch.zeros_like(mu)
    causes = (
        ("mu", f"it is 1 with {names['mu']} and {names['stds']} swapped", (y, x, stds, mu)),
        ("x", f"it is 1 with {names['x']} and {names['y']} swapped", (x, y, mu, stds)),
        ("stds", f"it is 1 where {names['stds']} are variances", (y, x, mu, _wide(stds).sqrt())),
        ("stds", f"it is 1 where {names['stds']} are logs", (y, x, mu, _wide(stds).exp())),
        (
            "stds",
            f"it is 1 where {names['stds']} are logs of variances",
            (y, x, mu, (_wide(stds) / 2).exp()),
        ),
        ("y", f"it is 1 where {names['mu']} were not added", (y, x, zero, stds)),
    )
    problem = f"the root mean square of {formula} is {size:.3g}, not 1"
    fitting = []
    for role, advice, arguments in causes:
        residuals = _residuals(*arguments)
        if _fits(residuals):
            fitting.append((abs(_size(residuals) - 1), names[role], advice))
    if fitting:
        _, name, advice = min(fitting)
        yield Finding(name, problem, advice)
    elif size < 1e-2:
        yield Finding(names["y"], problem, "look where the noise is: is the layer in evaluation?")
    else:
        advice = "form it as x + mu + stds * torch.randn_like(x), of the tensors that the loss gets"
        yield Finding(names["y"], problem, advice)


def _same_noise(here: _Given, active: Tensor) -> bool:
    """Whether the noise of a position is that of every row: its mean over them is of size 1."""
    found = (_wide(here.y) - _wide(here.x) - _wide(here.mu)) / _wide(here.stds)
    rows = active.sum(0)
    if rows.max() < 4:
        return False
    positions = active.nonzero()[:, 1]
    shape = active.shape[1], found.shape[1]
    sums = found.new_zeros(shape).index_add_(0, positions, found.nan_to_num(0, 0, 0))
    means = sums[rows >= 4] / rows[rows >= 4, None]
    return means.square().mean().item() > 0.8


def _of_resolution(name: str, y: Tensor, stds: Tensor) -> Iterator[Finding]:
    """Whether the type of the samples has room for the noise."""
    spacing = torch.finfo(y.dtype).eps * _wide(y).abs()
    lost = int((spacing > _wide(stds).abs() / 4).sum())
    if 100 * lost > y.numel():
        kind = str(y.dtype).removeprefix("torch.")
        yield Finding(
            name,
            f"{kind} resolves no quarter of the std in {lost} of {y.numel()} active elements, "
            f"largest value {_wide(y).abs().max().item():.3g}",
            "form x + mu + stds * noise in a wider type, and give the loss that",
        )


def _of_rows(name: str, x: Tensor, active: Tensor) -> Iterator[Finding]:
    """Whether rows are there twice."""
    selected = torch.where(active[..., None], _wide(x), 0).flatten(1)
    if selected.shape[1] == 0 or len(selected) < 2:
        return
    # One number for each row, of which equal ones are compared in full.
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(selected.shape[1], generator=generator)
    order = (selected.nan_to_num() @ weights.to(selected)).argsort()
    ordered, masks = selected[order], active[order]
    same = (ordered[1:] == ordered[:-1]).all(1) & (masks[1:] == masks[:-1]).all(1)
    twice = int((same & masks[1:].any(1)).sum())
    if twice:
        yield Finding(
            name,
            f"{twice} of {len(x)} rows are copies of another one",
            "leave copies out of a batch: a sample that meets its own component seems known",
        )
