"""The site builds without a warning, is complete, and fetches nothing."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT

import toolkit
from toolkit.cli.verbs import VERBS
from toolkit.recipe.file import read_values

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING -" not in done.stdout + done.stderr
    return folder


class Fetched(HTMLParser):
    """What a browser gets to show a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if key == FETCHED.get(tag) and value]


def test_no_page_gets_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        elsewhere = [address for address in Fetched(page.read_text()).found if re.match(r"(https?:)?//", address)]
        assert not elsewhere, f"{page.name}: {elsewhere}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text()), style


def test_what_the_readme_links_to_is_there() -> None:
    """The site's own links, its anchors and its navigation mkdocs has checked."""
    for path in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).exists(), path


def test_every_verb_key_and_name_of_the_toolkit_is_in_the_reference(site: Path) -> None:
    shown = {name: re.sub(r"<[^>]+>", "", (site / f"{name}.html").read_text()) for name in ("cli", "recipe", "python")}
    assert all(f"pollard {verb.name}" in shown["cli"] for verb in VERBS)
    assert all(f"{key}:" in shown["recipe"] for key in read_values((ROOT / "recipes" / "reference.yaml").read_text()))
    assert all(f"toolkit.{name}" in shown["python"] for name in toolkit.__all__)


def test_a_list_stands_behind_an_empty_line() -> None:
    """Else the site shows it as one paragraph, where GitHub shows a list."""
    for page in (ROOT / "docs").glob("*.md"):
        lines = page.read_text().splitlines()
        for number, (above, line) in enumerate(pairwise(lines), start=2):
            begins = line.startswith("- ") and above.strip() and not above.startswith(("- ", "  "))
            assert not begins, f"{page.name}, line {number}"
