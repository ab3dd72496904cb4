"""What one would write without this package: the default loss in plain torch, twice.

Both take (mu, sigma, mask, x, y), in the argument order of the public function: (B, S, E) floating
tensors, `mask` (B, S) bool. They return `1/B sum_il [log |S_i^-1 S_l| + ||y_i - x_l - mu_l||^2]` in
nats, with masks combined, computed in float32, and leave the gradients to autograd. Neither makes
the host wait for the device, so that both can be captured and compiled as one graph.
"""

import torch


def pairs(mu, sigma, mask, x, y):
    """The documented formula as it is usually written: every pair times every feature."""
    half = len(x) // 2
    v_i, v_l = _variances(sigma, mask)
    weight = (mask[:half, None] & mask[None, half:])[..., None]
    distance = y[:half, None].float() - (x[half:].float() + mu[half:])
    terms = distance.square() / v_l + v_l.log() - v_i.log()[:, None]
    return torch.where(weight, terms, 0).sum() / len(x)


def linear(mu, sigma, mask, x, y):
    """The sum over pairs split into moments of samples and components, see docs/mathematics.md."""
    half = len(x) // 2
    v_i, v_l = _variances(sigma, mask)
    active_i, active_l = mask[:half, :, None], mask[half:, :, None]
    # Relative to one row: a mean that is large beside the spread would cost most digits.
    shift = y[0].detach().float()
    samples = torch.where(active_i, y[:half].float() - shift, 0)
    centres = torch.where(active_l, (x[half:].float() - shift) + mu[half:], 0)
    n, n_l = active_i.sum(0), active_l.sum(0)
    precision = torch.where(active_l, 1 / v_l, 0)
    weight = precision.sum(0)

    mean_i = samples.sum(0) / n.clamp(min=1)
    mean_l = (precision * centres).sum(0) / torch.where(weight > 0, weight, 1)
    m2_i = torch.where(active_i, (samples - mean_i).square(), 0).sum(0)
    m2_l = (precision * (centres - mean_l).square()).sum(0)
    distances = m2_i * weight + n * weight * (mean_i - mean_l).square() + n * m2_l
    log_l = n * torch.where(active_l, v_l.log(), 0).sum(0)
    log_i = n_l * torch.where(active_i, v_i.log(), 0).sum(0)
    return (distances + log_l - log_i).sum() / len(x)


def _variances(sigma, mask):
    """sigma^2 + eps (B/2, S, E) of either half, eps from its least positive active variance."""
    half, found = len(sigma) // 2, []
    for rows in (slice(0, half), slice(half, None)):
        variance = sigma[rows].float().square()
        counts = mask[rows, :, None] & (variance > 0)
        least = torch.where(counts, variance.detach(), torch.inf).amin()
        found.append(variance + 100 * torch.finfo(torch.float32).eps * least)
    return found
