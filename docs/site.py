"""What the site needs that GitHub does by itself: pages and links outside of this folder, and
formulas, which become MathML, so that a page needs no script."""

import os
import re
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ELSEWHERE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ELSEWHERE |= {"csrc/README.md": "csrc.md", "benchmarks/README.md": "benchmarks_folder.md"}
BACK = {page: file for file, page in ELSEWHERE.items()}
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![\\$\w])\$(?=\S)([^$\n]*(?:\n[^$\n]+)?)(?<=\S)\$(?!\d)")


def on_files(files, config):
    for file, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown, page, config, files):
    source = BACK.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = _CODE.split(markdown)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            linked = _LINK.sub(lambda m: _link(m, source, page.file.src_uri, config), part)
            displayed = _DISPLAY.sub(lambda m: _formula(m[1], "block"), linked)
            parts[i] = _INLINE.sub(lambda m: _formula(m[1], "inline"), displayed)
        elif part.startswith("```math"):
            parts[i] = _formula(part.removeprefix("```math").removesuffix("```"), "block")
    return "".join(parts)


def _formula(tex, display):
    made = convert(" ".join(tex.split()), display=display)
    return made if display == "inline" else f"\n<div class='formula'>{made}</div>\n"


def _link(match, source, page, config):
    """The link of a file as one of the site; of a file that is no page, to the repository or, where
    that has no address, none."""
    picture, text, target = match.groups()
    path, _, anchor = target.partition("#")
    if "://" in target or target.startswith("mailto:") or not path:
        return match[0]
    file = os.path.normpath(PurePosixPath(source).parent / path)
    at = ELSEWHERE.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
    if at is not None and (at in BACK or at.endswith((".md", ".png"))):
        here = os.path.relpath(at, PurePosixPath(page).parent)
        return f"{picture}[{text}]({here}{'#' * bool(anchor)}{anchor})"
    if not (ROOT / file).exists():
        return match[0]  # a broken link: mkdocs says so
    if config.repo_url:
        return f"{picture}[{text}]({config.repo_url.rstrip('/')}/blob/main/{file})"
    return text if text.strip("`") == file else f"{text} (`{file}`)"
