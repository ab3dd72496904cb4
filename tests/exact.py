"""The mutual information and its gradients in 50 digits, pair by pair: an oracle without a range.

Shares no code with the package. Beside each number stands the sum of the magnitudes of its terms,
in which tolerances are measured, see rules.py.
"""

from typing import NamedTuple

import mpmath
import torch
from cases import FLOATING, MASK, directions
from mpmath import mpf

MEANS, STDS, CLEAN, NOISY = range(4)


class Exact(NamedTuple):
    value: mpf
    scale: mpf  # sum |terms|
    gradients: list  # of means, stds, clean and noisy: (rows, S * E)
    scales: list


class _Pair(NamedTuple):
    elements: list  # (k, distance, component's v, sample's v) of each active element
    energy: mpf  # q + g - k
    magnitude: mpf


def eps_of(stds, mask, safety_factor, dtype):
    """The stabiliser is defined in `dtype`: squares that leave its range do not count."""
    squares = stds.to(dtype).square()[mask]
    squares = squares[(squares > 0) & squares.isfinite()]
    least = squares.min() if squares.numel() else torch.ones((), dtype=dtype)
    info = torch.finfo(dtype)
    smallest = info.tiny * info.eps if safety_factor > 0 else 0.0
    return mpf((least * (safety_factor * info.eps)).clamp(min=smallest).item())


@mpmath.workdps(50)
def mutual_information(inputs, estimator, pairing, safety_factor, dtype):
    """Of (means, stds, mask, clean, noisy) with `reduction="sum"`; eps is that of `dtype`."""
    tensors = [_numbers(inputs[i]) for i in FLOATING]
    rows = len(inputs[MASK])
    cuts = [[range(rows)[role] for role in both] for both in directions(pairing, rows)]
    value = scale = mpf(0)
    gradients, scales = ([[[mpf(0)] * len(t[0]) for _ in t] for t in tensors] for _ in range(2))

    def add(which, row, k, term, magnitude):
        gradients[which][row][k] += term
        scales[which][row][k] += magnitude

    for samples, components in cuts:
        eps = [
            eps_of(*(inputs[n][role.start : role.stop] for n in (1, MASK)), safety_factor, dtype)
            for role in (samples, components)
        ]
        for i in samples:
            partners = [j for j in components if pairing != "leave_one_out" or j != i]
            pairs = [_pair(tensors, inputs[MASK], i, j, *eps) for j in partners]
            of_sample, weights = _estimate([pair.energy for pair in pairs], estimator)
            weights = [w / len(cuts) for w in weights]
            value += of_sample / len(cuts)
            mean = sum(w * p.magnitude for w, p in zip(weights, pairs, strict=True))
            scale += 1 + mean
            for j, weight, pair in zip(partners, weights, pairs, strict=True):
                # An energy that is wrong by d changes its weight by a factor 1 + d.
                more = 1 + pair.magnitude + mean if estimator == "logsumexp" else 1
                for k, distance, v_l, v_i in pair.elements:
                    pull, z2 = weight * distance / v_l, distance**2 / v_l
                    add(NOISY, i, k, pull, abs(pull) * more)
                    for centre in (CLEAN, MEANS):
                        add(centre, j, k, -pull, abs(pull) * more)
                    of_l, of_i = (
                        weight * tensors[STDS][row][k] / v for row, v in ((j, v_l), (i, v_i))
                    )
                    add(STDS, j, k, of_l * (1 - z2), abs(of_l) * (1 + z2) * more)
                    add(STDS, i, k, -of_i, abs(of_i) * more)
    return Exact(value, scale, gradients, scales)


def _numbers(tensor):
    return [[mpf(v) for v in row] for row in tensor.double().flatten(1).tolist()]


def _pair(tensors, mask, i, j, eps_i, eps_l):
    means, stds, clean, noisy = tensors
    features = len(means[0]) // mask.shape[1]
    elements, energy, magnitude = [], mpf(0), mpf(0)
    for k in range(len(means[0])):
        if not (mask[i, k // features] and mask[j, k // features]):
            continue
        v_l, v_i = stds[j][k] ** 2 + eps_l, stds[i][k] ** 2 + eps_i
        distance = noisy[i][k] - clean[j][k] - means[j][k]
        logs = mpmath.log(v_l), mpmath.log(v_i)
        elements.append((k, distance, v_l, v_i))
        energy += (distance**2 / v_l + logs[0] - logs[1]) / 2
        magnitude += (distance**2 / v_l + sum(map(abs, logs))) / 2 + mpmath.log(2 * mpmath.pi)
    return _Pair(elements, energy, magnitude)


def _estimate(energies, estimator):
    """A sample's part of the loss, and its derivatives by the energies."""
    if estimator == "jensen":
        return sum(energies) / len(energies), [mpf(1) / len(energies)] * len(energies)
    least = min(energies)
    densities = [mpmath.exp(least - e) for e in energies]
    total = sum(densities)
    return least - mpmath.log(total / len(energies)), [d / total for d in densities]
