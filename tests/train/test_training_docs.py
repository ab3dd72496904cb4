"""What docs/training.md says of a trained layer: each line of its code, on that of a tiny run."""

import re

import pytest
import torch
from processes import ROOT

PAGE = ROOT / "docs" / "training.md"


def blocks(title):
    """The Python code below a heading of the page, up to the next one."""
    section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.usefixtures("no_plots")
def test_how_to_use_a_trained_layer(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path / "runs" / "001", "--steps", 1)[0] == 0
    known: dict = {}
    codes = blocks("How to use a trained layer")
    assert len(codes) >= 4
    texts = "\n".join(codes).replace("What is a context manager?", "ba bon lu fen")
    exec(compile(texts, str(PAGE), "exec"), known)
    x, y, layer = known["x"], known["y"], known["layer"]
    assert y.shape == x.shape and not torch.equal(y, x)
    special = known["special"]
    assert special.any() and torch.equal(y[special], x[special])
    assert torch.equal(known["first"], known["second"])
    torch.testing.assert_close(known["found"].norm(dim=-1), torch.ones(1))
    for other in (known["again"], known["exported"]):
        torch.manual_seed(3)
        want = layer(x)
        torch.manual_seed(3)
        assert all(torch.equal(a, b) for a, b in zip(want, other(x), strict=True))
    mixed = known["exported"](torch.randn(3, 7, x.shape[-1]))
    assert [t.shape for t in mixed] == [(3, 7, x.shape[-1])] * 3
