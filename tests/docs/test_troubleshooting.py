"""The troubleshooting page quotes messages that the code has."""

import ast
import re
from pathlib import Path

from conftest import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = [*(ROOT / "toolkit").rglob("*.py")]
GAP = "…"  # names and numbers


def texts_in(path: Path) -> list[str]:
    """The texts of a file; of an f-string all of it, with gaps where it is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"\{[^}]*\}", GAP, node.value))
    return found


def quoted() -> list[str]:
    headings = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")]
    return [message for line in headings for message in re.findall(r"`([^`]+)`", line)]


def test_every_message_quoted_is_one_of_the_code() -> None:
    texts = [text for path in SOURCES for text in texts_in(path)]
    assert len(quoted()) > 50
    for message in quoted():
        pattern = re.compile(".*".join(re.escape(part) for part in message.strip(GAP + " ").split(GAP)))
        assert any(map(pattern.search, texts)), f"no message of the code says: {message}"


def test_no_message_is_quoted_twice() -> None:
    assert len(set(quoted())) == len(quoted())
