"""A tiny random model and a small task in the working folder, and recipes for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import PLAYGROUND, tiny_model

from toolkit.pipeline.runner import plan_stages, run
from toolkit.recipe.schema import Recipe
from toolkit.runtime import distributed


def make_small(folder: Path) -> None:
    """`original/`, `train.jsonl` (60 lines: 48 to train on, 12 dev) and `test.jsonl`."""
    tiny_model("mixtral", vocab_size=768, eos_token_id=1).save_pretrained(folder / "original")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "original" / file).write_bytes((PLAYGROUND / "model" / file).read_bytes())
    for split, lines in (("train", 60), ("test", 6)):
        text = (PLAYGROUND / "arithmetic" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(text[:lines]))


TASK = {"train": "train.jsonl", "test": "test.jsonl", "prompt": "{question}", "completion": "{answer}", "scorer": "contains"}


def small_values(**changes: object) -> dict:
    """The keys of a recipe; `calibration__data=…` changes one key of a section."""
    values: dict = {
        "name": "small",
        "model": "original",
        "task": TASK,
        "calibration": {"examples": 8, "batch_size": 4},
        "pruning": {"keep": 4},
        "evaluation": {"batch_size": 3, "max_new_tokens": 4, "models": ["original", "pruned"], "off_task": False},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values.get(section, {}), name: value} if name else value
    return values


def small_recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(small_values(**changes))


@contextmanager
def small_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder as `make_small` fills it is the working folder, with the process group that a stage needs."""
    folder = factory.mktemp(name)
    make_small(folder)
    distributed.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    distributed.stop()


def redone(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Runs it; the stages that were not skipped, in their order."""
    names = [stage.name for stage in plan_stages(recipe)]
    capsys.readouterr()
    run(recipe)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] and line.split()[0] in names]
    done = {line.split()[0]: "done already, skipped" not in line for line in lines}  # the last word counts: stages are announced
    return [name for name in names if done[name]]


def kill_in_call(number: int, module: ModuleType, patch: pytest.MonkeyPatch) -> list[None]:
    """Of the calls to `module.generate`, that one is where a kill falls; those after it go on. Returns one item per call."""
    calls: list[None] = []
    real = module.generate

    def generate(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    patch.setattr(module, "generate", generate)
    return calls
