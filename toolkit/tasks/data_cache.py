"""The data that a run reads: each task is built once, each file read once, however many stages ask for it."""

from typing import Any

from toolkit.recipe.data import DataRecipe, TaskRecipe
from toolkit.tasks.sources import fingerprint_of_data, read_texts
from toolkit.tasks.task import Stored, Task


class DataCache:
    """Tasks, plain texts and what identifies them, as they are at the first question for them. What cannot be read is asked
    for again: errors are not kept."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._texts: dict[str, list[str]] = {}
        self._fingerprints: dict[tuple[str, str], Any] = {}

    def task(self, recipe: TaskRecipe) -> Task:
        """Raises PollardError as `Task` does."""
        key = recipe.model_dump_json()
        if key not in self._tasks:
            self._tasks[key] = Task(recipe)
        return self._tasks[key]

    def texts(self, path: str) -> list[str]:
        """The pieces of a file of plain text. Raises PollardError as `read_texts` does."""
        if path not in self._texts:
            self._texts[path] = read_texts(path)
        return self._texts[path]

    def task_fingerprint(self, recipe: TaskRecipe, split: Stored) -> Any:
        """What identifies the data of a task's split (`Task.fingerprint`)."""
        key = (recipe.model_dump_json(), split)
        if key not in self._fingerprints:
            self._fingerprints[key] = self.task(recipe).fingerprint(split)
        return self._fingerprints[key]

    def source_fingerprint(self, source: DataRecipe, own_task: TaskRecipe) -> Any:
        """What identifies the training data of one source of a mix; one that names no data of its own has that of `own_task`."""
        if not source.text:
            return self.task_fingerprint(source.task or own_task, "train")
        key = ("text", source.text)
        if key not in self._fingerprints:
            self._fingerprints[key] = fingerprint_of_data(source.text)
        return self._fingerprints[key]
