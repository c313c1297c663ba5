"""What is to be installed by name is this project: the name `pollard` is another one's on the package index."""

import re
import tomllib
from collections.abc import Iterator

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def mentions() -> Iterator[tuple[str, str, str]]:
    """Every `pollard…[extras]` in code, documentation and recipes: its file, the name and the extras."""
    suffixes = {".py", ".md", ".yaml", ".json", ".sh", ".toml", ".html"}
    files = [ROOT / "README.md", ROOT / "launch.sh", ROOT / "pyproject.toml"]
    files += [path for folder in ("toolkit", "docs", "recipes") for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    for path in files:
        for name, extras in re.findall(r"\b(pollard[\w-]*)\[([\w,-]+)\]", path.read_text(encoding="utf-8")):
            yield str(path), name, extras


def test_whatever_is_to_be_installed_bears_the_projects_own_name_and_an_extra_that_exists() -> None:
    found = list(mentions())
    assert len(found) >= 6 and PROJECT["name"] != "pollard"
    for path, name, extras in found:
        assert name == PROJECT["name"] and set(extras.split(",")) <= EXTRAS.keys(), path


def test_the_command_keeps_its_name() -> None:
    assert PROJECT["scripts"] == {"pollard": "toolkit.cli.main:main"}
