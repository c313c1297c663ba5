from conftest import ROOT

from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Task
from toolkit.tasks.svamp import worked

FILE = str(ROOT / "tests" / "samples" / "svamp_test.jsonl")


def test_local_files_of_the_published_form_serve() -> None:
    task = Task(TaskRecipe(name="svamp", test=FILE))
    first, second = task.examples("test")
    assert first.completion == "( 12 * 9 ) - 15 = 93\n#### 93" or first.completion == "( ( 12 * 9 ) - 15 ) = 93\n#### 93"
    assert second.completion == "7.5 / 3 = 2.5\n#### 2.5"
    assert first.messages[0]["content"].startswith("A hall has 12 rows with 9 chairs each. 15 chairs are broken How many")
    assert task.score("#### 2.50", second.gold) and not task.score("#### 25", second.gold)


def test_a_row_of_another_form_is_left_to_the_templates() -> None:
    assert worked({"Question": "Why?"}) == {"Question": "Why?"}
