"""What the training command refuses: one line, exit code 2, and nothing is lost."""

import os
import shutil
import threading

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
        (["--device", "meta"], "cannot be used"),
        (["--sweep", "alpha=1,1.0000001"], "each once"),
        (["--text", ""], "--text must not be empty"),
        (["--model", ""], "--model must not be empty"),
        (["--device", ""], "--device must not be empty"),
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
@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"config": "{"}, "damaged"),
        ({"config": "[]"}, "unknown entries"),
        ({"config": '{"steps": "many"}'}, "damaged"),
        ({"step": "last"}, "damaged"),
        ({"step": None}, "damaged"),
        ({"format": "fused-mi-train-1"}, "has the format fused-mi-train-1, this version reads"),
        ({"format": "fused-mi-train-99"}, "take the version that wrote it"),
        ({"config": '{"of_later": 1}'}, "written by another version?"),
        ({"format": "another"}, "was not written by fused-mi train"),
        ({"format": None}, "was not written by fused-mi train"),
    ],
)
def test_damaged_metadata_end_with_one_line(run, tmp_path, metadata, wanted):
    from fused_mi.train import checkpoint
    from safetensors.torch import save_file

    good = {"format": checkpoint.FORMAT, "step": "1", "config": TrainConfig().to_json()}
    damaged = {k: v for k, v in {**good, **metadata}.items() if v is not None}
    save_file({"a": torch.ones(1)}, tmp_path / "checkpoint.safetensors", damaged)
    code, lines = run(tmp_path, "--resume", defaults=False)
    assert code == 2 and len(lines) == 1 and wanted in lines[0]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("damage", ["gone", "words", "bytes"])
def test_a_damaged_curve_ends_with_one_line(run, tmp_path, damage):
    out = tmp_path / "out"
    assert run(out, "--steps", 2)[0] == 0
    path = out / "metrics.csv"
    if damage == "gone":
        path.unlink()
    else:
        words = b"2,a,b,c,d,e,f,g,h,i\n" if damage == "words" else b"\xff\xfe,\x00\n"
        path.write_bytes(path.read_bytes() + words)
    code, lines = run(out, "--resume", "--steps", 3, defaults=False)
    assert code == 2 and len(lines) == 1 and "metrics.csv" in lines[0]


@pytest.mark.usefixtures("no_plots")
def test_text_may_be_a_pipe_or_beside_what_is_none(run, tmp_path, corpus, monkeypatch):
    folder = tmp_path / "home" / "text"
    shutil.copytree(corpus, folder)
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "notes.md").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run(tmp_path / "out", "--text", "~/text", "--steps", 1)[0] == 0
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = (corpus / "0.txt").read_text()
    writer = threading.Thread(target=lambda: pipe.write_text(words))
    writer.start()
    assert run(tmp_path / "other", "--text", pipe, "--steps", 1)[0] == 0
    writer.join()


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("seed", [-3, 2**70])
def test_any_integer_is_a_seed(run, tmp_path, seed):
    assert run(tmp_path / "out", "--seed", seed, "--steps", 1)[0] == 0


@pytest.mark.usefixtures("no_plots")
def test_a_folder_holds_one_run(run, tmp_path, monkeypatch):
    """Also where a run began and saved nothing, and where two begin at once."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.csv").touch()
    code, lines = run(out)
    assert code == 2 and "holds a run" in lines[0]
    from fused_mi.train import session, trainer

    other = tmp_path / "other"
    trainer.claim(other)
    with pytest.raises(ConfigError, match="holds a run"):
        trainer.claim(other)
    monkeypatch.chdir(tmp_path)
    assert [session.pick_folder(False).name for _ in range(3)] == ["001", "002", "003"]
    with pytest.raises(ConfigError), session.or_nothing(tmp_path / "runs" / "003"):
        raise ConfigError("wrong")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["001", "002"]


def test_a_full_disk_ends_with_one_line(run, tmp_path, monkeypatch):
    import safetensors.torch

    def full(*arguments):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    code, lines = run(tmp_path / "out")
    assert code == 2 and "No space left" in lines[-1]


def test_names_that_the_terminal_cannot_show(tmp_path, model, corpus):
    out = tmp_path / "läuft-✓"
    command = ["-m", "fused_mi", "train", "--output", out, "--model", model, "--text", corpus]
    command += ["--batch-size", "8", "--seq-len", "12", "--steps", "1", "--eval-passages", "8"]
    found = python(*command, PYTHONPATH=ROOT / "python", PYTHONIOENCODING="ascii")
    assert found.returncode == 0, found.stderr[-2000:]
    assert (out / "report.md").is_file() and "Written to" in found.stdout


def test_ctrl_c_while_loading_says_so(tmp_path, model, corpus):
    code = (
        "import os, signal, sys, time\n"
        "from fused_mi.train import cli, loading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "loading.load = lambda *a: [os.kill(os.getpid(), signal.SIGINT), time.sleep(60)]\n"
        f"sys.argv = ['fused-mi', 'train', '--output', {str(tmp_path / 'out')!r}, '--text', "
        f"{str(corpus)!r}]\n"
        "cli.app()"
    )
    found = python("-c", code, PYTHONPATH=ROOT / "python")
    assert found.returncode == 130
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1 and "stopped" in lines[0] and "saved" in lines[0]


def test_a_hub_that_does_not_answer_is_not_asked_again(tmp_path, corpus):
    command = ["-m", "fused_mi", "train", "--output", tmp_path / "out", "--text", corpus]
    nobody = {"HF_ENDPOINT": "https://127.0.0.1:9", "HF_HOME": tmp_path, "https_proxy": None}
    found = python(*command, "--model", "no/such-model", PYTHONPATH=ROOT / "python", **nobody)
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2 and len(lines) == 1 and "cannot be loaded" in lines[0]
    assert not (tmp_path / "out").exists()


def test_config_survives_json():
    config = TrainConfig(alpha=0.1, batch_size=6, pairing="symmetric")
    assert TrainConfig.from_json(config.to_json()) == config
    with pytest.raises(ConfigError):
        TrainConfig.from_json('{"unknown": 1}')


def test_importing_the_package_stays_cheap():
    code = (
        "import sys, fused_mi, fused_mi.train\n"
        "heavy = {'transformers', 'accelerate', 'typer', 'matplotlib', 'tensorboard', 'rich'}\n"
        "heavy |= {'safetensors', 'gguf'}\n"
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
    assert len(lines) == 1 and "typer" in lines[0] and "pip install '.[train]'" in lines[0]
