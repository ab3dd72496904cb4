"""The examples train for a few steps: whole batches and parts alike, in every precision."""

import importlib
import math
import sys
from pathlib import Path

import fused_mi
import pytest
import torch
from cases import mi_inputs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
INFORMATION = "mutual_information_loss"


@pytest.fixture
def load(monkeypatch):
    """Imports an example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    if "accelerate.state" in sys.modules:  # it has one precision for all of a process
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


def weights(layer):
    return torch.cat([p.detach().flatten() for p in layer.parameters()]).clone()


def plain(module, *arguments):
    given = ["--sentences", "33", "--epochs", "2", *arguments]
    return module.train(module.parser().parse_args(given))


def test_a_loop_of_ones_own(load):
    """It learns; in parts, in halves of different sizes, it is the same."""
    module = load("plain_loop")
    whole, parts = plain(module), plain(module, "--micro", "3")
    assert whole[1][INFORMATION] < whole[0][INFORMATION]
    for a, b in zip(whole, parts, strict=True):
        assert a.keys() == b.keys()
        assert b == pytest.approx(a, rel=1e-4)


@pytest.mark.parametrize("micro", ["0", "3"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_loop_under_autocast(load, precision, micro):
    module = load("plain_loop")
    wide, narrow = plain(module), plain(module, "--precision", precision, "--micro", micro)
    assert all(math.isfinite(value) for row in narrow for value in row.values())
    for a, b in zip(wide, narrow, strict=True):
        assert b[INFORMATION] == pytest.approx(a[INFORMATION], rel=1e-2)


@pytest.mark.parametrize("micro", [0, 2])
def test_an_overflow_of_float16_skips_the_step(load, micro):
    """As of any other loss: the weights keep their bits, and the next scale is half as large."""
    module, tiny = load("plain_loop"), load("tiny")
    options = module.parser().parse_args(["--precision", "fp16", "--scale", "1e30"])
    training = module.Training(options, torch.device("cpu"))
    batch = tiny.collate(tiny.sentences(6))
    before = weights(training.layer)
    terms = training.step(*batch, micro)
    assert math.isfinite(terms[INFORMATION].item())
    assert torch.equal(weights(training.layer), before)
    assert training.scaler.get_scale() == pytest.approx(5e29)
    training.scaler.update(2.0**10)
    training.step(*batch, micro)
    assert not torch.equal(weights(training.layer), before)
    assert training.scaler.get_scale() == 2.0**10


@pytest.fixture
def recorded(load, monkeypatch):
    """What each call of a loss or of a step over micro-batches wrote, with its number of rows."""
    from fused_mi.micro_batches import MicroBatches

    load("tiny")
    found = []

    def watch(owner, name, rows_of):
        original = getattr(owner, name)

        def watched(self, *arguments):
            value = original(self, *arguments)
            if arguments and isinstance(arguments[-1], dict):
                found.append((rows_of(self, arguments), arguments[-1][INFORMATION].item()))
            return value

        monkeypatch.setattr(owner, name, watched)

    watch(fused_mi.MutualInformationLoss, "forward", lambda self, arguments: len(arguments[0]))
    watch(MicroBatches, "value", lambda self, arguments: self._rows)
    return found


@pytest.mark.filterwarnings("ignore")  # theirs
def test_the_trainer_of_transformers(load, recorded, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra examples")
    module = load("hf_trainer")
    once = {"num_train_epochs": 1, "optim": "sgd", "logging_steps": 2, "disable_tqdm": True}
    trainer = module.train(str(tmp_path), **once)
    assert [rows for rows, _ in recorded] == [16, 16, 1]
    logged = [row for row in trainer.state.log_history if INFORMATION in row]
    assert [row["step"] for row in logged] == [2]
    mean = sum(value for _, value in recorded[:2]) / 2
    assert logged[0][INFORMATION] == pytest.approx(mean, rel=1e-6)
    assert any("loss" in row and row["step"] == 2 for row in trainer.state.log_history)
    assert math.isfinite(trainer.evaluate()["eval_loss"])

    of_one = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    whole = module.train(str(tmp_path), **once, **of_one)
    found, wanted = (weights(t.model.layer) for t in (trainer, whole))
    start = weights(load("tiny").NoiseLayer())
    assert (wanted - start).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_under_autocast(load, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra examples")
    module = load("hf_trainer")
    options = {"bf16": True, "use_cpu": True, "num_train_epochs": 1, "disable_tqdm": True}
    trainer = module.train(str(tmp_path), **options)
    history = trainer.state.log_history
    assert all(math.isfinite(row[INFORMATION]) for row in history if INFORMATION in row)
    assert weights(trainer.model.layer).isfinite().all()


QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("in_parts", [False, True])
def test_lightning(load, recorded, in_parts):
    """What it logs is the mean over rows of what was computed."""
    pytest.importorskip("lightning", reason="needs the extra examples")
    module = load("lightning_module")
    torch.manual_seed(0)
    noise = module.NoiseInParts(micro=3) if in_parts else module.Noise()
    before = weights(noise.layer)
    trainer = module.train(noise, max_epochs=1, precision="bf16-mixed", **QUIET)
    steps = [(rows, value) for rows, value in recorded if rows > 1]
    assert [rows for rows, _ in recorded] == [16] * 4 + [1]
    mean = sum(rows * value for rows, value in steps) / sum(rows for rows, _ in steps)
    metrics = trainer.callback_metrics
    assert metrics[INFORMATION].item() == pytest.approx(mean, rel=1e-5)
    assert metrics["validation_information"].isfinite()
    assert not torch.equal(weights(noise.layer), before)


@pytest.mark.filterwarnings("ignore")
def test_lightning_in_parts_is_the_same(load):
    pytest.importorskip("lightning", reason="needs the extra examples")
    module, found = load("lightning_module"), []
    for kind in (module.Noise, module.NoiseInParts):
        torch.manual_seed(0)
        noise = kind()
        module.train(noise, max_epochs=1, num_sanity_val_steps=0, **QUIET)
        found.append(weights(noise.layer))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="accumulate_grad_batches: expected 1"):
        module.train(module.Noise(), accumulate_grad_batches=2, **QUIET)


@pytest.mark.parametrize(
    ("estimator", "combined"), [("jensen", True), ("jensen", False), ("logsumexp", False)]
)
def test_a_memory_bank_is_the_second_half_of_a_batch(load, estimator, combined):
    """Three samples against three components, added in two goes after two that are forgotten."""
    module = load("memory_bank")
    mu, stds, mask, x, y = mi_inputs(6, 4, 3)
    bank = module.MemoryBank(3)
    for part in (slice(0, 2), slice(3, 5), slice(5, 6)):
        bank.add(*(t[part] for t in (x, mu, stds, mask)))
    y, own = y[:3].requires_grad_(), stds[:3].clone().requires_grad_()
    found = module.information(y, own, mask[:3], bank, combined, estimator=estimator)
    halves = torch.cat((own, stds[3:])), mask, x, torch.cat((y, x[3:]))
    options = {"estimator": estimator, "reduction": "mean", "constant": "subtract"}
    wanted = fused_mi.mutual_information_sub_batch(mu, *halves, combined, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(v, (y, own)) for v in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_memory_bank_of_many_components(load, capsys):
    """4 samples against up to 60."""
    load("memory_bank").main()
    steps = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert len(steps) == 15
    assert all(map(math.isfinite, steps)) and steps[-1] < steps[0]
