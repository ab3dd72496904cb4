"""The ablation: its search, its statistics, and what it writes, on a tiny random model."""

import json
import math
from types import SimpleNamespace

import pytest
from fused_mi.train.ablation import CURVES, FLOORS, ISOTROPIC, TOLERANCE, first_alpha, next_alpha
from processes import python


@pytest.fixture
def ablation(model, corpus, capsys):
    """Runs ``fused-mi ablation`` in this process; exit code, and the lines on stderr."""
    from fused_mi.train.cli import app

    def call(output, *more):
        base = ["ablation", "--output", str(output), "--model", str(model), "--text", str(corpus)]
        base += ["--batch-size", "8", "--seq-len", "12", "--steps", "2", "--eval-passages", "8"]
        with pytest.raises(SystemExit) as stop:
            app([*base, *map(str, more)])
        return stop.value.code, capsys.readouterr().err.strip().splitlines()

    return call


@pytest.mark.parametrize("threshold", [0.004, 0.05, 1.0, 40.0])
@pytest.mark.parametrize("start", [0.01, 0.3, 10.0])
def test_a_search_finds_an_alpha(threshold, start):
    """Of a retrieval that falls with alpha, in few rounds."""

    def retrieval(alpha):
        return 1 / (1 + (alpha / threshold) ** 1.5 / 10)

    points = {start: retrieval(start)}
    while all(abs(found - 0.93) > TOLERANCE for found in points.values()):
        alpha = next_alpha(points, 0.93)
        assert alpha is not None and len(points) < 13
        points[alpha] = retrieval(alpha)


def test_a_search_ends_where_nothing_is_to_be_found():
    points = {1.0: 1.0}
    while (alpha := next_alpha(points, 0.93)) is not None:
        points[alpha] = 1.0
        assert len(points) < 20
    assert max(points) > 100
    points = {1.0: 0.5}
    while (alpha := next_alpha(points, 0.93)) is not None:
        points[alpha] = 0.5
        assert len(points) < 20
    assert min(points) < 0.01
    assert next_alpha({1.0: 0.99, 2.0: 0.5, 4.0: 0.99}, 0.93) == pytest.approx(1.19, abs=0.01)


def test_a_seed_begins_where_others_ended():
    assert first_alpha({}, 0.93, 0.3) == 0.3
    assert first_alpha({0.3: 0.90, 0.9: 0.5}, 0.93, 1.0) == 0.3
    assert 0.1 < first_alpha({0.3: 0.90, 0.1: 0.97}, 0.93, 1.0) < 0.3


def test_intervals_are_those_of_student():
    from fused_mi.train.ablation_report import interval

    mean, half = interval([1.0, 2.0, 6.0])
    assert mean == 3 and half == pytest.approx(4.303 * math.sqrt(7 / 3), rel=1e-4)
    assert math.isnan(interval([1.0]).half) and str(interval([1.0])) == "1.000"
    # Of ten normal numbers, 95 % of the intervals hold the true mean.
    import torch

    torch.manual_seed(0)
    found = [interval(row) for row in torch.randn(4000, 10).tolist()]
    assert sum(abs(m) < h for m, h in found) / 4000 == pytest.approx(0.95, abs=0.012)


def test_the_first_line_follows_the_numbers():
    from fused_mi.train.ablation_report import Row, verdict

    def row(noise, *shares):
        layers = {
            seed: SimpleNamespace(
                test=SimpleNamespace(attacks={"a": 0.0, "b": share}, attack_errors={"a": 0, "b": 0})
            )
            for seed, share in enumerate(shares)
        }
        return Row(noise, layers, {})

    std, isotropic = row("std", 0.7, 0.72, 0.71), row("isotropic-x1", 1.0, 1.0, 1.0)
    line = verdict([row("tokens", 0.5, 0.52, 0.51), std, isotropic], 0.93)
    assert line.startswith("tokens hides most") and "under std" in line and "20.0 +- 0.0" in line
    line = verdict([row("tokens", 0.9, 0.92, 0.91), std, isotropic], 0.93)
    assert line.startswith("std hides most")
    line = verdict([row("tokens", 0.5, 0.9, 0.6), std, isotropic], 0.93)
    assert line.startswith("No objective") and "under tokens" in line
    assert verdict([row("tokens", 1.1, 1.2, 1.1), std, isotropic], 0.93).startswith("std hides")
    assert verdict([std], 0.93).startswith("Nothing to compare")
    assert "no seed" in verdict([Row("tokens", {5: std.layers[0]}, {}), std], 0.93)
    # One seed has no interval: nothing is claimed of it.
    assert verdict([row("tokens", 0.1), row("std", 0.9)], 0.93).startswith("No objective")


def test_an_ablation_keeps_its_layers(ablation, tmp_path):
    out = tmp_path / "out"
    how = "--objectives", "tokens,none", "--searches", 1, "--found", 0.5
    code, lines = ablation(out, *how, "--seeds", "0")
    assert code == 0
    kept = {path.name: path.read_bytes() for path in out.glob("*-seed0-*.json")}
    curve = [f"tokens-seed0-{alpha:g}.json" for alpha in CURVES["tokens"]]
    assert {*curve, "none-seed0-0.json"} <= kept.keys()
    assert {f"{floor.replace(' ', '-')}-seed0-0.json" for floor in FLOORS} <= kept.keys()
    assert sum(name.startswith("isotropic") for name in kept) == len(ISOTROPIC)
    assert len([line for line in lines if "own passages found" in line]) == len(kept)

    code, lines = ablation(out, *how, "--seeds", "0,1")
    assert code == 0 and not any(line.startswith("tokens-seed0") for line in lines)
    assert all((out / name).read_bytes() == data for name, data in kept.items())
    assert sorted(p.suffix for p in out.glob("ablation.*")) == [".json", ".md", ".png"]
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((out / "ablation.json").read_text())
    assert {layer["seed"] for layer in found["layers"].values()} == {0, 1}
    for noise in ("tokens", "none", "isotropic-x1"):
        reached = set(found["reached"][noise]), set(found["not_reached"].get(noise, ()))
        assert reached[0] | reached[1] == {"0", "1"} and not reached[0] & reached[1]
        for name in found["reached"][noise].values():
            assert abs(found["layers"][name]["validation_top1"] - 0.5) <= TOLERANCE
    report = (out / "ablation.md").read_text()
    assert report.splitlines()[2] == found["verdict"]
    for noise, seeds in found["not_reached"].items():
        for seed in seeds:
            assert f"- {noise.removesuffix('-x1')}, seed {seed}: not reach" in report

    code, lines = ablation(out, *how, "--seeds", "0", "--steps", 3)
    assert code == 2 and "other options" in lines[-1]
    (out / curve[0]).write_text("{}")
    code, lines = ablation(out, *how, "--seeds", "0")
    assert code == 2 and "damaged" in lines[-1] and curve[0] in lines[-1]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--objectives", "tokens,mi"], "--objectives"),
        (["--objectives", ""], "--objectives"),
        (["--seeds", "1,1"], "--seeds"),
        (["--seeds", "x"], "--seeds"),
        (["--found", "1"], "--found"),
        (["--steps", "0"], "at least 1"),
        (["--device", "nothing"], "--device nothing"),
    ],
)
def test_wrong_options_of_an_ablation(ablation, tmp_path, options, wanted):
    code, lines = ablation(tmp_path / "out", *options)
    assert code == 2 and len(lines) == 1 and wanted in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_ablation_is_for_sentence_encoders(ablation, tmp_path, causal_model):
    code, lines = ablation(tmp_path / "out", "--model", causal_model)
    assert code == 2 and len(lines) == 1 and "sentence encoders" in lines[0]
    assert not (tmp_path / "out").exists()


def test_an_ablation_takes_one_rank(ablation, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, lines = ablation(tmp_path / "out")
    assert code == 2 and len(lines) == 1 and "one rank" in lines[0]
    assert not (tmp_path / "out").exists()


def test_help_of_an_ablation_names_its_defaults():
    found = python("-m", "fused_mi", "ablation", "--help")
    said = " ".join(found.stdout.split())
    for default in ("tokens,passages,std,none", "0,1,2", "0.93", "runs/ablation"):
        assert said.count(f"[default: {default}]") == 1
