"""Inputs of pairs, and how close energies and their gradients are: see `rules`."""

from typing import Any

import torch
from cases import mi_inputs
from fused_mi._mixture import Mixture
from fused_mi.reference.rows import first_active_row

NAMES = ("y", "x", "mu", "stds")


def pair_case(shape, dtype=torch.float32, seed=0, offset=0.0, eps=(1e-3, 2e-3)):
    """y, x, mu, stds (N + M, S, E) of a dtype or of four, and one mixture: the first N rows against
    the last M, masks combined; eps of components and of samples. `shape` is (N, M, S, E)."""
    n, m, s, e = shape
    mu, stds, mask, x, y = mi_inputs(n + m, s, e, seed=seed, offset=offset)
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,) * 4
    inputs = [t.to(dtype) for t, dtype in zip((y, x, mu, stds), dtypes, strict=True)]
    acc = torch.float64 if torch.float64 in dtypes else torch.float32
    both_eps = [torch.tensor(value, dtype=acc) for value in eps]
    return inputs, Mixture(mask, mask, *both_eps, (0, n), (n, n + m))


def upstream_of(energies, seed=0, zeros=0.3):
    generator = torch.Generator().manual_seed(seed)
    upstream = torch.randn(energies.shape, generator=generator, dtype=torch.float64)
    return upstream * (torch.rand(energies.shape, generator=generator) >= zeros)


def scales(inputs, given, upstream):
    """sum |terms| of the energies and of the gradients (y, x, mu, stds), in float64. The terms of
    a difference are those of `(y - shift) - (c - shift)`."""
    wide: list[Any] = [t if t is None else t.double() for t in inputs]
    y, x, mu, stds = wide
    y_scale, x_scale, stds_scale = (torch.zeros_like(t) for t in (y, x, stds))
    energies = []
    for mixture, u in zip(given, upstream.abs(), strict=True):
        i, j = slice(*mixture.sample_rows), slice(*mixture.component_rows)
        active_i, active_l = (t.double()[..., None] for t in mixture.contributing())
        shift = first_active_row(x[j], active_l[..., 0] > 0)
        centre = x[j] if mu is None else x[j] + mu[j]
        v = stds[j].square() + mixture.component_eps
        apart = (y[i] - shift).abs()[:, None] + (centre - shift).abs()
        weight = active_i[:, None] * active_l
        squares = weight * apart.square() / v
        logs_l = (weight * (v.log().abs() + 2)).sum((2, 3)) / 2
        y_scale[i] += (weight * u[0][..., None, None] * apart / v).sum(1)
        x_scale[j] += (weight * u[0][..., None, None] * apart / v).sum(0)
        by_stds = weight * u[1][..., None, None] + u[0][..., None, None] * squares
        stds_scale[j] += by_stds.sum(0) * stds[j].abs() / v
        logs_i = torch.zeros_like(logs_l)
        if mixture.sample_eps is not None:
            own = stds[i].square() + mixture.sample_eps
            logs_i = (weight * (own.log().abs() + 2)[:, None]).sum((2, 3)) / 2
            stds_scale[i] += (weight * u[2][..., None, None]).sum(1) * stds[i].abs() / own
        energies.append(torch.stack((squares.sum((2, 3)) / 2, logs_l, logs_i)))
    return [torch.stack(energies), y_scale, x_scale, x_scale, stds_scale]
