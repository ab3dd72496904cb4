"""What the training command refuses: one line, exit code 2, and nothing is lost."""

import os
import shutil

import pytest
import torch
from fused_mi.train.config import ConfigError, TrainConfig
from processes import ROOT, python


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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
        (["--objective", "mi"], "must be one of tokens"),
        (["--utility", "none"], "must be one of retrieval"),
        (["--start", "1"], "between 0 and 1"),
        (["--start", "nan"], "finite"),
        (["--tokens", "0"], "at least 1"),
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
    found = python("-c", code, PYTHONPATH=ROOT / "python")
    assert found.stdout.strip() == "[]"


def test_a_missing_extra_ends_with_one_line():
    code = (
        "import importlib.util as u, sys\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'typer' else real(name, *a)\n"
        "from fused_mi.train.cli import app\n"
        "app()"
    )
    found = python("-c", code, PYTHONPATH=ROOT / "python")
    assert found.returncode == 2
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1 and "typer" in lines[0] and "fused-mi[train]" in lines[0]
