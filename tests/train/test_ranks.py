"""Several ranks, each with its part of the batch, under torchrun; precision and trackers."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fused_mi.train import checkpoint, loading, ranks, text, trainer
from fused_mi.train.config import ConfigError, TrainConfig
from fused_mi.train.objective import mutual_information, objective
from fused_mi.train.seeds import generator
from passages_of_ranks import CONFIGS, gradients, layer_of, scored
from processes import ROOT, environment, python
from test_train_runs import curve

TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"


def command(output, model, corpus, *more):
    options = ["--output", output, "--model", model, "--text", corpus, "--batch-size", 8]
    options += ["--seq-len", 12, "--eval-passages", 8, "--device", "cpu", *more]
    return [*TORCHRUN, "-m", "fused_mi", "train", *options]


@pytest.fixture(scope="module")
def environ():
    return {"PYTHONPATH": ROOT / "python", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model, corpus, environ):
    """What two ranks wrote in five steps, and what they said."""
    out = tmp_path_factory.mktemp("ranks") / "out"
    return out, python(*command(out, model, corpus, "--steps", 5), **environ)


def test_two_ranks_write_one_run(finished):
    out, found = finished
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("Written to") == 1
    assert len([line for line in found.stderr.splitlines() if line.startswith("step ")]) == 5
    assert [row["step"] for row in curve(out)] == ["1", "2", "3", "4", "5"]
    assert [bool(row["validation_found"]) for row in curve(out)] == [*[False] * 4, True]
    assert (out / "report.md").is_file() and len(list((out / "events").iterdir())) == 1
    assert checkpoint.read(out).step == 5


def test_ranks_step_along_the_average_of_their_losses(finished, model, corpus):
    """Each on every second passage, with noise of its own; here the first two steps."""
    out, _ = finished
    config = checkpoint.read(out).config
    found, tokenizer = loading.load(str(model), "cpu", "float32", 12)
    passages = text.cut(tokenizer, text.read_documents(str(corpus)), 12)
    train, *_ = text.split(passages, 0, 8)
    vocabulary = text.Vocabulary.of(train, len(found.table))
    layer = trainer.build_layer(config, found)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    for step, row in enumerate(curve(out)[:2]):
        rows = text.batch_rows(len(train), 8, 0, step)
        losses = []
        for rank in range(2):
            noise = generator("cpu", 0, "noise", step, *([rank] if rank else []))
            part = train[rows[rank::2]]
            losses.append(objective(layer, found, vocabulary, part, config, noise).loss)
        mean = (losses[0] + losses[1]) / 2
        assert losses[0].item() != losses[1].item()
        assert float(row["loss"]) == pytest.approx(mean.item(), rel=1e-5)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()


def test_passages_of_all_ranks_are_one_batch(tmp_path, environ):
    """Value, and the average of the gradients, of three passages on each of two ranks: those of
    one process with all of them, for both estimators and every pairing."""
    path = tmp_path / "found.pt"
    program = Path(__file__).with_name("passages_of_ranks.py")
    done = python(*TORCHRUN, program, path, **environ)
    assert done.returncode == 0, done.stderr[-3000:]
    rows, found = torch.load(path)
    assert rows.tolist() == [0, 2, 4, 1, 3, 5]
    for config, (values, gradient) in zip(CONFIGS, found, strict=True):
        layer = layer_of()
        nats = scored(layer, config, rows)
        assert values[0] == values[1]
        torch.testing.assert_close(values[0], nats)
        torch.testing.assert_close(gradient, gradients(layer))
        if config.pairing == "leave_one_out":  # of each rank's own it would be another number
            parts = [scored(layer, config, half).item() for half in rows.chunk(2)]
            assert abs(sum(parts) / 2 - nats.item()) > 1e-3


def test_ranks_step_along_the_passages_of_all(tmp_path, model, corpus, environ):
    """The utility of each rank's passages, beside the bound for those of all."""
    out = tmp_path / "out"
    done = python(*command(out, model, corpus, "--steps", 2, "--objective", "passages"), **environ)
    assert done.returncode == 0, done.stderr[-3000:]
    config = checkpoint.read(out).config
    found, tokenizer = loading.load(str(model), "cpu", "float32", 12)
    passages = text.cut(tokenizer, text.read_documents(str(corpus)), 12)
    train, *_ = text.split(passages, 0, 8)
    vocabulary = text.Vocabulary.of(train, len(found.table))
    layer = trainer.build_layer(config, found)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    for step, row in enumerate(curve(out)):
        rows = text.batch_rows(len(train), 8, 0, step)
        costs, draws = [], []
        for rank in range(2):
            noise = generator("cpu", 0, "noise", step, *([rank] if rank else []))
            part = train[rows[rank::2]]
            costs.append(objective(layer, found, vocabulary, part, config, noise).utility_loss)
            noise = generator("cpu", 0, "noise", step, *([rank] if rank else []))
            x = found.embed(part.ids)
            draws.append((x, *layer(x, noise), part.noise_mask))
        batch = (torch.cat(tensors) for tensors in zip(*draws, strict=True))
        nats = mutual_information(*batch, config.estimator, config.pairing)[1]
        mean = sum(costs) / 2 + config.weight * nats
        assert float(row["information"]) == pytest.approx(nats.item(), rel=1e-4)
        assert float(row["loss"]) == pytest.approx(mean.item(), rel=1e-4)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()


def test_ctrl_c_stops_all_ranks_after_one_step(run, tmp_path, finished, model, corpus, environ):
    """What they saved goes on, also in one process."""
    out = tmp_path / "out"
    arguments = [sys.executable, *map(str, command(out, model, corpus, "--steps", 100000))]
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=environment(**environ), cwd=ROOT
    )
    metrics = out / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and error.count("saved; go on with") == 1, error[-3000:]
    step = checkpoint.read(out).step
    assert step >= 5 and len(curve(out)) == step
    assert curve(out)[:5] == curve(finished[0])  # bit for bit
    assert run(out, "--resume", "--steps", step + 1, defaults=False)[0] == 0
    assert len(curve(out)) == step + 1


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"batch_size": 2}, "multiple of 2 passages, 4 at least"),
        ({"batch_size": 9, "pairing": "leave_one_out"}, "multiple of 2"),
        ({"tracker": "clearml-of-nobody"}, "not installed"),
    ],
)
def test_what_ranks_refuse(tmp_path, monkeypatch, options, wanted):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=wanted):
        ranks.accelerator_of(TrainConfig(device="cpu", **options), tmp_path)


@pytest.mark.parametrize("options", [[], ["--output", "out", "--sweep", "alpha=1"]])
def test_ranks_need_a_folder_and_one_run(run, monkeypatch, tmp_path, capsys, options):
    from fused_mi.train.cli import app

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        app(["train", *options])
    assert stop.value.code == 2 and "ranks" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.usefixtures("no_plots")
def test_without_a_tracker(run, tmp_path):
    assert run(tmp_path / "out", "--tracker", "none", "--steps", 1)[0] == 0
    assert not (tmp_path / "out" / "events").exists()


@pytest.fixture
def afresh():
    """Accelerate has one precision for all of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield AcceleratorState._reset_state
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision(tmp_path, model, corpus, afresh):
    """A step is near that of float32 and not the same; the layer is kept in float32."""
    rows = {}
    for precision in ("bf16", "no"):
        afresh(reset_partial_state=True)
        config = TrainConfig(
            model=str(model),
            text=str(corpus),
            batch_size=8,
            seq_len=12,
            device="cpu",
            precision=precision,
        )
        step = trainer.prepare(config, tmp_path / precision, None)
        rows[precision], _ = trainer._one_step(step)
        assert step.layer.to_mu.weight.dtype == torch.float32
    low, full = rows["bf16"]["loss"], rows["no"]["loss"]
    assert low != full and low == pytest.approx(full, rel=0.05)
