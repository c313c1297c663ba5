"""Majority votes, counted by hand."""

import pytest

from toolkit.evaluation import Answer
from toolkit.evaluation.judging import judge_samples, mean_score, vote_winners
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Example, Task


def task(scorer: str = "numeric") -> Task:
    values = {"train": "x.jsonl", "test": "x.jsonl", "prompt": "{question}", "completion": "{answer}", "scorer": scorer}
    return Task(TaskRecipe.model_validate(values))


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, len(text), True) for text in texts]


@pytest.mark.parametrize(
    ("texts", "winner"),
    [
        (["#### 70", "6 * 12 #### 72", "So: #### 72"], 1),  # what is extracted agrees, not the words
        (["#### 70", "#### 72", "#### 72.0", "#### 70", "$72 it is. #### $72"], 1),  # 3 to 2
        (["#### 70", "#### 72"], 0),  # a tie: the first
        (["#### 72", "#### 70", "#### 70", "#### 72"], 0),
        (["I do not know.", "I do not know.", "#### 72"], 2),  # nothing found is no vote
        (["no idea", "none", "none"], 1),  # but equal words agree where nothing else can
        (["", "", "#### 5"], 2),
        (["#### 5"], 0),
    ],
)
def test_the_answer_that_most_agree_with_wins(texts: list[str], winner: int) -> None:
    assert vote_winners(task(), [answers(*texts)]) == [winner]


def test_every_item_has_a_vote_of_its_own() -> None:
    assert vote_winners(task(), [answers("#### 1", "#### 2", "#### 2"), answers("#### 1", "#### 1", "#### 2")]) == [1, 0]


def test_agreement_is_mutual_where_a_scorer_is_not() -> None:
    assert vote_winners(task("contains"), [answers("no", "nothing and yes", "yes", "Yes")]) == [
        2
    ]  # neither of the others in both


# The gold answer says what a mark means: behind it stands the answer, whatever comes after, or it is a heading.
def test_votes_are_read_in_the_format_of_the_gold_answer() -> None:
    runaway = answers("#### Tom", "a\n#### Mia\n\nQuestion: who?", "b\n#### Mia")
    headings = answers("no", "#### Steps\nyes", "#### Steps\nno")
    assert vote_winners(task("exact"), [runaway, headings], ["#### Mia", "yes"]) == [1, 0]
    assert vote_winners(task(), [answers("The answer is 5", "48 + 24 = 72", "72")], ["72"]) == [1]


def test_the_items_say_who_voted_and_what_one_sample_is_worth() -> None:
    example = Example(({"role": "user", "content": "6 * 12?"},), "#### 72", "#### 72")
    samples = [answers("#### 70", "#### 72", "72 #### 72"), answers("#### 72", "#### 1", "#### 2")]
    items = judge_samples(task(), [example, example], samples)
    assert [(item.index, item.prediction, item.correct) for item in items] == [(0, "#### 72", True), (1, "#### 72", True)]
    assert items[0].tokens == 7 + 7 + 10  # all that was generated for it
    assert [sample.correct for sample in items[0].samples] == [False, True, True]
    assert mean_score(items) == 3 / 6
