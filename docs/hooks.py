"""What mkdocs does to the pages: links into the repository, and the commands, out of the code.

A page links to `../recipes/math.yaml` as it does on GitHub; the site holds docs/ alone, so there the path itself is shown.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

from toolkit.cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")
COMMANDS = "<!-- the site has every verb's help here -->"
NARROW = "100"  # columns of a help text


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    def path_of(link: re.Match[str]) -> str:
        label, path = link[1].strip("`"), link[2]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_path} links to {path}, which is not there")
        return f"`{path}`" if label in path else f"{label} (`{path}`)"

    return OUTSIDE.sub(path_of, markdown).replace(COMMANDS, commands())


def commands() -> str:
    """Every verb: what it does, an example, its arguments."""
    os.environ["COLUMNS"] = NARROW
    parts = []
    for verb in VERBS:
        parser = argparse.ArgumentParser(prog=f"pollard {verb.name}")
        verb.add_arguments(parser)
        usage = parser.format_help().strip()
        parts.append(f"### pollard {verb.name}\n\n{verb.description}\n\n    {verb.example}\n\n```text\n{usage}\n```\n")
    return "\n".join(parts)
