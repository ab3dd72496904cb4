"""Standard errors, what a report says, and how it draws curves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fused_mi.train.evaluate import over_passages
from fused_mi.train.report import USEFUL, chosen, usefulness, verdict


def test_errors_over_passages_are_those_of_many_texts():
    """Against the spread over 4,000 sets of passages whose tokens share half of their variance."""
    torch.manual_seed(0)
    sets = []
    for _ in range(4000):
        mask = torch.arange(6) < torch.randint(1, 7, (40, 1))
        values = torch.randn(40, 1) + torch.randn(40, 6)
        sets.append(over_passages(values[mask], mask))
    means, errors = torch.tensor(sets).double().unbind(1)
    assert errors.square().mean().sqrt().item() == pytest.approx(means.std().item(), rel=0.06)
    one_each = torch.ones(50, 1, dtype=torch.bool)
    values = torch.rand(50)
    mean, error = over_passages(values, one_each)
    assert mean == pytest.approx(values.mean().item(), rel=1e-6)
    assert error == pytest.approx((values.std() / 50**0.5).item(), rel=1e-5)


def test_smoothing_follows_a_slope_without_error():
    from fused_mi.train.plots import smoothed  # with matplotlib

    line = 3 + 0.5 * np.arange(20.0)
    mean, error = smoothed(line)
    np.testing.assert_allclose(mean, line, atol=1e-9)
    np.testing.assert_allclose(error, 0, atol=1e-6)
    noisy = np.random.default_rng(0).normal(size=(200, 30))
    found = [smoothed(row) for row in noisy]
    means, errors = (np.stack(part) for part in zip(*found, strict=True))
    ratio = np.sqrt((errors**2).mean(0)) / means.std(0)
    assert (abs(ratio - 1) < 0.35).all()


def test_alpha_is_chosen_on_the_validation_split():
    def run(alpha, validation, test):
        return SimpleNamespace(
            config=SimpleNamespace(weight=alpha),
            validation_top1=validation,
            validation_top1_error=0.01,
            trained=SimpleNamespace(retrieval_top1=test),
        )

    runs = run(0.1, 0.99, 0.5), run(0.3, USEFUL, 0.4), run(1.0, USEFUL - 0.01, 1.0)
    assert chosen(list(runs)) is runs[1]
    assert chosen([runs[2]]) is None
    assert "below" in usefulness(runs[2]) and "below" not in usefulness(runs[1])


def test_the_verdict_follows_the_numbers():
    def outcome(ours, theirs, top1=0.5, floor=0.1, error=0.01):
        def side(share, attack):
            attacks = {"nearest": 0.0, "informed": attack, "posterior": attack}
            errors = dict.fromkeys(attacks, error)
            return SimpleNamespace(retrieval_top1=share, attacks=attacks, attack_errors=errors)

        constant = {"constant vector": side(floor, 0.05)}
        return SimpleNamespace(
            trained=side(0.5, ours), isotropic=side(top1, theirs), floors=constant
        )

    assert "hides clearly more" in verdict(outcome(0.3, 0.9))
    assert "does NOT hide" in verdict(outcome(0.88, 0.9))
    assert "larger --alpha" in verdict(outcome(0.99, 1.0))
    assert "does NOT hide" in verdict(outcome(0.3, 0.9, error=0.3))  # within the errors
    assert "No comparison" in verdict(outcome(0.3, 0.9, top1=0.6))
    assert "hides clearly more" in verdict(outcome(0.3, 0.9, top1=0.4))  # and finds more
    assert "No comparison" in verdict(outcome(0.88, 0.9, top1=0.4))
    assert "constant vector" in verdict(outcome(0.3, 0.9, floor=0.48))
    assert "constant vector" not in verdict(outcome(0.3, 0.9))
