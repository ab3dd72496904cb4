"""The code of the pages on integration runs, and what it claims holds."""

import re
from pathlib import Path

import fused_mi
import pytest
import torch
from cases import mi_inputs

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize(("page", "blocks"), [("integration.md", 2), ("stained-glass.md", 1)])
def test_code(page, blocks, capsys):
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(found) == blocks
    names: dict = {}
    for block in found:
        exec(block, names)
    if page == "integration.md":
        assert "means_tensor and stds_tensor swapped" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["integration.md", "stained-glass.md"])
def test_links(page):
    """Files are there, and so are the headings that are linked to."""
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text()):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        assert (DOCS / path).exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", (DOCS / path).read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
            assert heading in slugs, target


def averaged_over_draws(parts, **options):
    """The loss of each of `parts` parts of a batch of 16, averaged over them; mean and its standard
    error over 200 batches."""
    values = []
    for seed in range(200):
        batch = [t.chunk(parts) for t in mi_inputs(16, 1, 4, seed=seed, density=1.0)]
        of_parts = [
            fused_mi.mutual_information_sub_batch(*part, **options)
            for part in zip(*batch, strict=True)
        ]
        values.append(torch.stack(of_parts).mean())
    found = torch.stack(values)
    return found.mean().item(), found.std().item() / len(found) ** 0.5


def test_what_is_wrong_with_losses_of_parts():
    """The table of what a trainer gets that calls the loss for each part, and divides."""
    for estimator, reduction, ratio in (("jensen", "mean", 1.0), ("jensen", "sum", 0.25)):
        options = {"estimator": estimator, "reduction": reduction}
        (whole, error), (parts, noise) = (averaged_over_draws(k, **options) for k in (1, 4))
        assert abs(parts - ratio * whole) < 4 * (noise + ratio * error), reduction
        if reduction == "mean":
            assert noise > error
    options = {"estimator": "logsumexp", "reduction": "mean"}
    (whole, error), (parts, noise) = (averaged_over_draws(k, **options) for k in (1, 4))
    assert parts > whole + 5 * (noise + error)  # fewer components say less about a sample
