"""Law: the confusion matrix holds every answer once, its diagonal is the score, and only answers that are labels have one."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from made_up_run import evaluate_role, make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.recipe.roles import Role
from toolkit.report import render
from toolkit.report.answer import Answer
from toolkit.report.class_results import EACH, FEW, ClassFacts, class_facts
from toolkit.runtime.intervals import wilson

TASK = {"train": "a.jsonl", "test": "b.jsonl", "prompt": "{text}", "completion": "{team}"}


def answers(*pairs: tuple[str, str], times: int = EACH) -> list[Answer]:
    """Of (gold, prediction), each so often."""
    each = [pair for pair in pairs for _ in range(times)]
    return [Answer(i, f"question {i}", gold, said, gold == said.strip().lower()) for i, (gold, said) in enumerate(each)]


def facts(found: Sequence[Answer], labels: Sequence[str] = ()) -> ClassFacts | None:
    return class_facts({Role.ORIGINAL: found}, str, lambda said, gold: said.strip().lower() == gold, labels)


def test_the_matrix_holds_every_answer_and_its_diagonal_is_the_score() -> None:
    asked = answers(("ham", "ham"), ("ham", "SPAM "), ("spam", "spam"), ("spam", "neither"), ("spam", ""))
    found = facts(asked)
    assert found is not None and found.labels == ["ham", "spam"]
    model = found.models[Role.ORIGINAL]
    assert model.counts == [[EACH, EACH, 0], [0, EACH, 2 * EACH]]
    assert sum(map(sum, model.counts)) == len(asked)
    assert sum(row[i] for i, row in enumerate(model.counts)) == sum(answer.correct for answer in asked)
    ham, spam = model.classes
    assert (ham.recall, ham.precision, ham.n, ham.answered) == (0.5, 1.0, 2 * EACH, EACH)
    assert (spam.recall, spam.precision) == (pytest.approx(1 / 3), 0.5)
    assert spam.interval == wilson(EACH, 3 * EACH)
    assert ham.f1 == pytest.approx(2 / 3) and model.macro_f1 == pytest.approx((2 / 3 + 0.4) / 2)


def test_a_label_that_nobody_answered_has_no_precision() -> None:
    found = facts(answers(("ham", "ham"), ("spam", "ham")))
    assert found is not None
    spam = found.models[Role.ORIGINAL].classes[1]
    assert (spam.recall, spam.precision, spam.f1) == (0.0, None, 0.0)


def test_the_tasks_own_order_of_labels_holds() -> None:
    found = facts(answers(("ham", "ham"), ("spam", "spam"), times=1), labels=("spam", "ham", "unasked"))
    assert found is not None and found.labels == ["spam", "ham"]


@pytest.mark.parametrize(
    "asked",
    [
        answers(("ham", "ham")),  # one label
        answers(("ham", "ham"), ("spam", "spam"), times=EACH - 1),  # texts that happen to repeat
        answers(*((f"label {i}", "x") for i in range(FEW + 1))),
    ],
    ids=["one", "rare", "many"],
)
def test_answers_that_are_no_labels_have_no_matrix(asked: list[Answer]) -> None:
    assert facts(asked) is None and facts([]) is None


@pytest.mark.parametrize(("task", "there"), [(TASK, True), (TASK | {"scorer": "numeric"}, False)])
def test_a_run_shows_it_where_its_scorer_compares_labels(tmp_path: Path, task: object, there: bool) -> None:
    run = make_run(tmp_path, task=task)
    for role in ("original", "pruned", "recovered"):
        lines = (run.evaluation / f"{role}.predictions.jsonl").read_text().splitlines()
        halves = [
            line.replace('"gold": "yes"', '"gold": "no"') if i % 2 and '"yes", "correct": true' not in line else line
            for i, line in enumerate(lines)
        ]
        (run.evaluation / f"{role}.predictions.jsonl").write_text("\n".join(halves) + "\n")
    report = read_run_facts(run.path)
    assert (report.classes is not None) == there
    page = render(report)
    assert ('id="classes"' in page) == there
    if report.classes:
        assert 'data-fact="classes/models/recovered/counts/0/0"' in page


def test_labels_are_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path, task=TASK)
    evaluate_role(run, "original")
    report = read_run_facts(run.path)
    evil = facts(answers(("<b>", "<b>"), ("ham", "ham")))
    page = render(report.model_copy(update={"classes": evil}))
    assert "&lt;b&gt;" in page and "<b>" not in page
