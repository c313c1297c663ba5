"""Law: every criterion that the statistics can serve is asked, for the plan of this run and no other."""

import json
from pathlib import Path

from made_up_run import make_large, make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.stages.report import write_alternatives


def test_every_criterion_that_the_statistics_serve_is_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert read_run_facts(run.path).criteria is None  # nobody asked yet
    write_alternatives(run)
    assert list(read_run_facts(run.path).criteria.mean) == ["random", "frequency"]  # of these nothing but counts was observed
    make_large(run)
    write_alternatives(run)
    found = read_run_facts(run.path).criteria
    assert list(found.mean) == [
        "random",
        "frequency",
        "gate_weight",
        "ean",
        "weighted_ean",
        "reap",
        "max_activation",
        "mean_activation",
    ]
    assert found.mean["frequency"] == 1.0 and 0.4 < found.mean["random"] < 0.6 == found.by_chance + 0.1


def test_what_was_asked_for_another_plan_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_alternatives(run)
    facts = json.loads(run.alternatives.read_text())
    run.alternatives.write_text(json.dumps(facts | {"fingerprint": "another"}))
    assert read_run_facts(run.path).criteria is None


def test_without_a_plan_nothing_is_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path, until="calibrate")
    write_alternatives(run)
    assert not run.alternatives.exists()
