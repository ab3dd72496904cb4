"""Noise layers, objective, evaluation and report of the training example."""

import pytest
import torch
from fused_mi.train.evaluate import HeldOut, tune_isotropic
from fused_mi.train.noise import IsotropicNoise, NoiseLayer
from fused_mi.train.objective import mutual_information, shared_features
from fused_mi.train.report import verdict
from fused_mi.train.seeds import generator
from marks import pairing


def test_sigma_stays_within_its_bounds():
    torch.manual_seed(0)
    layer = NoiseLayer(8, 0.05, 0.4, 1.0)
    torch.nn.init.normal_(layer.to_sigma.weight, std=100.0)
    sigma = layer(torch.randn(4, 3, 8))[2].detach()
    assert float(sigma.min()) >= 0.05 * (1 - 1e-5) and float(sigma.max()) <= 0.4 * (1 + 1e-5)
    assert float(sigma.max()) > 0.39 and float(sigma.min()) < 0.06  # both ends are reached


def test_the_noise_mask_leaves_out_special_and_padding_tokens(parts, special):
    _, train, held_out = parts
    for passages in (train, held_out):
        assert torch.equal(passages.noise_mask, passages.ids >= special)
        assert torch.equal(passages.attention_mask, passages.ids != 0)
    rows = {tuple(row) for part in (train, held_out) for row in part.ids.tolist()}
    assert len(rows) == len(train) + len(held_out)  # disjoint, without duplicates
    assert not bool(torch.cat([train.attention_mask, held_out.attention_mask]).all())


def test_the_objective_leaves_special_tokens_clean(parts):
    """Noise at special tokens, however large, changes neither utility nor MI."""
    from fused_mi.train.objective import objective

    found, train, _ = parts

    class Loud(IsotropicNoise):
        def forward(self, x, generator=None):
            y, mu, sigma = super().forward(x, generator)
            special = ~train[:8].noise_mask[..., None]
            return torch.where(special, y + 1e6, y), mu, sigma

    terms = [
        objective(layer, found, train[:8], 1.0, "jensen", "sub_batch", generator("cpu", 1))
        for layer in (IsotropicNoise(0.1), Loud(0.1))
    ]
    assert torch.equal(terms[0].loss, terms[1].loss)
    assert 0 < float(terms[0].utility) < 1


@pairing
def test_mi_without_signal_is_zero(pairing):
    """All x equal: y says nothing about x, and the constant d/2 is what has to be subtracted."""
    torch.manual_seed(0)
    x = torch.ones(512, 3, 4, dtype=torch.float64)
    mask = torch.rand(512, 3) < 0.7
    y = x + 0.3 * torch.randn_like(x)
    sigma = torch.full_like(x, 0.3)
    _, each = mutual_information(x, y, torch.zeros_like(x), sigma, mask, "jensen", pairing)
    assert abs(float(each)) < 0.06
    rows = range(512)
    half = {(i, j) for i in rows[:256] for j in rows[256:]}
    whole = {(i, j) for i in rows for j in rows if i != j}
    pairs = torch.tensor(sorted(whole if pairing == "leave_one_out" else half))
    wanted = float((mask[pairs[:, 0]] & mask[pairs[:, 1]]).double().sum(1).mean()) * 4
    assert shared_features(mask, 4, pairing) == pytest.approx(wanted, rel=1e-12)


def test_isotropic_tuning_reaches_the_target(parts):
    found, train, held_out = parts
    data = HeldOut(found, held_out, train, 0)
    for target in (0.95, 0.7):
        tuned = tune_isotropic(data, target)
        assert data.utility_of(tuned) == pytest.approx(target, abs=2e-3)


def test_attackers_read_everything_without_noise_and_nothing_without_signal(parts):
    found, train, held_out = parts
    data = HeldOut(found, held_out, train, 0)
    silent, loud = IsotropicNoise(1e-4), IsotropicNoise(1e4)
    assert set(data.evaluate(silent, "sub_batch").recovery.values()) == {1.0}
    assert max(data.evaluate(loud, "sub_batch").recovery.values()) < 0.2


def test_only_the_informed_attacker_sees_through_a_shift(parts):
    """Without noise a known shift hides nothing, though the nearest word is always another one."""
    found, train, held_out = parts
    data = HeldOut(found, held_out, train, 0)

    class Shifted(NoiseLayer):
        def parameters_of(self, x):
            return 100.0 - 2 * x, torch.full_like(x, 1e-3)

    recovery = data.evaluate(Shifted(16, 0.1, 1.0, 1.0), "sub_batch").recovery
    assert recovery["informed"] == 1.0 and recovery["nearest"] < 0.2


def test_informed_scores_are_gaussian_log_densities(parts):
    from fused_mi.train.evaluate import _GaussianScores

    torch.manual_seed(0)
    centers, sigma = torch.randn(9, 5).double() + 50, torch.rand(9, 5).double() + 0.1
    y = torch.randn(4, 5).double() + 50
    exact = torch.distributions.Normal(centers, sigma).log_prob(y[:, None]).sum(-1)
    found = _GaussianScores(centers, sigma)(y)
    difference = found - exact
    assert float((difference - difference[:, :1]).abs().max()) < 1e-9


def test_the_verdict_follows_the_numbers():
    from types import SimpleNamespace

    def outcome(ours, theirs, utility=0.5):
        side = [
            SimpleNamespace(utility=u, recovery={"nearest": 0.0, "informed": r, "prior": r})
            for u, r in ((0.5, ours), (utility, theirs))
        ]
        return SimpleNamespace(trained=side[0], isotropic=side[1])

    assert "hides clearly more" in verdict(outcome(0.3, 0.9))
    assert "does NOT hide" in verdict(outcome(0.88, 0.9))
    assert "larger --alpha" in verdict(outcome(0.99, 1.0))
    assert "No comparison" in verdict(outcome(0.3, 0.9, utility=0.6))
