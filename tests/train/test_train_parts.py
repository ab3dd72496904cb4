"""Noise layers, objective, evaluation and report of the training example."""

import math

import pytest
import torch
from fused_mi.train.config import TrainConfig
from fused_mi.train.evaluate import HeldOut, tune_isotropic
from fused_mi.train.noise import ConstantVector, IsotropicNoise, NoiseLayer
from fused_mi.train.objective import mutual_information, objective, shared_features
from fused_mi.train.seeds import generator
from fused_mi.train.text import Passages, Vocabulary
from marks import pairing


def test_sigma_stays_within_its_bounds():
    torch.manual_seed(0)
    layer = NoiseLayer(8, 0.05, 0.4, 1.0)
    torch.nn.init.normal_(layer.to_sigma.weight, std=100.0)
    sigma = layer(torch.randn(4, 3, 8))[2].detach()
    assert float(sigma.min()) >= 0.05 * (1 - 1e-5) and float(sigma.max()) <= 0.4 * (1 + 1e-5)
    assert float(sigma.max()) > 0.39 and float(sigma.min()) < 0.06  # both ends are reached


def test_the_noise_mask_leaves_out_special_and_padding_tokens(parts, special):
    _, train, validation, test = parts
    for passages in (train, validation, test):
        assert torch.equal(passages.noise_mask, passages.ids >= special)
        assert torch.equal(passages.attention_mask, passages.ids != 0)
    splits = train, validation, test
    rows = {tuple(row) for part in splits for row in part.ids.tolist()}
    assert len(rows) == sum(map(len, splits))  # disjoint, without duplicates
    assert len(validation) == len(test) > 0
    assert not bool(torch.cat([part.attention_mask for part in splits]).all())


@pytest.mark.parametrize("which", ["tokens", "passages", "std", "none"])
@pytest.mark.parametrize("utility", ["retrieval", "cosine"])
def test_the_objective_leaves_special_tokens_clean(parts, which, utility):
    """Noise at special tokens, however large, changes nothing."""
    found, train, *_ = parts

    class Loud(IsotropicNoise):
        def forward(self, x, generator=None):
            y, mu, sigma = super().forward(x, generator)
            special = ~train[:8].noise_mask[..., None]
            return torch.where(special, y + 1e6, y), mu, sigma

    vocabulary = Vocabulary.of(train, len(found.table))
    config = TrainConfig(objective=which, utility=utility)
    terms = [
        objective(layer, found, vocabulary, train[:8], config, generator("cpu", 1))
        for layer in (IsotropicNoise(0.1), Loud(0.1))
    ]
    assert torch.equal(terms[0].loss, terms[1].loss) and terms[0].loss.isfinite()
    assert 0 < float(terms[0].kept["cosine"]) < 1 and 0 <= float(terms[0].kept["found"]) <= 1


def test_the_token_objective_is_that_of_the_words_of_the_text(parts):
    """Of all tokens of a batch: the posterior of each, by torch.distributions."""
    found, train, *_ = parts
    batch, layer = train[:8], IsotropicNoise(0.3)
    config = TrainConfig(objective="tokens", tokens=10**6)
    terms = objective(
        layer, found, Vocabulary.of(train, len(found.table)), batch, config, generator("cpu", 1)
    )
    x = found.embed(batch.ids)
    noisy = layer(x, generator("cpu", 1))[0][batch.noise_mask].double()
    counts = torch.bincount(train.ids[train.noise_mask], minlength=len(found.table)).double()
    density = torch.distributions.Normal(found.table.double(), 0.3).log_prob(noisy[:, None]).sum(-1)
    posterior = (density + (counts / counts.sum()).log()).log_softmax(1)
    tokens = batch.ids[batch.noise_mask]
    prior = (counts / counts.sum()).log()[tokens]
    want = (posterior.gather(1, tokens[:, None])[:, 0] - prior).mean()
    assert terms.information.item() == pytest.approx(want.item(), rel=1e-4)


def test_a_vocabulary_has_the_words_under_noise(parts, special):
    found, train, *_ = parts
    vocabulary = Vocabulary.of(train, len(found.table))
    assert set(vocabulary.words.tolist()) == set(train.ids[train.noise_mask].tolist())
    assert vocabulary.words.min() >= special
    assert vocabulary.log_frequencies.exp().sum().item() == pytest.approx(1, abs=1e-6)
    rows = vocabulary.row_of[vocabulary.words]
    assert torch.equal(rows, torch.arange(len(vocabulary.words)))
    assert int((vocabulary.row_of >= 0).sum()) == len(rows)


@pytest.mark.parametrize("start", [0.1, 0.9])
def test_where_sigma_starts(start):
    layer = NoiseLayer(4, 0.01, 1.0, 1.0, start)
    sigma = layer.parameters_of(torch.randn(3, 4))[1]
    torch.testing.assert_close(sigma, torch.full_like(sigma, 0.01 * 100**start))


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


def test_isotropic_tuning_keeps_the_retrieval(parts):
    """The largest sigma that does."""
    found, train, _, test = parts
    data = HeldOut(found, test, train, 0)
    for target in (1.0, 0.75):
        tuned = tune_isotropic(data, target)
        assert data.retrieval(tuned, 2).top1 >= target - 0.5 / len(test)
        assert data.retrieval(IsotropicNoise(1.02 * tuned.std), 2).top1 <= target


def test_attackers_read_everything_without_noise_and_nothing_without_signal(parts):
    found, train, _, test = parts
    data = HeldOut(found, test, train, 0)
    silent, loud = (data.evaluate(IsotropicNoise(s), "sub_batch") for s in (1e-4, 1e4))
    assert set(silent.attacks.values()) == {1.0} and silent.retrieval_top1 == 1
    assert max(loud.attacks.values()) < 0.2
    assert silent.token_information_nats == pytest.approx(data.token_entropy, abs=1e-4)
    assert abs(loud.token_information_nats) < 3 * loud.token_information_error + 0.01
    assert 0 < data.token_entropy < 10


@pytest.mark.parametrize("std", [1e-20, 1e-30, 1e20])
def test_extreme_noise_has_finite_scores(parts, std):
    found, train, _, test = parts
    data = HeldOut(found, test, train, 0)
    evaluation = data.evaluate(IsotropicNoise(std), "sub_batch")
    read = 1.0 if std < 1 else 0.0
    assert abs(evaluation.attacks["nearest"] - read) <= (0 if std < 1 else 0.2)
    assert math.isfinite(evaluation.token_information_nats)


def test_a_constant_vector_tells_nothing(parts):
    found, train, _, test = parts
    data = HeldOut(found, test, train, 0)
    floor = data.evaluate(ConstantVector(data.table.mean(0)), "sub_batch")
    assert abs(floor.token_information_nats) < 1e-3
    word = data.log_prior.argmax()
    assert floor.attacks["posterior"] == (data.tokens == word).double().mean().item()
    assert floor.retrieval_top1 < 0.5


def test_only_the_informed_attacker_sees_through_a_shift(parts):
    """Without noise a known shift hides nothing, though the nearest word is always another one."""
    found, train, _, test = parts
    data = HeldOut(found, test, train, 0)

    class Shifted(NoiseLayer):
        def parameters_of(self, x):
            return 100.0 - 2 * x, torch.full_like(x, 1e-3)

    attacks = data.evaluate(Shifted(16, 0.1, 1.0, 1.0), "sub_batch").attacks
    assert attacks["informed"] == 1.0 and attacks["nearest"] < 0.2


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_nearest_row_is_the_nearest(offset):
    from fused_mi.train.attacks import nearest

    torch.manual_seed(0)
    table, y = offset + torch.randn(300, 6), offset + torch.randn(50, 6)
    exact = torch.cdist(y.double(), table.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(nearest(y, table), exact.argmin(1))


def test_informed_scores_are_gaussian_log_densities():
    from fused_mi.train.attacks import Densities

    torch.manual_seed(0)
    centers, sigma = torch.randn(9, 5).double() + 50, torch.rand(9, 5).double() + 0.1
    y = torch.randn(4, 5).double() + 50
    exact = torch.distributions.Normal(centers, sigma).log_prob(y[:, None]).sum(-1)
    found = Densities(centers, sigma)(y)
    difference = found - exact
    assert float((difference - difference[:, :1]).abs().max()) < 1e-9


def test_bigrams_are_the_chain_that_all_sequences_make(parts):
    """Forward and backward against every sequence of three words, one by one."""
    from fused_mi.train.attacks import Bigrams

    size = 4
    ids = torch.tensor([[0, 1, 2, 3], [1, 2, 0, 1], [2, 0, 1, 1], [0, 1, 1, 2]]).repeat(6, 1)
    full = torch.ones_like(ids, dtype=torch.bool)
    single = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    bigrams = Bigrams.of(Passages(ids, full, full), single)
    dense, weight = bigrams.pairs.to_dense(), bigrams.weight[:, None]
    seen = dense.sum(1)
    torch.testing.assert_close(seen[seen > 0], torch.ones(3, dtype=torch.float64))
    assert 0.5 < weight.max() <= 1 and weight[3] == 0  # 3 comes before nothing
    chain = weight * dense + (1 - weight) * single
    torch.testing.assert_close(chain.sum(1), torch.ones(4, dtype=torch.float64))
    torch.manual_seed(0)
    likelihood = torch.rand(2, 3, size, dtype=torch.float64)
    found = bigrams.posterior(likelihood.permute(1, 2, 0)).permute(2, 0, 1)
    a, b, c = likelihood.unbind(1)
    joint = torch.einsum("pi,i,ij,pj,jk,pk->pijk", a, single, chain, b, chain, c)
    joint = joint / joint.sum((1, 2, 3), keepdim=True)
    marginals = joint.sum((2, 3)), joint.sum((1, 3)), joint.sum((1, 2))
    torch.testing.assert_close(found, torch.stack(marginals, 1))


def test_words_that_training_never_saw_are_one_word_to_the_chain(parts):
    """The same names as from a chain of all words."""
    from fused_mi.train.attacks import Bigrams, Neighbours

    _, train, _, test = parts
    ids = torch.where(train.ids % 3 == 0, 7, train.ids)  # a third of all words is never seen
    few = Passages(ids, train.attention_mask, train.noise_mask)
    torch.manual_seed(0)
    single = torch.rand(100, dtype=torch.float64)
    single = single / single.sum()
    vocabulary, mask = Vocabulary.of(few, len(single)), test.noise_mask[:5]
    neighbours = Neighbours.of(few, vocabulary, single)
    assert len(neighbours.rest) > 20
    densities = 3 * torch.randn(int(mask.sum()), 100, dtype=torch.float64)
    found = neighbours.names(densities, mask)
    likelihood = torch.ones(*mask.shape, 100, dtype=torch.float64)
    likelihood[mask] = densities.exp() / densities.exp().amax(1, keepdim=True)
    chances = Bigrams.of(few, single).posterior(likelihood.permute(1, 2, 0))
    assert torch.equal(found, chances.permute(2, 0, 1)[mask].argmax(1))
    assert 0 < sum(int(word in neighbours.rest) for word in found) < len(found)


def test_neighbours_help_where_words_follow_each_other(parts):
    """Where each word has one that follows it, noise that hides a word does not hide a passage."""
    found, train, _, test = parts
    words = train.ids[train.noise_mask].unique()
    order = torch.arange(train.ids.shape[1])

    def chained(passages):
        first = torch.randint(len(words), (len(passages), 1))
        ids = torch.where(passages.noise_mask, words[(first + order) % len(words)], passages.ids)
        return Passages(ids, passages.attention_mask, passages.noise_mask)

    torch.manual_seed(0)
    data = HeldOut(found, chained(test), chained(train), 0)
    attacks = data.evaluate(IsotropicNoise(0.5), "sub_batch").attacks
    assert attacks["neighbours"] > attacks["posterior"] + 0.1
