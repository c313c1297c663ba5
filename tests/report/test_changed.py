"""Law: what changed is shown from both sides, with the count of all and a handful to read."""

import json
from pathlib import Path

from made_up_run import evaluate_role, make_run

from toolkit.report import collect
from toolkit.report.changed import LONGEST, SHOWN


def test_lost_and_won_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", right=6)  # the original: the first 19 of 20
    found = collect(run.path)["changed"]
    assert (found["model"], found["lost"]["count"], found["won"]) == ("recovered", 13, {"count": 0, "examples": []})
    assert [example["index"] for example in found["lost"]["examples"]] == list(range(6, 6 + SHOWN))
    assert found["lost"]["examples"][0] == {"index": 6, "question": "Is 6?", "gold": "yes", "before": "yes", "after": "no"}


def test_without_recovery_it_is_the_pruned_model_that_changed(tmp_path: Path) -> None:
    found = collect(make_run(tmp_path, roles=("original", "pruned")).path)["changed"]
    assert (found["model"], found["lost"]["count"]) == ("pruned", 10)


def test_other_questions_changed_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", n=10)
    assert collect(run.path)["changed"] is None


def test_an_endless_text_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, roles=("original", "pruned"))
    path = run.evaluation / "pruned.predictions.jsonl"
    items = [json.loads(line) | {"prediction": "a" * 5_000 + "z"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    after = collect(run.path)["changed"]["lost"]["examples"][0]["after"]
    assert after.startswith("aaa") and after.endswith("z") and len(after) < LONGEST + 10 and " […] " in after
