"""Links and paths in the pages lead to files that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT

TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.splitlines()
FILES = [ROOT / name for name in TRACKED if (ROOT / name).is_file()]
PAGES = [path for path in FILES if path.suffix == ".md"]
HISTORY = {"CHANGELOG.md"}  # names what there was, too
# Not files here.
EXAMPLES = {
    "index/identifiers/schemes/alphabetical.py",
    "training/methods/tuning/sign_descent.py",
}
FOLDERS = "gems|index|server|training|tests|bench|deploy|docs"

pytestmark = pytest.mark.skipif(not PAGES, reason="not a checkout of the repository")


def without_code(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.MULTILINE)
    plain = [
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)).lower() for heading in headings
    ]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(file), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_the_text_exist(page: Path) -> None:
    if page.name in HISTORY:
        return
    text = without_code(page.read_text("utf-8"))
    own = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    pages = [name for name in re.findall(r"`([\w./-]+\.md)`", text) if not name.startswith("runs/")]
    missing = [name for name in own if not (ROOT / name).exists()]
    missing += [
        name
        for name in pages
        if not any((folder / name).exists() for folder in (page.parent, ROOT, ROOT / "docs"))
    ]
    assert sorted(set(missing) - EXAMPLES) == []


@pytest.mark.parametrize(
    "file",
    [path for path in FILES if path.suffix in {".py", ".yaml", ".yml", ".toml"}],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pages_that_the_code_names_exist(file: Path) -> None:
    for name in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text("utf-8")):
        assert (ROOT / name).exists(), name


def test_the_home_of_the_documents_lists_every_page() -> None:
    home = (ROOT / "docs" / "README.md").read_text("utf-8")
    listed = set(re.findall(r"\]\(([^)#\s]+\.md)\)", home))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    results = {f"results/{path.name}" for path in (ROOT / "docs" / "results").glob("*.md")}
    assert pages | results <= listed
