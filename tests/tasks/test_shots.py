import json
from pathlib import Path
from typing import Any

import pytest
from conftest import PLAYGROUND, raises
from transformers import AutoTokenizer

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task, encode, encode_prompt
from toolkit.tasks.task import Split


def task_of(folder: Path, lines: int = 20, **recipe: Any) -> Task:
    for split in ("train", "test"):
        rows = [{"q": f"{split} {i}?", "a": f"#### {i}"} for i in range(lines)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    return Task(TaskRecipe(prompt="{q}", completion="{a}", **(files | recipe)))


def questions(task: Task, split: Split) -> set[str]:
    return {example.messages[0]["content"] for example in task.examples(split)}


# The same for every model, whatever the seed; and what is asked must not stand solved in its own prompt.
def test_shots_are_the_same_in_every_prompt_and_set_aside_from_train(tmp_path: Path) -> None:
    task, again, none = task_of(tmp_path, shots=3), task_of(tmp_path, shots=3), task_of(tmp_path)
    splits: tuple[Split, ...] = ("train", "dev", "test")
    first = task.examples("test")[0].shots
    assert all(example.shots == first for one in (task, again) for split in splits for example in one.examples(split))
    shots = {shot.messages[0]["content"] for shot in first}
    assert len(shots) == 3 and all(shot.startswith("train") for shot in shots)
    assert questions(task, "train") == questions(none, "train") - shots
    assert questions(task, "dev") == questions(none, "dev") and not shots & questions(task, "dev")


@pytest.fixture
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PLAYGROUND / "model")


def test_they_are_turns_of_a_conversation_or_plain_text(tmp_path: Path, tokenizer: Any) -> None:
    chat = task_of(tmp_path, shots=1).examples("test")[0]
    question, answer = chat.shots[0].messages[0]["content"], chat.shots[0].completion
    seen = tokenizer.decode(encode_prompt(tokenizer, chat))
    assert seen == f"<|user|>{question}<|assistant|>{answer}<|end|><|user|>test 0?<|assistant|>"
    plain = task_of(tmp_path, shots=1, chat=False).examples("test")[0]
    assert tokenizer.decode(encode_prompt(tokenizer, plain)) == f"{question}\n{answer}\n\ntest 0?\n"
    encoded = encode(tokenizer, plain)
    assert tokenizer.decode(encoded.input_ids[encoded.prompt_length :]) == "#### 0<|end|>"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_systems_word_stands_once_and_first(tmp_path: Path, role: str) -> None:
    turns = [{"role": role, "content": "Brief!"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps({'m': turns})}\n" * 9)
    task = Task(TaskRecipe(train=str(path), test=str(path), messages="m", shots=2))
    roles = [turn["role"] for turn in task.examples("test")[0].turns]
    assert roles == [role, "user", "assistant", "user", "assistant", "user"]


@pytest.mark.parametrize("shots", [16, 99])
def test_more_shots_than_training_examples_are_an_error(tmp_path: Path, shots: int) -> None:
    with raises("task.shots", f"task.shots is {shots}", "16 examples"):
        task_of(tmp_path, shots=shots).examples("test")


def test_without_shots_a_test_set_needs_no_training_data(tmp_path: Path) -> None:
    assert len(task_of(tmp_path, train="nowhere.jsonl").examples("test")) == 20
