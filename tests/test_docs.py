"""The pages of docs/: what they say runs, all of them are on the site, and links lead somewhere."""

import re
from pathlib import Path

import fused_mi
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RUN = ("README.md", "docs/tutorial.md", "docs/token_information.md")
_SKIPPED = {"build", "dist", "runs", "node_modules"}


def texts(*suffixes):
    """Tracked kinds of files, without what is installed or built."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") or part in _SKIPPED for part in parts)
        if path.suffix in suffixes and not hidden and path.is_file():
            yield path


def site():
    """The navigation, as pages by title and file; tags of Python are not for the safe loader."""
    return re.findall(r"^ +- (?:[^:\n]+: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)


@pytest.mark.parametrize("page", RUN)
def test_code_of_the_pages_runs(page):
    found = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    assert found
    known: dict = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for code in found:
            exec(compile(code, page, "exec"), known)
    values = [v for v in known.values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert len(values) > 3
    assert all(torch.isfinite(v).all() for name, v in known.items() if name in ("loss", "value"))
    if page == "docs/tutorial.md":
        assert known["error"] > 0 and len(known["history"]) == 20


def test_every_page_is_on_the_site():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    listed = site()
    assert len(listed) == len(set(listed))
    assert pages <= set(listed), pages - set(listed)


def test_every_public_name_is_on_the_api_page():
    shown = set(re.findall(r"^::: fused_mi\.(\w+)$", (DOCS / "api.md").read_text(), re.M))
    assert shown == set(fused_mi.__all__) - {"__version__"}


def test_links_between_files_lead_somewhere():
    checked = 0
    for path in texts(".md"):
        text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", path.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text):
            if "://" not in target:
                checked += 1
                assert (path.parent / target).exists(), f"{path}: {target}"
    assert checked > 50


def test_nobody_is_told_to_install_a_name_that_is_not_ours():
    asked = re.compile(r"pip[3 ]+(install|download)\s[^\n`]*(?<![\w./])['\"]?fused[-_]mi\b(?!-)")
    for path in texts(".py", ".md", ".toml", ".yml", ".cff", ""):
        if path.resolve() != Path(__file__).resolve():
            for line in path.read_text(errors="replace").splitlines():
                assert not asked.search(line), f"{path}: {line.strip()}"
    assert asked.search("pip install 'fused-mi[train]'") and asked.search("pip install fused_mi")
    assert not asked.search("pip install '.[train]'       # `fused-mi train`")


def test_docs_stay_out_of_the_training_example():
    text = (ROOT / "pyproject.toml").read_text()
    (train,) = re.findall(r"^train = \[(.*?)\]$", text, re.M | re.S)
    (docs,) = re.findall(r"^docs = \[(.*?)\]$", text, re.M | re.S)
    assert "mkdocs-material" in docs and "accelerate" in train
    assert not re.search("mkdocs|auditwheel|latex2mathml", train)


def test_versions_agree():
    said = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {fused_mi.__version__}\n" in said
    from fused_mi.train.checkpoint import FORMAT

    assert f"`{FORMAT}`" in (DOCS / "versions.md").read_text()
