import pytest
from conftest import ROOT

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task

FILE = str(ROOT / "tests" / "samples" / "math_test.jsonl")


@pytest.mark.parametrize("answer", [None, "{answer}"])
def test_local_files_of_the_published_form_serve_and_their_own_solutions_are_right(answer: str | None) -> None:
    task = Task(TaskRecipe(name="math", test=FILE, answer=answer))
    examples = task.examples("test")
    assert len(examples) == 3
    assert examples[0].messages[0]["content"].endswith("then put the final answer in \\boxed{}.")
    assert all(verdict.strict for verdict in task.scorer.verdicts([(e.completion, e.gold) for e in examples]))
    golds = [example.gold for example in examples]
    others = task.scorer.verdicts(list(zip([e.completion for e in examples], golds[1:] + golds[:1], strict=True)))
    assert not any(verdict.flexible for verdict in others)
