"""The expanded square: (y - c)^2 / v = y^2 / v - 2 y c / v + c^2 / v, as matrix products.

Fast where there are many pairs; loses the digits that the square of an offset takes."""

import torch

from ._peer import Peer, estimate, log_determinant, only, roles


def expansion(mu, sigma, mask, x, y, estimator="jensen", pairing="sub_batch", information=True):
    losses = [
        estimate(_energies(*direction, information), estimator)
        for direction in roles(mu, sigma, mask, x, y, pairing)
    ]
    return sum(losses) / len(losses)


def _energies(samples, components, information):
    dtype = samples.centre.dtype
    mask_i, mask_l = samples.mask.to(dtype), components.mask.to(dtype)
    precision = mask_l[..., None] / components.variance
    scaled = precision * components.centre
    y = torch.where(samples.mask[..., None], samples.centre, 0)
    squares = (scaled * components.centre).sum(-1)  # (M, S)
    q = y.square().flatten(1) * mask_i.repeat_interleave(y.shape[-1], 1)
    q = q @ precision.flatten(1).T - 2 * y.flatten(1) @ scaled.flatten(1).T + mask_i @ squares.T
    energies = q / 2 + mask_i @ (mask_l * log_determinant(components)).T
    if information:
        energies = energies - (mask_i * log_determinant(samples)) @ mask_l.T
    return energies


def _why_not(case):
    return only(case, pairing=("sub_batch", "symmetric"))


def _temporary(case):
    return 6.0 * case.elements + 4.0 * case.samples * case.components


PEER = Peer("GEMM expansion", expansion, _why_not, _temporary, lambda case: 0.0)
