"""Does the model's chat template show all that the data says? Asked of every task that a run reads, before it starts."""

from collections.abc import Callable
from functools import partial

from transformers import PreTrainedTokenizerBase

from toolkit.recipe import Recipe
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Split, Task, check_rendering


def rendering_checks(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> list[Callable[[], list[str]]]:
    """Each returns sentences about one split of a task, or raises PollardError as `check_rendering` does.

    Raises PollardError where the recipe's own task makes no sense.
    """
    task = Task(recipe.task)  # one for all its splits: its files are read once
    own: dict[Split, None] = dict.fromkeys(["train", "dev", recipe.evaluation.split])
    others = [*(recipe.calibration.data or ()), *(recipe.finetuning.data or ())]
    tasks = {source.task.model_dump_json(): source.task for source in others if source.task and source.task != recipe.task}
    return [
        *(partial(_notes, tokenizer, task, split) for split in own),
        *(partial(_notes_of, tokenizer, other) for other in tasks.values()),
    ]


def _notes(tokenizer: PreTrainedTokenizerBase, task: Task, split: Split) -> list[str]:
    return [f"{task.name}, {split}: {note}." for note in check_rendering(tokenizer, task.examples(split))]


def _notes_of(tokenizer: PreTrainedTokenizerBase, other: TaskRecipe) -> list[str]:
    return _notes(tokenizer, Task(other), "train")
