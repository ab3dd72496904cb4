"""The training command, on a tiny random model and a small text."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from marks import pairing

for _extra in ("transformers", "safetensors", "rich", "typer", "tensorboard", "matplotlib"):
    pytest.importorskip(_extra)

from fused_mi.train import checkpoint, encoder, text
from fused_mi.train.cli import app
from fused_mi.train.config import ConfigError, TrainConfig
from fused_mi.train.evaluate import HeldOut, tune_isotropic
from fused_mi.train.noise import IsotropicNoise, NoiseLayer
from fused_mi.train.objective import mutual_information, shared_features
from fused_mi.train.report import verdict
from fused_mi.train.seeds import generator

WORDS = [a + b for a in "bdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "or")]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PYTHON = str(Path(__file__).resolve().parents[1] / "python")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The path of a two-layer BERT with random weights and a vocabulary of whole words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of documents of random words, one of them shorter than a passage."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    for number, length in enumerate((700, 500, 9)):
        words = " ".join(rng.choice(WORDS) for _ in range(length))
        (folder / f"{number}.txt").write_text(words)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sizes this small lose more by waiting for other threads than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes longer than all the rest of a tiny run."""
    from fused_mi.train import plots

    monkeypatch.setattr(plots, "_save", lambda figure, path: path.write_bytes(b"no plot"))


@pytest.fixture
def run(model, corpus, capsys):
    """Runs ``fused-mi train`` in this process; returns exit code and the lines on stderr."""

    def call(output, *more, defaults=True):
        base = ["train", "--output", str(output)]
        if defaults:
            base += ["--model", str(model), "--text", str(corpus), "--batch-size", "8"]
            base += ["--seq-len", "12", "--steps", "4", "--eval-passages", "8"]
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(SystemExit) as stop:
            app([*base, *map(str, more)])
        assert signal.getsignal(signal.SIGINT) is before
        return stop.value.code, capsys.readouterr().err.strip().splitlines()

    return call


def curve(folder):
    """metrics.csv without the column that depends on the clock."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("tokens_per_second")) > 0
    return rows


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def parts(model, corpus):
    """Encoder, training and held-out passages."""
    found, tokenizer = encoder.load(str(model), "cpu", "float32", 12)
    passages = text.cut(tokenizer, text.read_documents(str(corpus)), 12)
    return found, *text.split(passages, 0, 8)


def test_a_run_writes_everything(run, tmp_path):
    code, _ = run(tmp_path / "out")
    assert code == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "checkpoint.safetensors",
        "metrics.csv",
        "events",
        "evaluation.json",
        "report.md",
        "curves.png",
        "recovery.png",
        "sigma.png",
    }
    assert [row["step"] for row in curve(tmp_path / "out")] == ["1", "2", "3", "4"]
    assert list((tmp_path / "out" / "events").iterdir())
    for png in (tmp_path / "out").glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(found["trained"]["recovery"]) == {"nearest", "informed", "prior"}
    assert abs(found["trained"]["utility"] - found["isotropic"]["utility"]) < 0.01
    assert "utility" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("estimator", "pairing"), [("jensen", "sub_batch"), ("logsumexp", "leave_one_out")]
)
def test_resume_gives_the_same_curve(run, tmp_path, estimator, pairing):
    how = ("--estimator", estimator, "--pairing", pairing)
    assert run(tmp_path / "whole", *how)[0] == 0
    assert run(tmp_path / "parts", *how, "--steps", 2)[0] == 0
    assert run(tmp_path / "parts", "--resume", "--steps", 4, defaults=False)[0] == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    whole, parts = (checkpoint.read(tmp_path / name) for name in ("whole", "parts"))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    for name in ("trained", "isotropic"):
        found = [
            json.loads((tmp_path / folder / "evaluation.json").read_text())[name]
            for folder in ("whole", "parts")
        ]
        assert found[0] == found[1]


@pytest.mark.usefixtures("no_plots")
def test_rows_after_the_last_checkpoint_are_replaced(run, tmp_path):
    assert run(tmp_path / "out", "--steps", 2)[0] == 0
    with (tmp_path / "out" / "metrics.csv").open("a") as file:
        file.write("3,9,9,9,9,9,9\n4,9,")
    assert run(tmp_path / "out", "--resume", "--steps", 4, defaults=False)[0] == 0
    rows = curve(tmp_path / "out")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert "9.0" not in {row["loss"] for row in rows}


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(run, tmp_path, dtype):
    assert run(tmp_path / "out", "--dtype", dtype, "--steps", 2)[0] == 0
    layer, config = checkpoint.load_noise_layer(tmp_path / "out")
    wanted = torch.float64 if dtype == "float64" else torch.float32
    assert layer.to_mu.weight.dtype == wanted and config.dtype == dtype
    assert all(float(row["loss"]) == float(row["loss"]) for row in curve(tmp_path / "out"))


def test_a_sweep_writes_one_run_per_alpha(run, tmp_path):
    assert run(tmp_path / "out", "--sweep", "alpha=0.1,3", "--steps", 2)[0] == 0
    with (tmp_path / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["alpha"] for row in rows] == ["0.1", "3"]
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
    for alpha in ("0.1", "3"):
        assert (tmp_path / "out" / f"alpha={alpha}" / "report.md").is_file()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--text", "/no/such/file"], "no such file"),
        (["--model", "/no/such/model"], "no such folder"),
        (["--batch-size", "7"], "even"),
        (["--batch-size", "7", "--pairing", "symmetric"], "even"),
        (["--batch-size", "1", "--pairing", "leave_one_out"], "at least 2"),
        (["--batch-size", "100000"], "too few"),
        (["--pairing", "both"], "must be one of sub_batch"),
        (["--estimator", "mean"], "must be one of jensen"),
        (["--dtype", "int8"], "must be one of float32"),
        (["--device", "nowhere"], "cannot be used"),
        (["--steps", "0"], "at least 1"),
        (["--steps", "many"], "integer"),
        (["--lr", "nan"], "finite"),
        (["--lr", "-1"], "positive"),
        (["--alpha", "-1"], "negative"),
        (["--min-std", "2", "--max-std", "1"], "--min-std < --max-std"),
        (["--seq-len", "2"], "at least 4"),
        (["--seq-len", "500"], "at most 24"),
        (["--sweep", "beta=1"], "--sweep"),
        (["--sweep", "alpha=1,x"], "--sweep"),
        (["--sweep", "alpha=1,-2"], "negative"),
        (["--sweep", "alpha=1", "--alpha", "1"], "exclude"),
        (["--resume"], "no checkpoint"),
        (["--resume", "--sweep", "alpha=1"], "no checkpoint"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_bad_options_end_with_one_line(run, tmp_path, options, wanted):
    code, lines = run(tmp_path / "out", *options)
    assert code == 2
    assert len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "data", "wanted"),
    [
        ("empty.txt", b"", "no text"),
        ("blank.txt", b" \n\t\n", "no text"),
        ("short.txt", b"ba be bi", "too few"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("folder", None, "holds no"),
    ],
)
def test_bad_text_ends_with_one_line(run, tmp_path, name, data, wanted):
    path = tmp_path / name
    path.mkdir() if data is None else path.write_bytes(data)
    code, lines = run(tmp_path / "out", "--text", path)
    assert code == 2
    assert len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none_ends_with_one_line(run, tmp_path):
    (tmp_path / "model").mkdir()
    code, lines = run(tmp_path / "out", "--model", tmp_path / "model")
    assert code == 2 and len(lines) == 1 and "cannot be loaded" in lines[0]


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/nothing"])
def test_an_unwritable_folder_ends_with_one_line(run, tmp_path, output):
    if output.startswith("/proc") and not os.path.isdir("/proc"):
        pytest.skip("no /proc here")
    (tmp_path / "file").write_text("precious")
    code, lines = run(tmp_path / output)
    assert code == 2 and len(lines) == 1 and "--output" in lines[0]
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.usefixtures("no_plots")
def test_bad_resumes_lose_nothing(run, tmp_path, model):
    out = tmp_path / "out"
    assert run(out)[0] == 0
    before = contents(out)
    other = tmp_path / "model"  # the same path given at training, later another model
    shutil.copytree(model, other)
    assert run(tmp_path / "moved", "--model", other)[0] == 0
    moved = contents(tmp_path / "moved")
    _widen(other)
    for folder, options, wanted in (
        (out, [], "holds a run"),
        (out, ["--resume", "--lr", "0.5"], "differs"),
        (out, ["--resume", "--batch-size", "4"], "differs"),
        (out, ["--resume", "--steps", "3"], "already at step 4"),
        (tmp_path / "moved", ["--resume", "--model", other, "--steps", "9"], "does not fit"),
    ):
        defaults = "--resume" not in options
        code, lines = run(folder, *options, defaults=defaults)
        assert code == 2 and len(lines) == 1 and wanted in lines[0]
    assert contents(out) == before
    assert contents(tmp_path / "moved") == moved


def _widen(folder):
    """Replaces the model by one with embeddings of another size."""
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(folder)
    config.hidden_size = 32
    BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize("damage", ["cut", "foreign"])
def test_a_damaged_checkpoint_ends_with_one_line(run, tmp_path, damage):
    from safetensors.torch import save_file

    path = tmp_path / "checkpoint.safetensors"
    if damage == "cut":
        path.write_bytes(b"\x10\x00\x00")
    else:
        save_file({"a": torch.ones(1)}, path)
    code, lines = run(tmp_path, "--resume", defaults=False)
    assert code == 2 and len(lines) == 1 and "checkpoint.safetensors" in lines[0]


@pytest.mark.usefixtures("no_plots")
def test_ctrl_c_saves_and_resume_finishes(run, tmp_path, model, corpus):
    command = [sys.executable, "-m", "fused_mi", "train", "--output", str(tmp_path / "out")]
    command += ["--model", str(model), "--text", str(corpus), "--batch-size", "8"]
    command += ["--seq-len", "12", "--steps", "100000", "--eval-passages", "8"]
    environment = {**os.environ, "PYTHONPATH": PYTHON, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    metrics = tmp_path / "out" / "metrics.csv"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "saved" in error.strip().splitlines()[-1] and "Traceback" not in error
    step = checkpoint.read(tmp_path / "out").step
    assert step >= 3 and len(curve(tmp_path / "out")) == step
    assert run(tmp_path / "out", "--resume", "--steps", step + 1, defaults=False)[0] == 0
    assert len(curve(tmp_path / "out")) == step + 1


def test_sigma_stays_within_its_bounds():
    torch.manual_seed(0)
    layer = NoiseLayer(8, 0.05, 0.4, 1.0)
    torch.nn.init.normal_(layer.to_sigma.weight, std=100.0)
    sigma = layer(torch.randn(4, 3, 8))[2].detach()
    assert float(sigma.min()) >= 0.05 * (1 - 1e-5) and float(sigma.max()) <= 0.4 * (1 + 1e-5)
    assert float(sigma.max()) > 0.39 and float(sigma.min()) < 0.06  # both ends are reached


def test_the_noise_mask_leaves_out_special_and_padding_tokens(parts):
    _, train, held_out = parts
    special = len(SPECIAL)
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


def test_config_survives_json():
    config = TrainConfig(alpha=0.1, batch_size=6, pairing="symmetric")
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError):
        TrainConfig.from_json('{"unknown": 1}')


def test_importing_the_package_stays_cheap():
    code = (
        "import sys, fused_mi, fused_mi.train\n"
        "heavy = {'transformers', 'typer', 'matplotlib', 'tensorboard', 'rich', 'safetensors'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHON}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.strip() == "[]"


def test_a_missing_extra_ends_with_one_line():
    code = (
        "import importlib.util as u, sys\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'typer' else real(name, *a)\n"
        "from fused_mi.train.cli import app\n"
        "app()"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHON}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert found.returncode == 2
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1 and "typer" in lines[0] and "fused-mi[train]" in lines[0]
