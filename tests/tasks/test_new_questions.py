"""Laws of new questions: what a model is shown is what it will be asked, up to where the user speaks; that is read back."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import SHAPES, tokenizer_of
from conftest import PLAYGROUND, raises

from toolkit.moe import load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import QuestionForm, Task, prompt_text
from toolkit.tasks.new_questions import text_of

COUNTING = {"prompt": "{q}\nThink, then say #### and the number.", "completion": "{a}", "scorer": "numeric"}
ROWS = [{"q": f"Tom has {n} pens and finds one. How many pens has Tom?", "a": f"#### {n + 1}", "s": str(n)} for n in range(12)]


def task_of(folder: Path, rows: list[dict[str, Any]] | None = None, **keys: Any) -> Task:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    return Task(TaskRecipe.model_validate({"train": str(path), "test": str(path)} | keys))


def form_of(task: Task, tokenizer: Any = None) -> QuestionForm:
    return QuestionForm(task, tokenizer or load_tokenizer(str(PLAYGROUND / "model")), task.examples("train"))


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "speakers"])
def test_a_new_question_stands_where_the_next_one_of_a_conversation_would(shape: str, special: bool, tmp_path: Path) -> None:
    task, tokenizer = task_of(tmp_path, **COUNTING), tokenizer_of(SHAPES[shape], special=special)
    form, examples = form_of(task, tokenizer), task.examples("train")
    new = text_of(examples[5])
    shown = str(tokenizer.decode(form.opening(examples[:2]).prompt))
    asked = prompt_text(tokenizer, form._asked(new, examples[:2]))
    assert asked.startswith(shown) and asked[len(shown) :].lstrip(" ").startswith(new)
    assert text_of(examples[0]) in shown and examples[1].completion in shown
    found = form.read(asked[len(shown) :], begun="")
    assert found is not None and found.messages == examples[5].messages
    assert (found.completion, found.gold, found.plain) == ("", "", examples[5].plain)


# An empty line is all that this template writes behind the user, and may stand in a question as well.
def test_a_template_without_a_mark_behind_the_user_is_refused(tmp_path: Path) -> None:
    with raises("questions.template", "nothing behind"):
        form_of(task_of(tmp_path, **COUNTING), tokenizer_of(SHAPES["speakers"]))


def test_plain_questions_end_with_the_fixed_words_of_the_template_or_the_line(tmp_path: Path) -> None:
    form = form_of(task := task_of(tmp_path, **COUNTING, chat=False))
    examples = task.examples("train")
    shown = "".join(f"{text_of(e)}\n{e.completion}\n\n" for e in examples[:2])
    assert form.tokenizer.decode(form.opening(examples[:2]).prompt) == shown
    new = "Ann has 5 cups.\nShe drops 2. How many?\nThink, then say #### and the number."
    found = form.read(f"{new}\n#### 3\n\nBen has", "")
    assert found is not None and text_of(found) == new and found.plain
    assert form.read("Ann has 5 cups.\n#### 3\n\nBen has", "") is None

    one_line = form_of(task_of(tmp_path, prompt="{q}", completion="{a}", chat=False))
    found = one_line.read("How many?\n#### 3\n\n", "")
    assert found is not None and text_of(found) == "How many?"
    assert one_line.read("How many and", "") is None  # it may have been cut


@pytest.mark.parametrize(
    "written",
    [
        "<|assistant|>",
        "  \nThink, then say #### and the number.<|assistant|>",  # the template, and nothing in its field
        "How many?<|assistant|>",  # without the template's words
        "How many?\nThink, then say #### and the number.",  # no end
        "How <|end|>many?\nThink, then say #### and the number.<|assistant|>",
    ],
)
def test_a_text_of_another_form_is_no_question(written: str, tmp_path: Path) -> None:
    assert form_of(task_of(tmp_path, **COUNTING)).read(written, "") is None


def test_without_examples_it_goes_on_from_the_first_words_of_one(tmp_path: Path) -> None:
    form = form_of(task := task_of(tmp_path, prompt="{q}", completion="{a}"))
    opening = form.opening([], task.examples("train")[0])
    assert opening.begun.startswith("Tom has ") and len(opening.begun.split()) == 3
    assert form.tokenizer.decode(opening.prompt) == f"<|user|>{opening.begun}"
    found = form.read(" cups. How many?<|assistant|>8", opening.begun)
    assert found is not None and text_of(found) == f"{opening.begun} cups. How many?"


def test_labels_stand_in_new_questions_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": f"Food {n} was cold.", "label": "negative"} for n in range(12)]
    form = form_of(task_of(tmp_path, rows, name="classification", labels=["negative", "positive"]))
    asked = "It was fine.\nAnswer with one of: negative, positive."
    assert form.read(f"{asked}<|assistant|>", "") is not None
    assert form.read(f"{asked.replace('positive', 'happy')}<|assistant|>", "") is None


def test_a_system_prompt_that_all_share_is_that_of_new_questions(tmp_path: Path) -> None:
    task, tokenizer = task_of(tmp_path, **COUNTING, system="Be brief."), tokenizer_of(SHAPES["ChatML"])
    form, examples = form_of(task, tokenizer), task.examples("train")
    text = str(tokenizer.decode(form.opening(examples[:2]).prompt))
    assert text.startswith("<|im_start|>system\nBe brief.") and text.count("Be brief.") == 1
    found = form.read(f"{text_of(examples[3])}<|im_end|>\n", "")
    assert found is not None and found.messages == examples[3].messages


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "Hm?"} for role in roles]


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


@pytest.mark.parametrize(
    ("rows", "keys", "code", "told"),
    [
        ([{"m": turns("user", "assistant", "user", "assistant")}], {"messages": "m"}, "questions.refused", "several turns"),
        ([{"m": turns("user", "assistant"), "tools": TOOLS}], {"messages": "m"}, "questions.refused", "tools"),
        (ROWS, {**COUNTING, "system": "You are {s}."}, "questions.refused", "system prompts differ"),
        (ROWS, {**COUNTING, "scorer": "own_scorer:right", "answer": "{s}"}, "questions.refused", "own_scorer:right"),
        ([{"question": "Why?", "choices": ["a", "b"], "answer": 0}], {"name": "multiple_choice"}, "questions.refused", "letters"),
        (ROWS, {"prompt": "Now\n{q}", "completion": "{a}", "chat": False}, "questions.no-end", "task.prompt"),
    ],
)
def test_what_cannot_work_is_refused(
    rows: list, keys: dict, code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_scorer.py").write_text("def right(prediction, gold):\n    return True\n")
    task = task_of(tmp_path, rows * 12 if len(rows) == 1 else rows, **keys)
    with raises(code, told):
        form_of(task)
