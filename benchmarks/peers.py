"""What one would use without this package, all behind `Peer`.

Losses compute in float32 or, where an input has it, in float64; `lean` in the type of the inputs.
Gradients are left to autograd. No loss makes the host wait for the device.
"""

import functools
import importlib.util
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils.checkpoint import checkpoint

from .cases import Case

Directions = Sequence[tuple[slice, slice]]
LOG_2PI = math.log(2 * math.pi)
_CHUNK = 1 << 24  # pairs times features at once
_KEOPS_LONGEST = 512  # S * E: its kernels keep a vector in registers


class Peer(NamedTuple):
    """`loss(mu, sigma, mask, x, y, estimator, directions, information)` gives nats, the sum over
    the samples with masks combined; without `information` their own covariances are left out, which
    is the entropy of the mixture. `directions`: rows of samples and of components."""

    name: str
    loss: Callable[..., Tensor]
    only: Mapping[str, tuple]  # the values of a case's fields that it knows
    temporary: Sequence[float]  # elements for each element of an input, pair, pair and feature
    work: float = 0.0  # of all pairs times features, the share that it goes through
    lacks: Callable[[Case], str | None] = lambda case: None
    compiled: bool = False  # takes a minute to get ready

    def why_not(self, case: Case) -> str | None:
        """The reason why it cannot serve a case."""
        for field, values in self.only.items():
            if getattr(case, field) not in values:
                return f"{field}: only {', '.join(map(str, values))}"
        return self.lacks(case)

    def held(self, case: Case) -> float:
        """Elements that it holds at once, roughly."""
        numbers = case.elements, case.samples * case.components, case.pair_elements
        return sum(each * n for each, n in zip(self.temporary, numbers, strict=True))


class Role(NamedTuple):
    """The samples or the components of a mixture."""

    centre: Tensor  # (rows, S, E)
    variance: Tensor  # (rows, S, E), stabilised
    mask: Tensor  # (rows, S)

    def log_determinant(self) -> Tensor:
        """log |2 pi Sigma| / 2 per row and position: (rows, S)."""
        return (self.variance.log() + LOG_2PI).sum(-1) / 2


def _roles(
    mu: Tensor,
    sigma: Tensor,
    mask: Tensor,
    x: Tensor,
    y: Tensor,
    directions: Directions,
) -> list[tuple[Role, Role]]:
    """The samples and the components of each direction."""
    wide = any(t.dtype == torch.float64 for t in (mu, sigma, x, y))
    dtype = torch.float64 if wide else torch.float32

    def role(centre: Tensor, rows: slice) -> Role:
        """With sigma^2 + eps, eps from the least positive active variance of these rows."""
        square = sigma[rows].to(dtype).square()
        counts = mask[rows, :, None] & (square > 0)
        least = torch.where(counts, square.detach(), torch.inf).amin()
        return Role(centre, square + 100 * torch.finfo(dtype).eps * least, mask[rows])

    return [(role(y[i].to(dtype), i), role(x[j].to(dtype) + mu[j], j)) for i, j in directions]


def _by_direction(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of the inputs, from `loss(samples, components, estimator, information, own)`: `own`
    where each row is a sample and a component, but not of its own mixture."""

    def function(mu, sigma, mask, x, y, estimator, directions, information):
        samples, components = directions[0]
        options = estimator, information, samples == components
        losses = [loss(*roles, *options) for roles in _roles(mu, sigma, mask, x, y, directions)]
        return sum(losses) / len(losses)

    return function


def _estimate(energies: Tensor, estimator: str, own: bool) -> Tensor:
    """The loss of energies (N, M), summed over the samples."""
    n, m = energies.shape
    if own:
        diagonal = torch.eye(n, dtype=torch.bool, device=energies.device)
        energies = energies.masked_fill(diagonal, 0 if estimator == "jensen" else torch.inf)
        m = m - 1
    if estimator == "jensen":
        return energies.sum() / m
    return (math.log(m) - torch.logsumexp(-energies, 1)).sum()


def pairs_of_roles(samples, components, estimator, information, own):
    """The documented formula as it is usually written: every pair times every feature."""
    weight = (samples.mask[:, None] & components.mask)[..., None]
    distance = samples.centre[:, None] - components.centre
    of_samples = samples.variance.log()[:, None] if information else -LOG_2PI
    terms = distance.square() / components.variance + components.variance.log() - of_samples
    return _estimate(torch.where(weight, terms, 0).sum((2, 3)) / 2, estimator, own)


pairs = _by_direction(pairs_of_roles)


@_by_direction
def chunked(samples, components, estimator, information, own):
    """The same for some samples at a time, whose pairs are formed once more for the gradients."""
    total, step = 0.0, max(1, _CHUNK // components.centre.numel())
    for start in range(0, len(samples.centre), step):
        part = Role(*(t[start : start + step] for t in samples))
        total = total + checkpoint(
            pairs_of_roles, part, components, estimator, information, own, use_reentrant=False
        )
    return total


@_by_direction
def linear(samples, components, estimator, information, own):
    """The sum over pairs split into moments of samples and components, see docs/mathematics.md."""
    active_i, active_l = samples.mask[..., None], components.mask[..., None]
    v_i, v_l = samples.variance, components.variance
    # Relative to one row: a mean that is large beside the spread would cost most digits.
    shift = samples.centre[0].detach()
    y = torch.where(active_i, samples.centre - shift, 0)
    c = torch.where(active_l, components.centre - shift, 0)
    n, n_l = active_i.sum(0), active_l.sum(0)
    precision = torch.where(active_l, 1 / v_l, 0)
    weight = precision.sum(0)

    mean_i = y.sum(0) / n.clamp(min=1)
    mean_l = (precision * c).sum(0) / torch.where(weight > 0, weight, 1)
    m2_i = torch.where(active_i, (y - mean_i).square(), 0).sum(0)
    m2_l = (precision * (c - mean_l).square()).sum(0)
    distances = m2_i * weight + n * weight * (mean_i - mean_l).square() + n * m2_l
    log_l = n * torch.where(active_l, v_l.log(), 0).sum(0)
    of_samples = v_i.log() if information else -LOG_2PI
    log_i = n_l * torch.where(active_i, of_samples, 0).sum(0)
    return (distances + log_l - log_i).sum() / (2 * len(v_l))


def lean(mu, sigma, mask, x, y, estimator, directions, information):
    """The linear form with as few operations as it can be written in: nothing is taken relative to
    a row, masks are multiplied, and both roles share one eps. Offsets cost it digits, and NaN under
    a mask is NaN in the loss."""
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


@_by_direction
def expansion(samples, components, estimator, information, own):
    """(y - c)^2 / v = y^2 / v - 2 y c / v + c^2 / v, as matrix products. Fast where there are many
    pairs; loses the digits that the square of an offset takes."""
    dtype = samples.centre.dtype
    mask_i, mask_l = samples.mask.to(dtype), components.mask.to(dtype)
    precision = mask_l[..., None] / components.variance
    scaled = precision * components.centre
    y = torch.where(samples.mask[..., None], samples.centre, 0)
    squares = (scaled * components.centre).sum(-1)  # (M, S)
    q = y.square().flatten(1) * mask_i.repeat_interleave(y.shape[-1], 1)
    q = q @ precision.flatten(1).T - 2 * y.flatten(1) @ scaled.flatten(1).T + mask_i @ squares.T
    energies = q / 2 + mask_i @ (mask_l * components.log_determinant()).T
    if information:
        energies = energies - (mask_i * samples.log_determinant()) @ mask_l.T
    return _estimate(energies, estimator, own)


@_by_direction
def keops(samples, components, estimator, information, own):
    """The package pykeops: reductions over symbolic matrices, without temporaries."""
    from pykeops.torch import LazyTensor

    y_i = LazyTensor(samples.centre.flatten(1)[:, None])
    c_l = LazyTensor(components.centre.flatten(1)[None])
    precision = LazyTensor((1 / components.variance).flatten(1)[None])
    g = components.log_determinant().sum(1)  # (M,)
    q = ((y_i - c_l).square() * precision).sum(-1) / 2
    if estimator == "jensen":
        entropy = q.sum(1).sum() / len(g) + len(samples.centre) * g.mean()
    else:
        densities = (-(q + LazyTensor(g[None, :, None]))).logsumexp(1)
        entropy = (math.log(len(g)) - densities).sum()
    return entropy - samples.log_determinant().sum() if information else entropy


@_by_direction
def mixture(samples, components, estimator, information, own):
    """The mixture as `torch.distributions` has it."""
    normal = Normal(components.centre, components.variance.sqrt(), validate_args=False)
    equal = Categorical(logits=torch.zeros_like(components.centre[:, 0, 0]), validate_args=False)
    density = MixtureSameFamily(equal, Independent(normal, 2), validate_args=False)
    entropy = -density.log_prob(samples.centre).sum()
    return entropy - samples.log_determinant().sum() if information else entropy


@_by_direction
def club(samples, components, estimator, information, own):
    """The negative term of CLUB (Cheng et al., ICML 2020) for a diagonal Gaussian q(y | x): the
    mean over all samples of the squared distance to each centre, divided by its variance after."""
    deviation = (samples.centre[None] - components.centre[:, None]).square().mean(1)
    distances = (deviation / (2 * components.variance)).sum((1, 2))
    entropy = len(samples.centre) * (distances + components.log_determinant().sum(1)).mean()
    return entropy - samples.log_determinant().sum() if information else entropy


def compiled(peer: Peer) -> Peer:
    """`torch.compile` of another peer."""

    @functools.cache
    def function():  # when it is called first, once for each shape
        return torch.compile(peer.loss, fullgraph=True, dynamic=False)

    return peer._replace(
        name=peer.name.replace("eager", "compiled"),
        loss=lambda *arguments: function()(*arguments),
        temporary=tuple(each / 5 for each in peer.temporary),  # where it fuses, less
        lacks=_lacks_compiler,
        compiled=True,
    )


def _lacks_compiler(case: Case) -> str | None:
    if torch.cuda.is_available() or any(map(shutil.which, ("c++", "g++", "clang++"))):
        return None
    return "not installed: torch.compile needs a C++ compiler"


def _lacks_keops(case: Case) -> str | None:
    if case.S * case.E > _KEOPS_LONGEST:
        return f"S * E: only up to {_KEOPS_LONGEST}"
    return None if importlib.util.find_spec("pykeops") else "not installed: pip install pykeops"


_JENSEN, _LOGSUMEXP = {"estimator": ("jensen",)}, {"estimator": ("logsumexp",)}
_HALVES = {"pairing": ("sub_batch",)}
_DIRECTIONS = {"pairing": ("sub_batch", "symmetric")}
_UNMASKED = {**_HALVES, "masked": (0.0,)}
_LEAN = {**_JENSEN, **_UNMASKED, "offset": (0.0,), "op": ("mutual information",)}

PAIRS = Peer("pair formula, eager", pairs, {}, (0, 0, 5), work=1.0)
_SINGLE = {**_LOGSUMEXP, **_HALVES, "op": ("entropy",)}
CHUNKED = Peer("pair formula, in chunks", chunked, _SINGLE, (6, 0, 0), work=1.0)
LINEAR = Peer("linear form, eager", linear, {**_JENSEN, **_DIRECTIONS}, (12, 0, 0))
LEAN = Peer("linear form, leanest", lean, _LEAN, (8, 0, 0))
GEMM = Peer("GEMM expansion", expansion, _DIRECTIONS, (6, 4, 0))
KEOPS = Peer("KeOps", keops, _UNMASKED, (4, 0, 0), 1 / 8, _lacks_keops, compiled=True)
DISTRIBUTIONS = Peer("torch.distributions", mixture, {**_LOGSUMEXP, **_UNMASKED}, (0, 0, 6), 1.0)
CLUB = Peer("CLUB's pair form", club, {**_JENSEN, **_UNMASKED}, (0, 0, 3), 1.0)
_LINEARS = LINEAR, compiled(LINEAR), LEAN
PEERS = (PAIRS, compiled(PAIRS), CHUNKED, *_LINEARS, GEMM, KEOPS, DISTRIBUTIONS, CLUB)
