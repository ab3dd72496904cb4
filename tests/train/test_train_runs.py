"""The training command, on a tiny random model and a small text: what a run writes; resuming."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from fused_mi.train import checkpoint
from processes import ROOT


def curve(folder):
    """metrics.csv without the column that depends on the clock."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row.pop("tokens_per_second")) > 0
    return rows


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
        "frequency.png",
    }
    assert [row["step"] for row in curve(tmp_path / "out")] == ["1", "2", "3", "4"]
    assert list((tmp_path / "out" / "events").iterdir())
    for png in (tmp_path / "out").glob("*.png"):
        assert png.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(found["baselines"]) == {"isotropic"}
    assert set(found["floors"]) == {"constant vector", "most frequent word"}
    both = *found["baselines"].values(), *found["floors"].values()
    for evaluation in (found["trained"], *both):
        assert set(evaluation["attacks"]) == {"nearest", "informed", "posterior", "neighbours"}
        assert all(0 <= share <= 1 for share in evaluation["attacks"].values())
        assert evaluation["attacks"].keys() == evaluation["attack_errors"].keys()
        errors = *evaluation["attack_errors"].values(), evaluation["retrieval_top1_error"]
        assert all(0 <= error < 0.5 for error in errors)
        assert 0 <= evaluation["retrieval_top1"] <= evaluation["retrieval_top5"] <= 1
        nats, error = (evaluation[f"token_information_{name}"] for name in ("nats", "error"))
        assert -3 * error <= nats <= found["token_entropy_nats"]
    share, recovered = found["kinds"]["all"]
    assert share == 1 and recovered == max(found["trained"]["attacks"].values())
    assert len(found["examples"]) == 4 and all(a and b for a, b in found["examples"])
    assert found["seeds"] == [0] and found["tokens"] > 0 and found["test_passages"] == 8
    assert 0 <= found["validation_top1"] <= 1 and found["validation_top1_error"] >= 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "own passage found first" in report and "token information" in report
    assert "test split (8 passages)" in report and "On the validation split" in report


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "how",
    [
        ("--objective", "tokens"),
        ("--objective", "passages", "--estimator", "logsumexp", "--pairing", "leave_one_out"),
        ("--objective", "std", "--utility", "cosine"),
    ],
)
def test_resume_gives_the_same_curve(run, tmp_path, how):
    assert run(tmp_path / "whole", *how)[0] == 0
    assert run(tmp_path / "parts", *how, "--steps", 2)[0] == 0
    assert run(tmp_path / "parts", "--resume", "--steps", 4, defaults=False)[0] == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    whole, parts = (checkpoint.read(tmp_path / name) for name in ("whole", "parts"))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    for name in ("trained", "baselines", "floors"):
        found = [
            json.loads((tmp_path / folder / "evaluation.json").read_text())[name]
            for folder in ("whole", "parts")
        ]
        assert found[0] == found[1]


@pytest.mark.usefixtures("no_plots")
def test_rows_after_the_last_checkpoint_are_replaced(run, tmp_path):
    assert run(tmp_path / "out", "--steps", 2)[0] == 0
    with (tmp_path / "out" / "metrics.csv").open("a") as file:
        file.write("3,9,9,9,9,9,9,,,9\n4,9,")
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


@pytest.mark.usefixtures("no_plots")
def test_the_validation_split_is_watched(run, tmp_path):
    """Every fifth step; the same numbers in a resumed run."""
    from fused_mi.train import metrics

    assert run(tmp_path / "whole", "--steps", 11)[0] == 0
    assert run(tmp_path / "parts", "--steps", 7)[0] == 0
    assert run(tmp_path / "parts", "--resume", "--steps", 11, defaults=False)[0] == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    rows = metrics.read(tmp_path / "whole")
    watched = [row for row in rows if "validation_found" in row]
    assert [row["step"] for row in watched] == [5, 10]
    assert all(0 <= row["validation_found"] <= 1 for row in watched)
    assert all(0 < row["validation_information"] < 10 for row in watched)


@pytest.mark.usefixtures("no_plots")
def test_ctrl_c_saves_and_resume_finishes(run, tmp_path, model, corpus):
    command = [sys.executable, "-m", "fused_mi", "train", "--output", str(tmp_path / "out")]
    command += ["--model", str(model), "--text", str(corpus), "--batch-size", "8"]
    command += ["--seq-len", "12", "--steps", "100000", "--eval-passages", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
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


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "option", [("--max-std", "1e39"), ("--lr", "1e30"), ("--objective", "std", "--lr", "1e30")]
)
def test_a_run_that_is_not_finite_stops(run, tmp_path, option):
    """With one line, at that step; what was saved before is kept, and nothing is reported."""
    out = tmp_path / "out"
    code, lines = run(out, *option, "--steps", 9, "--save-every", 1)
    assert code == 1
    assert "step " in lines[-1] and "Traceback" not in "".join(lines)
    assert not (out / "report.md").exists() and not (out / "evaluation.json").exists()
    if (out / "checkpoint.safetensors").exists():
        saved = checkpoint.read(out)
        assert all(bool(t.isfinite().all()) for t in saved.tensors.values())
        assert len(curve(out)) == saved.step


@pytest.mark.usefixtures("no_plots")
def test_without_a_terminal_some_steps_have_a_line(run, tmp_path):
    code, lines = run(tmp_path / "out", "--steps", 30)
    steps = [line for line in lines if line.startswith("step ")]
    assert code == 0 and [s.split(":")[0] for s in steps] == [
        f"step {n}/30" for n in range(3, 31, 3)
    ]
    assert all("loss" in line and "found" in line for line in steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert checkpoint.read(tmp_path / "out").config.device == device


def test_version_and_help_without_a_command(capsys):
    import fused_mi
    from fused_mi.train.cli import app

    for arguments, said in ((["--version"], fused_mi.__version__), ([], "train")):
        with pytest.raises(SystemExit) as stop:
            app(arguments)
        assert stop.value.code == 0
        assert said in capsys.readouterr().out


def test_help_names_the_defaults(capsys):
    from fused_mi.train.cli import app

    with pytest.raises(SystemExit):
        app(["train", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "[default: 0.005]" in said and "[default: by the objective]" in said
