"""KeOps (the package pykeops): reductions over symbolic matrices, without temporaries.

Its kernels are compiled for the length of the vectors, which they keep in registers."""

import functools
import importlib.util
import math

from ._peer import Peer, log_determinant, only, pair_elements, roles

LONGEST = 512  # S * E


def symbolic(mu, sigma, mask, x, y, estimator="jensen", pairing="sub_batch", information=True):
    from pykeops.torch import LazyTensor

    ((samples, components),) = roles(mu, sigma, mask, x, y)
    y_i = LazyTensor(samples.centre.flatten(1)[:, None])
    c_l = LazyTensor(components.centre.flatten(1)[None])
    precision = LazyTensor((1 / components.variance).flatten(1)[None])
    g = log_determinant(components).sum(1)  # (M,)
    q = ((y_i - c_l).square() * precision).sum(-1) / 2
    if estimator == "jensen":
        entropy = q.sum(1).sum() / len(g) + len(samples.centre) * g.mean()
    else:
        densities = (-(q + LazyTensor(g[None, :, None]))).logsumexp(1)
        entropy = (math.log(len(g)) - densities).sum()
    return entropy - log_determinant(samples).sum() if information else entropy


@functools.cache
def _missing():
    if importlib.util.find_spec("pykeops") is None:
        return "not installed: pip install pykeops"
    return None


def _why_not(case):
    if case.S * case.E > LONGEST:
        return f"S * E: only up to {LONGEST}"
    return only(case, pairing=("sub_batch",), masked=(0.0,)) or _missing()


def _temporary(case):
    return 4.0 * case.elements


PEER = Peer(
    "KeOps", symbolic, _why_not, _temporary, lambda case: pair_elements(case) / 8, compiled=True
)
