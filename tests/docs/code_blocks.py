"""The code blocks of README and docs: where they stand, what they are, and what they need that a test has not.

A block is fenced, or indented by four spaces outside a list. What an indented one is, its first line shows. A line before
a block may say more: `<!-- needs: gpu -->` (or network, or login) that no test runs it; `<!-- needs: time -->` that it takes
minutes or hours, so that tests/benchmarks runs it with small sizes instead; `<!-- printed -->` that the commands
above it print this, with other numbers.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"./launch.sh", "pollard", "python", "deepspeed", "sbatch", "pip", "git", "mkdocs", "vllm", "torchrun", "curl"}
MARK = re.compile(r"<!-- (?:needs: )?(gpu|network|time|printed) -->")
KINDS = {"bash": "command", "sh": "command", "console": "command", "yaml": "yaml", "python": "python", "text": "text", "": "text"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str  # command, python, yaml, or text: output, files, formulas
    text: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments and without variables set before it."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines]
        return [without_variables(words) for words in found if words]

    @property
    def fragments(self) -> list[str]:
        """Of every line the longest part without numbers: what another run prints, too."""
        parts = [re.split(r"[\d…─]+|  +", same_words(line)) for line in self.text.splitlines()]
        longest = [max((part.strip(" −+:;,.%") for part in line), key=len) for line in parts]
        return [part for part in longest if len(part) > 3]


def same_words(text: str) -> str:
    """One rank or several, one blank or several: it is the same line."""
    return re.sub(r"\branks\b", "rank", text)


def without_variables(words: list[str]) -> list[str]:
    first = next((n for n, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return words[first:]


def kind_of(text: str) -> str:
    """What an indented block is."""
    first = next(iter(text.splitlines()), "")
    words = without_variables(first.split())
    if words and (words[0] in PROGRAMS or words[0].endswith((".sh", ".py"))):
        return "command"
    if re.match(r"(import|from) \w", first):
        return "python"
    return "yaml" if re.match(r"[a-z_]+:( |$)", first) else "text"


def blocks_of(page: Path) -> list[Block]:
    name = str(page.relative_to(ROOT))
    lines = page.read_text(encoding="utf-8").splitlines()
    found, marked, n = [], "", 0
    before = ""  # the last line that is neither empty nor a mark
    while n < len(lines):
        line, start = lines[n], n
        if mark := MARK.match(line):
            marked = mark[1]
        elif fence := re.match(r"( *)```(\w*)", line):
            n += 1
            while lines[n].strip() != "```":
                n += 1
            text = "\n".join(line.removeprefix(fence[1]) for line in lines[start + 1 : n]) + "\n"
            found.append(Block(name, start + 1, KINDS.get(fence[2], "text"), text, marked))
            marked, before = "", "```"
        elif line.startswith("    ") and not re.match(r" *[-*] |  |\d+\.|:::", before):
            while n < len(lines) and (lines[n].startswith("    ") or not lines[n]):
                n += 1
            text = "\n".join(line[4:] for line in lines[start:n]).rstrip() + "\n"
            found.append(Block(name, start + 1, kind_of(text), text, marked))
            marked, before = "", ""
            continue
        elif line.strip():
            marked, before = "", line
        n += 1
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]
