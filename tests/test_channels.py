"""Every estimator on Gaussian channels, whose information is known: x ~ N(0, 1) and y = x + sqrt(r)
N(0, 1) in each of d features tell I = d/2 log(1 + 1/r) of each other.

Means over batches, within 5 of their standard errors; generators are seeded.
"""

import math

import fused_mi
import pytest
import torch

BATCHES = 200
LOO = {"pairing": "leave_one_out", "reduction": "mean", "constant": "subtract"}


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of small calls, in which threads would wait for each other."""
    torch.set_num_threads(1)  # the fixture of conftest.py resets it


def jensen(*tensors):
    return fused_mi.mutual_information_sub_batch(*tensors, **LOO)


def logsumexp(*tensors):
    return fused_mi.mutual_information_sub_batch(*tensors, estimator="logsumexp", **LOO)


def club(mu, stds, mask, x, y):
    return fused_mi.club(x + mu, 2 * stds.log(), y)


def channels(rows, d, r, count=BATCHES, seed=0):
    gen = torch.Generator().manual_seed(seed)
    stds = torch.full((rows, d), math.sqrt(r))
    mu, mask = torch.zeros_like(stds), torch.ones(rows, dtype=torch.bool)
    for _ in range(count):
        x, noise = torch.randn(2, rows, d, generator=gen)
        yield mu, stds, mask, x, x + stds * noise


def moments(estimator, rows, d, r, count=BATCHES):
    """Mean of the estimates, and its standard error."""
    values = torch.stack([estimator(*t) for t in channels(rows, d, r, count)]).double()
    return values.mean().item(), values.std().item() / math.sqrt(count)


channel = pytest.mark.parametrize(
    ("rows", "d", "r"), [(32, 1, 1.0), (64, 4, 0.5), (64, 16, 9.0), (33, 16, 0.1)]
)


@channel
def test_the_linear_bounds_are_d_over_r(rows, d, r):
    """CLUB counts l = i, where the ratio is 1: a share 1 / B of the pairs."""
    for estimator, true in ((jensen, d / r), (club, (1 - 1 / rows) * d / r)):
        mean, error = moments(estimator, rows, d, r)
        assert abs(mean - true) < 5 * error, estimator


@channel
def test_the_information_is_between_infonce_and_l1out(rows, d, r):
    true = d / 2 * math.log(1 + 1 / r)
    (low, of_low), (high, of_high) = (
        moments(bound, rows, d, r) for bound in (fused_mi.infonce, fused_mi.l1out)
    )
    assert low - 5 * of_low < true < high + 5 * of_high
    assert low < high and low <= math.log(rows) * (1 + torch.finfo(torch.float32).eps)
    mean, error = moments(logsumexp, rows, d, r)
    assert abs(mean - high) < 5 * math.hypot(error, of_high)  # the same expectation
    linear, of_linear = moments(jensen, rows, d, r)
    assert high < linear + 5 * math.hypot(of_high, of_linear)


def test_both_find_little_information():
    """The bounds close where a batch shows all there is: 1/2 log 2 in one feature."""
    true, gap = math.log(2) / 2, []
    for rows in (16, 256):
        low, high = (moments(bound, rows, 1, 1.0) for bound in (fused_mi.infonce, fused_mi.l1out))
        gap.append(high[0] - low[0])
        assert low[0] - 5 * low[1] < true < high[0] + 5 * high[1]
    assert gap[1] < gap[0] / 4


def test_the_realised_noise_is_a_control_variate():
    """sigma 3, 64 rows of 64 features: the loss varies by its noise, L1Out hardly does."""
    _, of_loss = moments(logsumexp, 64, 64, 9.0)
    _, of_l1out = moments(fused_mi.l1out, 64, 64, 9.0)
    # A deviation over n batches is uncertain by its share 1 / sqrt(2 n), the ratio of two by 1 /
    # sqrt(n).
    assert of_l1out < of_loss * (1 - 5 / math.sqrt(BATCHES))


@pytest.mark.parametrize("d", [2, 16])
def test_pairwise_bounds_of_a_batch(d):
    """Of its own rows alone: between 0 and log M, and what a sample shows is between them."""
    r, rows = 2.0, 24
    mu, stds, _, x, _ = next(channels(rows, d, r, 1))
    lower, upper = (
        fused_mi.kolchinsky_tracey(mu, stds, None, x, bound=bound).item()
        for bound in ("lower", "upper")
    )
    gen = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, dtype=torch.bool)
    noisy = [x + stds * torch.randn(rows, d, generator=gen) for _ in range(BATCHES)]
    values = torch.stack([fused_mi.infonce(mu, stds, mask, x, y) for y in noisy])  # all there is
    true, error = values.mean().item(), values.std().item() / math.sqrt(BATCHES)
    assert 0 < lower < true + 5 * error
    assert true - 5 * error < upper < math.log(rows)


@pytest.mark.parametrize("estimator", [fused_mi.l1out, fused_mi.infonce, club])
def test_standard_errors(estimator):
    """What the jackknife says of one batch, beside the spread of 300. Both are of some 5 %; where
    few components weigh, the jackknife errs upward."""
    rows, d, r, count = 32, 4, 1.0, 300
    values = torch.stack([estimator(*t) for t in channels(rows, d, r, count)])
    squares = torch.stack(
        [fused_mi.standard_error(estimator, *t).square() for t in channels(rows, d, r, 24, seed=1)]
    )
    true, found = values.std().item(), squares.mean().sqrt().item()
    of_found = squares.std().item() / math.sqrt(24) / (2 * found)
    of_true = true / math.sqrt(2 * count)
    slack = 5 * math.hypot(of_found, of_true)
    assert true - slack < found < 1.3 * true + slack


def test_what_it_learns_is_an_upper_bound():
    """y = x + noise of variance 1/2 in 3 dimensions, which tells 3/2 log 3; and of y that belong to
    other x nothing: by 5 standard errors."""
    rows = 512
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=gen)
    y = x + 0.5**0.5 * torch.randn(rows, 3, generator=gen)
    torch.manual_seed(0)
    module = fused_mi.CLUB(3, 3, 32)
    optimiser = torch.optim.Adam(module.parameters(), 2e-2)
    for _ in range(60):
        loss = module.learning_loss(x, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        mean, logvar = module.get_mu_logvar(x)

    def estimate(y):
        error = fused_mi.standard_error(fused_mi.club, mean, logvar, y, groups=16)
        return fused_mi.club(mean, logvar, y).item(), error.item()

    value, error = estimate(y)
    assert value - 5 * error > 1.5 * math.log(3)
    value, error = estimate(y.roll(1, 0))
    assert abs(value) < 5 * error
