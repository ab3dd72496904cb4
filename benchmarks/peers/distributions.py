"""The mixture as `torch.distributions` has it."""

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from ._peer import Peer, log_determinant, only, pair_elements, roles


def mixture(mu, sigma, mask, x, y, estimator="logsumexp", pairing="sub_batch", information=True):
    ((samples, components),) = roles(mu, sigma, mask, x, y)
    normal = Normal(components.centre, components.variance.sqrt(), validate_args=False)
    equal = Categorical(logits=torch.zeros_like(components.centre[:, 0, 0]), validate_args=False)
    density = MixtureSameFamily(equal, Independent(normal, 2), validate_args=False)
    entropy = -density.log_prob(samples.centre).sum()
    return entropy - log_determinant(samples).sum() if information else entropy


def _why_not(case):
    return only(case, estimator=("logsumexp",), pairing=("sub_batch",), masked=(0.0,))


def _temporary(case):
    return 6 * pair_elements(case)


PEER = Peer("torch.distributions", mixture, _why_not, _temporary, pair_elements)
