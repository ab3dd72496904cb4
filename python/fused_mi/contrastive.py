"""CLUB, the contrastive log-ratio upper bound, in time and memory that grow with the batch and not
with its square."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import _checks
from ._mixture import Scoring
from ._precision import working_dtype
from ._terms import TERMS
from ._types import Reduction
from .ops.estimators import jensen

_DISTANCES = TERMS.index("mahalanobis")


def club(
    mean: Tensor,
    logvar: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """CLUB with a Gaussian `q(y|x_l) = N(mean_l, diag(exp(logvar_l)))`: `mean_i log q(y_i|x_i) -
    mean_il log q(y_i|x_l)`, over all pairs, l = i among them.

    Where q is the conditional of y it is an upper bound of the mutual information of x and y in
    expectation; with a q that was learned it is one where q is close enough. O(B S E) work and
    memory: the mean over the pairs is that of the estimator "jensen". Nothing is added to the
    variances.

    Args:
        mean, logvar: (B, D) of q, for each x; or (B, S, E).
        y: (B, D) or (B, S, E), the samples.
        mask: (B, S), non-zero = active; or (B,). All densities of sample i are over the positions
            that are active in it, whatever the masks of the others. None: all are.
        reduction: "mean" over the samples, "sum", or "none", one value each.

    Returns:
        0-dim in T (float64 if any input is, else float32), in nats; (B,) for the reduction "none".
        `standard_error(club, mean, logvar, y, groups=32)` is how sure the mean is.

    Raises:
        TypeError: no dense tensor, or another dtype than float16, bfloat16, float32 and float64.
        ValueError: the batch is empty, shapes do not match, devices differ, or the reduction is
            unknown.

    Source: Cheng, Hao, Dai, Liu, Gan, Carin: CLUB: a contrastive log-ratio upper bound of mutual
    information. ICML 2020.
    """
    mean, logvar, y, mask = _checks.with_positions((mean, logvar, y), mask)
    dtype = _checks.floating(mean=mean, logvar=logvar, y=y)
    _checks.option("reduction", reduction, Reduction)
    _checks.dimensions("mean", mean, "(B, S, E)")
    _checks.shape("logvar", logvar, mean.shape, "(B, S, E)")
    _checks.shape("y", y, mean.shape, "(B, S, E)")
    _checks.not_empty("mean", mean)
    active = None
    if mask is not None:
        active = _checks.sample_mask(mask, y)
        logvar = torch.where(active.any(0)[:, None], logvar, 0)  # of what some sample uses
    everywhere = y.new_ones((), dtype=torch.bool).expand(y.shape[:2])
    stds = (logvar.to(dtype) / 2).exp()
    inputs = y, mean, mean.new_zeros(()).expand_as(mean), stds
    scoring = Scoring(everywhere if active is None else active, reduction=reduction)
    _, terms = jensen(inputs, scoring, False)
    own = _own_distances(mean.to(dtype), stds, y.to(dtype), active)
    if active is not None or reduction == "none":  # else the logs are equal
        own = own - _more_log_variance(logvar, everywhere if active is None else active)
    if reduction != "none":
        own = own.mean() if reduction == "mean" else own.sum()
    found: Tensor = terms[_DISTANCES] - own
    return found.to(dtype)


def _own_distances(mean: Tensor, stds: Tensor, y: Tensor, active: Tensor | None) -> Tensor:
    """q_ii, half the squared distance of each sample to its own mean: (B,)."""
    distance = y - mean
    if active is not None:
        here = active[..., None]
        distance, stds = torch.where(here, distance, 0), torch.where(here, stds, 1)
    wide = working_dtype(y.device)
    return (distance / stds).square().sum((1, 2), dtype=wide) / 2


def _more_log_variance(logvar: Tensor, active: Tensor) -> Tensor:
    """How much higher `1/2 log |Sigma_l|` is on average than that of the own l, over the active
    positions of each sample: (B,)."""
    logs = logvar.sum(-1, dtype=working_dtype(logvar.device))
    return torch.where(active, logs.mean(0) - logs, 0).sum(1) / 2


class CLUB(nn.Module):
    """CLUB of vectors x and y with a `q(y|x)` that is learned: two networks of one hidden layer
    each, for the mean and for the log of the variance, which is between -1 and 1.

    Methods, scale and the names and shapes of the parameters are those of the published class, so
    that its checkpoints load; `forward` is O(B) in place of O(B^2). As there, train q by
    `learning_loss` with an optimiser of its own, and take `forward` as the estimate, or as the loss
    of whatever made x or y.

    Args:
        x_dim, y_dim: features of x and y.
        hidden_size: each network has half as many hidden units.

    Raises:
        ValueError: a size is too small.

    Source: Cheng et al., ICML 2020, and the class of that name at github.com/Linear95/CLUB.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_size: int) -> None:
        super().__init__()
        for name, size, least in (
            ("x_dim", x_dim, 1),
            ("y_dim", y_dim, 1),
            ("hidden_size", hidden_size, 2),
        ):
            if size < least:
                raise ValueError(f"{name}: expected at least {least}, got {size}")
        units = hidden_size // 2

        def network(*last: nn.Module) -> nn.Sequential:
            first = nn.Linear(x_dim, units)
            return nn.Sequential(first, nn.ReLU(), nn.Linear(units, y_dim), *last)

        self.p_mu = network()
        self.p_logvar = network(nn.Tanh())

    def get_mu_logvar(self, x_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance of y, (B, y_dim) each, given `x_samples` (B, x_dim)."""
        return self.p_mu(x_samples), self.p_logvar(x_samples)

    def forward(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """The estimate: `club` of `x_samples` (B, x_dim) and `y_samples` (B, y_dim); 0-dim, in
        nats."""
        return club(*self.get_mu_logvar(x_samples), y_samples)

    def loglikeli(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """Twice the mean of log q(y|x), but for its constant: `-(y - mean)^2 / variance - logvar`,
        summed over the features; 0-dim."""
        mean, logvar = self.get_mu_logvar(x_samples)
        return -((y_samples - mean).square() * (-logvar).exp() + logvar).sum(1).mean()

    def learning_loss(self, x_samples: Tensor, y_samples: Tensor) -> Tensor:
        """Minus `loglikeli`: what trains q."""
        return -self.loglikeli(x_samples, y_samples)
