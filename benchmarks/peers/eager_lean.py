"""The linear form with as few operations as it can be written in: nothing is taken relative to a
row, masks are multiplied, and both roles share one eps. Offsets cost it digits, and NaN under a
mask is NaN in the loss."""

import torch

from ._peer import Peer, only


def lean(mu, sigma, mask, x, y, estimator="jensen", pairing="sub_batch", information=True):
    half = len(x) // 2
    active = mask.to(sigma.dtype)[..., None]
    m_i, m_l = active[:half], active[half:]
    square = sigma.square()
    v = square + 100 * torch.finfo(sigma.dtype).eps * square.detach().amin()
    logs = active * v.log()
    precision, c = m_l / v[half:], x[half:] + mu[half:]
    y, n, weight = y[:half], m_i.sum(0), precision.sum(0)

    mean_i, mean_l = (m_i * y).sum(0) / n, (precision * c).sum(0) / weight
    m2_i = (m_i * (y - mean_i).square()).sum(0)
    m2_l = (precision * (c - mean_l).square()).sum(0)
    distances = m2_i * weight + n * (weight * (mean_i - mean_l).square() + m2_l)
    return (distances + n * logs[half:].sum(0) - m_l.sum(0) * logs[:half].sum(0)).sum() / len(x)


def _why_not(case):
    return only(
        case,
        estimator=("jensen",),
        pairing=("sub_batch",),
        masked=(0.0,),
        offset=(0.0,),
        op=("mutual information",),
    )


def _temporary(case):
    return 8.0 * case.elements


PEER = Peer("linear form, leanest", lean, _why_not, _temporary, lambda case: case.elements)
