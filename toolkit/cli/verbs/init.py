"""`pollard init FILE`: a recipe for somebody's own data, with what was understood of them."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.errors import PollardError, first_of

if TYPE_CHECKING:
    from toolkit.cli.first_recipe import TokenLimits
    from toolkit.pipeline.context import RunContext
    from toolkit.tasks.recognition import Recognition
    from toolkit.tasks.sources import Lines

SMALL_MODEL = "data/playground/model"
FEW_ROWS = 100


def add_init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="?",
        help="a data file with questions and answers, texts and labels, or conversations: .jsonl, .json, .csv, .tsv, .parquet, …",
    )  # fmt: skip
    parser.add_argument("--model", help="a hub id, or a folder with a transformers checkpoint")
    parser.add_argument("--keep", help="experts of each block that stay: a share, or a number (default: 0.5)")
    parser.add_argument("--test", help="a file with test questions (default: a fifth of the questions in the data file)")
    parser.add_argument("--prompt", help='template of the question, e.g. "{question}" (default: by the names of the columns)')
    parser.add_argument("--completion", help='template of the answer, e.g. "{answer}"')
    parser.add_argument("--scorer", help="how answers are judged (default: by what the answers are; docs/tasks.md)")
    parser.add_argument(
        "--on-bad-lines", choices=("error", "skip"), default="error",
        help="rows that cannot be used: error (default) lists them and stops; skip leaves them out and says how many",
    )  # fmt: skip
    parser.add_argument("--name", help="of the recipe and its runs (default: that of the data file)")
    parser.add_argument("--to", help="the recipe to be written (default: NAME.yaml)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run_init(arguments: argparse.Namespace) -> Any:
    data = _asked(arguments.data, "a data file (.csv, .jsonl, .parquet, …)", None, "DATA", "init.no-data")
    skip = arguments.on_bad_lines == "skip"
    lines = _rows_of(data, skip)  # before anything else is asked
    model = _asked(arguments.model, "a model, as its hub id or a folder", SMALL_MODEL, "--model", "init.no-model")
    keep = _keep_of(arguments.keep or (_ask("a share of the experts to keep, or their number", "0.5") if _can_ask() else "0.5"))

    from toolkit.cli.first_recipe import recipe_text
    from toolkit.cli.verbs.planning import preview
    from toolkit.pipeline.context import RunContext
    from toolkit.recipe.file import load_recipe
    from toolkit.runtime.files import write_text
    from toolkit.tasks.recognition import recognize

    found = recognize(lines.columns, arguments.prompt, arguments.completion)
    task = found.task | ({"scorer": arguments.scorer} if arguments.scorer else {}) | ({"on_bad_lines": "skip"} if skip else {})
    name = arguments.name or _name_of(data)
    recipe = Path(arguments.to or f"{name}.yaml")
    if not recipe.absolute().parent.is_dir():
        raise PollardError(f"--to {recipe}: there is no folder {recipe.parent}.", code="cli.no-folder")
    _check_task(task, data, arguments.test)  # mistakes are told with the places that the user knows
    texts = {} if arguments.test else _halves(lines, found, recipe.with_name(name))
    _check_free([*texts, recipe], [data, arguments.test], arguments.overwrite)
    for path, text in texts.items():
        write_text(path, text)
    train, test = map(str, texts) if texts else (data, arguments.test)
    task = {key: task[key] for key in ("name",) if key in task} | {"train": train, "test": test} | task
    understood = _understood(found, len(lines.columns), split=bool(texts))
    write_text(recipe, recipe_text(recipe, name, model, task, keep, understood))
    if not arguments.json:
        _say_understood(recipe, understood, list(texts))
    run = RunContext(load_recipe(recipe))
    limits = _limits(run)  # what stands there until then is a guess: a model that cannot be opened may be named later
    write_text(recipe, recipe_text(recipe, name, model, task, keep, understood, limits))
    facts = preview(run.variant(load_recipe(recipe)), "test", examples=1, show=not arguments.json)
    if not arguments.json:
        _say_next(recipe)
    return {"recipe": recipe, "shape": found.shape, "task": task, "unused": found.unused, "notes": understood, "preview": facts}


def _can_ask() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(question: str, default: str | None) -> str:
    shown = f"{question.capitalize()} [{default}]: " if default else f"{question.capitalize()}: "
    try:
        print(shown, end="", file=sys.stderr, flush=True)  # stdout is for facts
        answer = input().strip()
    except EOFError:
        answer = ""
    return answer or default or ""


def _asked(given: str | None, question: str, default: str | None, option: str, code: str) -> str:
    """What was given, else the user's answer. Raises PollardError where there is neither."""
    answer = given or (_ask(question, default) if _can_ask() else "")
    if not answer:
        raise PollardError(f"pollard init needs {option}, {question}.", code=code)
    return answer


def _keep_of(text: str) -> int | float:
    try:
        keep = float(text) if "." in text else int(text)
    except ValueError:
        keep = 0
    if keep <= 0 or (isinstance(keep, float) and keep >= 1):
        raise PollardError(
            f"--keep {text}: give a share of the experts between 0 and 1, such as 0.5, or their number, such as 4.",
            code="init.keep",
        )
    return keep


def _rows_of(data: str, skip: bool) -> "Lines":
    """Of the file. Raises PollardError where it cannot be read, holds nothing, or has lines that are none (unless `skip`: they
    are counted aloud when the task is read)."""
    from toolkit.tasks.sources import read_files

    lines = read_files(data)
    if not lines.lines:
        raise PollardError(f"{data} is empty: there is no row in it.", code="data.empty")
    faults = [f"{place}: {row}" for place, row in lines.lines if isinstance(row, str)]
    if faults and not (skip and lines.columns):
        raise PollardError(
            f"{first_of(faults)}\n{len(faults):,} of {len(lines.lines):,} lines in {data} cannot be read. Mend them, or leave "
            "them out with --on-bad-lines skip.",
            code="init.bad-lines",
        )
    return lines


def _name_of(data: str) -> str:
    """ "tickets" of data/tickets.train.csv.gz"""
    stem = re.sub(r"[._-]train(ing)?$", "", Path(data).name.split(".csv")[0].split(".json")[0].rsplit(".", 1)[0], flags=re.I)
    return re.sub(r"[^\w.-]+", "-", stem).strip(".-") or "mine"


def _check_task(task: Mapping[str, Any], data: str, test: str | None) -> None:
    """Raises PollardError for a row that is no example, and for a gold answer that its scorer cannot judge."""
    from toolkit.recipe.data import TaskRecipe
    from toolkit.tasks.task import Task

    for file in filter(None, (data, test)):
        try:
            Task(_valid(lambda file=file: TaskRecipe(**task, train=file, test=file))).examples("test")  # type: ignore[misc]
        except PollardError as error:  # it names the key of a recipe
            raise PollardError(str(error).replace("`task.on_bad_lines: skip`", "--on-bad-lines skip"), code=error.code) from None


def _valid(make: Callable[[], Any]) -> Any:
    from pydantic import ValidationError

    try:
        return make()
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()]
        raise PollardError(first_of(faults), code="init.task") from None


def _halves(lines: "Lines", found: "Recognition", stem: Path) -> dict[Path, str]:
    """The text of the files for training and test, of which none is written yet."""
    from toolkit.tasks.file_halves import json_lines, split_by_question

    halves = split_by_question(lines.columns, found.question)
    return {
        stem.with_name(f"{stem.name}.{part}.jsonl"): json_lines(rows)
        for part, rows in zip(("train", "test"), halves, strict=True)
    }


def _check_free(paths: Sequence[Path], given: Sequence[str | None], overwrite: bool) -> None:
    """Raises PollardError for files to be written that are there, and always for those that are to be read."""
    read = {Path(source).resolve() for source in given if source}
    if own := [str(path) for path in paths if path.resolve() in read]:
        raise PollardError(
            f"{own[0]} would be written, and is your data: give the new files another --name.", code="init.own-data"
        )
    if there := [str(path) for path in paths if path.exists() and not overwrite]:
        raise PollardError(
            f"{', '.join(there)} {'is' if len(there) == 1 else 'are'} there: name others with --name or --to, or replace them "
            "with --overwrite.",
            code="init.there",
        )


def _understood(found: "Recognition", rows: int, split: bool) -> list[str]:
    scorer = f", judged by {found.task['scorer']}" if "scorer" in found.task else ""
    lines = [f"{found.shape}, {rows:,} rows{scorer}"]
    if split:
        lines.append("A fifth of the different questions is the test; none of them is trained on")
    if found.unused:
        lines.append(f"Not used: {', '.join(found.unused)}")
    if rows < FEW_ROWS:
        lines.append(f"{rows} rows are few: the test will hardly tell two models apart (docs/your-data.md)")
    return lines + found.notes


def _say_understood(recipe: Path, understood: Sequence[str], new: Sequence[Path]) -> None:
    from rich.markup import escape

    from toolkit.runtime.distributed import say

    say(f"[bold]{escape(str(recipe))}[/]: {escape(understood[0])}")
    for line in (*understood[1:], *(f"{path} is new" for path in new)):
        say(f"  {escape(line)}")
    say()


def _limits(run: "RunContext") -> "TokenLimits":
    """By the tokenizer of the recipe's model. Raises PollardError where it cannot be had."""
    from toolkit.cli.first_recipe import limits_for
    from toolkit.tasks.token_checks import lengths_of

    lengths = [lengths_of(run.tokenizer, run.task.examples(split)) for split in ("train", "dev", "test")]
    whole = [length for each in lengths for length in each.whole]
    prompts = [length for each in lengths for length in each.prompts]
    return limits_for(whole, [all_ - prompt for all_, prompt in zip(whole, prompts, strict=True)])


def _say_next(recipe: Path) -> None:
    from rich.markup import escape

    from toolkit.runtime.distributed import say
    from toolkit.runtime.typed_command import program_path

    name = escape(os.path.relpath(recipe))
    say("[bold]Next[/]")
    for verb, what in (("estimate", "what it needs, before anything runs"), ("report", "the whole way")):
        say(f"  {escape(program_path('pollard'))} {verb:<8} {name}  {what}")


INIT = Verb(
    "init",
    "a recipe for your own data file: columns, scorer and lengths are recognised, and shown",
    "pollard init tickets.csv --model Qwen/Qwen3-30B-A3B --keep 0.25",
    run_init,
    add_init_arguments,
)
