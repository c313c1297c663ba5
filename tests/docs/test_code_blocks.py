"""Every code block of README and docs does what it says: commands and Python run, recipes validate.

They run as they stand, in a folder that has what they name (prepared.py), where models are tiny and recipes short. ./launch.sh is
the real one, with a set-up environment and a launcher that are stood in for; what it would launch then runs here, on one rank.
"""

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from code_blocks import PAGES, ROOT, Block, all_blocks, blocks_of, same_words
from prepared import known_names, launched, make_folder, page_folder

from toolkit.cli.main import main
from toolkit.recipe.file import load_recipe, read_values
from toolkit.recipe.schema import Recipe

UNRUN = {  # all that no test runs: what its mark says that it needs, and how it begins
    "gpu": ("benchmarks/", "python benchmarks/", "vllm serve"),
    "network": ("pollard push", "pollard export", "pip install", "pip download", "python -m zipfile", "./launch.sh"),
    "time": (
        "python benchmarks/",
        "pollard upcycle smollm2/",
        "pollard init tickets.csv",
        "pollard report tickets.yaml",
        "pollard recover recipes/smollm-mix.yaml",
        "pollard report recipes/smollm.yaml",
    ),
    "login": ("pollard push",),
}
LESS = {
    "benchmark": ["--batch-sizes=1", "--new-tokens=2", "--repeats=1"],
    "generate": ["--max-new-tokens=4"],
    "drafts": ["--questions=2"],
}  # as it were
AROUND = {"name": "a-part", "model": "data/playground/model", "task": "gsm8k"}  # what a part of a recipe stands in
BENCHMARK = re.compile(r"(?:benchmarks|tests)/\w+\.py")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_what_a_page_shows_runs(page: str, everything: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    page_folder(everything, tmp_path, runs=page != "docs/getting-started.md")  # where nothing has run yet
    monkeypatch.chdir(tmp_path)
    names, printed = known_names(), ""
    for block in blocks_of(ROOT / page):
        if block.kind == "yaml":
            check_recipe(block, tmp_path)
        elif block.mark == "printed":
            printed += same_words(capsys.readouterr().out)
            assert not (missing := [part for part in block.fragments if part not in printed]), f"{block}: no run prints {missing}"
        elif block.mark:
            check_unrun(block)
        elif block.kind == "python":
            exec(compile(block.text, str(block), "exec"), names)
        elif block.kind == "command":
            for words in block.commands:
                assert run(words, monkeypatch) == 0, f"{block}: {' '.join(words)}"


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """A command of a page; its exit status."""
    program, *rest = words
    if program == "./launch.sh":
        entry = launched(rest)
        return run(["pollard", *entry], monkeypatch) if entry else 0
    if program == "sbatch":  # what the job runs; tests/test_launch.py shows it in one
        return run(["./launch.sh", *rest[rest.index("launch.sh") + 1 :]], monkeypatch)
    assert program == "pollard", f"{program}: a page shows what no test runs; mark it, or teach this test"
    words += LESS.get(words[1], [])
    typed = "How many pens are left?\n"  # for `pollard chat`
    if "<" in words:
        typed, words = Path(words[-1]).read_text(), words[:-2]
    target = io.StringIO()
    words, written = (words[: words.index(">")], words[-1]) if ">" in words else (words, "")
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    if not written:
        return main()
    with redirect_stdout(target):
        status = main()
    Path(written).write_text(target.getvalue())
    return status


def check_recipe(block: Block, folder: Path) -> None:
    """A whole recipe is saved under its name, as the page tells; a part must fit into one; `--8<-- "file"` is that file."""
    if included := re.fullmatch(r'--8<-- "(.+)"\n', block.text):
        load_recipe(ROOT / included[1])
        return
    values = read_values(block.text) or {}
    if AROUND.keys() <= values.keys():
        path = folder / f"{values['name']}.yaml"
        path.write_text(block.text)
        load_recipe(path)
    else:
        Recipe.model_validate(AROUND | values)


def check_unrun(block: Block) -> None:
    """What can be said of a command that no test runs: the files that it names are there."""
    for words in block.commands if block.kind == "command" else []:
        for name in filter(BENCHMARK.fullmatch, words):
            assert (ROOT / name).exists(), f"{block}: {name}"
        for recipe in (word for word in words if word.startswith("recipes/")):
            load_recipe(ROOT / recipe)


def test_what_no_test_runs_is_marked_and_listed() -> None:
    for block in all_blocks():
        if block.mark not in ("", "printed"):
            assert block.kind == "command", f"{block}: marked, and no command"
            for words in block.commands:
                assert " ".join(words).startswith(UNRUN[block.mark]), f"{block} needs {block.mark}? {' '.join(words)}"


def test_every_indented_block_that_looks_like_a_command_is_one() -> None:
    """A program that code_blocks.py does not know would be taken for text, and never run."""
    for block in all_blocks():
        if block.kind == "text":
            assert not re.match(r"(\./|sudo |bash |pip |docker |python\d? |pollard )", block.text), block
