"""A task in lm-evaluation-harness's YAML, with its data, and lm-eval without its own tasks."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.recipe.file import dump_values

QUESTIONS = [
    {"question": f"{word} is", "choices": ["red", "a number", "sorted last"], "label": i % 3}
    for i, word in enumerate(("olive", "seven", "acorn", "x", "tiger", "three", "b", "a longer thing"))
]


def make_task(folder: Path, name: str = "small_choice") -> None:
    """A multiple-choice task in lm-eval's YAML, with its data beside it."""
    folder.mkdir(exist_ok=True)
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    task = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "label", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(dump_values(task))


def own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's fourteen thousand tasks, which take long to read."""
    from lm_eval.tasks import TaskManager

    made = TaskManager.__init__

    def small(self: Any, include_path: Any = None, include_defaults: bool = True) -> None:
        made(self, include_path=include_path, include_defaults=False)

    monkeypatch.setattr(TaskManager, "__init__", small)
