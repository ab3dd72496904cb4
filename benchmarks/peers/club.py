"""The negative term of CLUB (Cheng et al., ICML 2020) for a diagonal Gaussian q(y | x): the mean
over all samples of the squared distance to each centre, divided by its variance afterwards."""

from ._peer import Peer, log_determinant, only, pair_elements, roles


def negative(mu, sigma, mask, x, y, estimator="jensen", pairing="sub_batch", information=True):
    ((samples, components),) = roles(mu, sigma, mask, x, y)
    deviation = (samples.centre[None] - components.centre[:, None]).square().mean(1)
    distances = (deviation / (2 * components.variance)).sum((1, 2))
    entropy = len(samples.centre) * (distances + log_determinant(components).sum(1)).mean()
    return entropy - log_determinant(samples).sum() if information else entropy


def _why_not(case):
    return only(case, estimator=("jensen",), pairing=("sub_batch",), masked=(0.0,))


def _temporary(case):
    return 3 * pair_elements(case)


PEER = Peer("CLUB's pair form", negative, _why_not, _temporary, pair_elements)
