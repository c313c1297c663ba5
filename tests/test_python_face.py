"""What README and design promise to notebooks, editors and other tools."""

import ast
import asyncio
import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from conftest import PLAYGROUND, ROOT

import toolkit
from toolkit.moe import find_blocks, load_model, load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import encode_all, padded_batches


def test_importing_the_toolkit_is_instant_and_its_names_are_all_there() -> None:
    code = (
        "import sys, toolkit; assert {*toolkit.__all__} <= {*dir(toolkit)}; "
        "assert not {'torch', 'transformers', 'pydantic', 'numpy', 'importlib.metadata'} & {*sys.modules}; "
        "[getattr(toolkit, name) for name in toolkit.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=540)


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(AttributeError, match="'calibrat'"):
        toolkit.calibrat  # type: ignore[attr-defined]  # noqa: B018


# Editors and type checkers read one list, Python another.
def test_both_lists_of_names_say_the_same() -> None:
    (typed,) = [node for node in ast.parse((ROOT / "toolkit" / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    names = {}
    for node in typed.body:
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                names[each.asname or each.name] = getattr(import_module(str(node.module)), each.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Name):
            names[node.targets[0].id] = names.pop(node.value.id)
    assert names.keys() == {*toolkit.__all__}
    assert all(getattr(toolkit, name) is found for name, found in names.items())


def test_the_package_says_that_it_is_typed() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["toolkit"]
    assert "py.typed" in data and (ROOT / "toolkit" / "py.typed").exists()


REVEALED = {
    "toolkit.calibrate(str(), [])": "toolkit.cuts.statistics.ExpertStatistics",
    "toolkit.select(statistics, criterion=lambda block: block['count'])": "toolkit.cuts.plan.Plan",
    "toolkit.select(statistics, criterion='reap')": "toolkit.cuts.plan.Plan",
    "toolkit.evaluate(str(), None, task, scorer=lambda prediction, gold: 0.5).credit": "float | None",
    "toolkit.fit": "-> toolkit.cuts.plan.Plan",
    "toolkit.load_recipe(str())": "toolkit.recipe.schema.Recipe",
    "toolkit.merge": "def (",
    "toolkit.masked": "contextlib.",
    "toolkit.FitResult.load(path).frontier": "list[toolkit.cuts.fit_result.ShapeRecord]",
}


def test_a_type_checker_sees_what_functions_give_and_which_names_there_are(tmp_path: Path) -> None:
    code = "from pathlib import Path\nimport toolkit\nstatistics: toolkit.ExpertStatistics\ntask: toolkit.Task\npath: Path\n"
    lines = [f"reveal_type({expression})" for expression in REVEALED]
    (tmp_path / "notebook.py").write_text(code + "\n".join([*lines, "toolkit.calibrat"]) + "\n")
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(tmp_path / "notebook.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540, check=False)
    *revealed, misspelt = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert len(revealed) == len(REVEALED), done.stdout + done.stderr
    for line, (expression, wanted) in zip(revealed, REVEALED.items(), strict=True):
        assert wanted in line.replace("builtins.", ""), (expression, line)
    assert 'no attribute "calibrat"' in misspelt


def test_calibrate_select_prune_and_evaluate_without_a_recipe(tiny_checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint("qwen3_moe")
    task = toolkit.Task(TaskRecipe(name="playground/sorting"))
    tokenizer = load_tokenizer(str(source))
    encoded, _ = encode_all(tokenizer, task.examples("train")[:6], 128)
    statistics = toolkit.calibrate(source, padded_batches(encoded, 3, tokenizer.pad_token_id))
    statistics.save(tmp_path / "calibration")
    plan = toolkit.select(toolkit.ExpertStatistics.load(tmp_path / "calibration"), criterion="reap", keep=4)
    plan.save(tmp_path / "plan.json")
    toolkit.prune(source, toolkit.Plan.load(tmp_path / "plan.json"), tmp_path / "pruned")
    pruned = load_model(str(tmp_path / "pruned"))
    assert all(block.expert_count == 4 for block in find_blocks(pruned))
    scores = toolkit.evaluate(pruned, tokenizer, task, examples=3, max_new_tokens=2)
    assert scores.n == 3 and 0 <= scores.interval[0] <= scores.score <= scores.interval[1] <= 1


async def work(folder: Path) -> None:
    """What a notebook's cell does: in a running event loop, and in a thread of it. Judged by math-verify, which has processes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(PLAYGROUND / "model"))
    batches = [tokenizer(["Sort these words: tiger maple fable"], return_tensors="pt")]
    statistics = toolkit.calibrate(PLAYGROUND / "model", batches)
    plan = toolkit.select(statistics, criterion=lambda block: block["count"], keep=4)
    toolkit.prune(PLAYGROUND / "model", plan, folder / "smaller")
    row = {"q": "1 + 1", "a": r"\boxed{2}"}
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 3)
    task = toolkit.Task(TaskRecipe(test=str(folder / "rows.jsonl"), prompt="{q}", completion="{a}", scorer="math"))
    for scorer in (None, lambda prediction, gold, row: len(row) / 4):
        here = toolkit.evaluate(folder / "smaller", None, task, max_new_tokens=4, scorer=scorer)
        there = await asyncio.to_thread(toolkit.evaluate, folder / "smaller", None, task, max_new_tokens=4, scorer=scorer)
        assert here.items == there.items and here.n == 3
        here.check()
    assert all("<table" in shown._repr_html_() for shown in (statistics, plan, here))


def test_all_of_it_works_in_a_running_event_loop_without_a_terminal(tmp_path: Path) -> None:
    code = f"import asyncio, pathlib, test_python_face as t; asyncio.run(t.work(pathlib.Path({str(tmp_path)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=540,
        check=False, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
