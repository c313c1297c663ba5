"""docs/cli.md lists every verb. Called as a script, this file writes the list."""

import re

from conftest import ROOT

from toolkit.cli.verbs import VERBS

PAGE = ROOT / "docs" / "cli.md"
LIST = re.compile(r"(<!-- verbs:.*?-->\n).*?(<!-- /verbs -->)", re.DOTALL)


def listed() -> str:
    rows = "".join(f"| `{verb.name}` | {verb.purpose} | `{verb.example}` |\n" for verb in VERBS)
    return f"| verb | what it does | e.g. |\n|---|---|---|\n{rows}"


def with_list(page: str) -> str:
    return LIST.sub(lambda found: found[1] + listed() + found[2], page)


def test_the_page_lists_every_verb_as_its_help_does() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_list(page), "write the list anew: python tests/cli/test_cli_page.py"
    assert all(f"| `{verb.name}` |" in page for verb in VERBS)


if __name__ == "__main__":
    PAGE.write_text(with_list(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
