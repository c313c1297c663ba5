"""Law: report.json says what the run directory holds, and None where it holds nothing."""

import html
import json
from pathlib import Path

import pytest
from conftest import ROOT, raises
from made_up_run import BLOCKS, KEPT, RIGHT, ROLES, evaluate_role, make_full_run, make_run

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.plan import Plan
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.report.facts import ModelResult, StaleFiles
from toolkit.report.page import recipe_text


def test_report_json_holds_what_earlier_versions_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_full_run(Path())
    write_report(run.path)
    files = run.path / "report.json", ROOT / "tests" / "samples" / "report.json"
    # the order of the keys counts, too; a recipe may have more of them by now
    now, earlier = (json.loads(file.read_text()) | {"recipe": None} for file in files)
    assert now.pop("making")["finished"] == "2026-01-01T00:00:00Z"
    for entry in now["stages"].values():
        assert entry.pop("hardware").keys() == {"cpu", "cores", "gpus"}
    assert json.dumps(now, indent=1) == json.dumps(earlier, indent=1)


def test_every_measure_is_the_one_the_evaluation_wrote(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    models = read_run_facts(run.path).models
    for role in ROLES:
        written = json.loads((run.evaluation / f"{role}.json").read_text())
        told = models[role].as_json()
        assert {key: value for key, value in written.items() if key in ModelResult.model_fields} == {
            key: value for key, value in told.items() if key in written
        }
        assert (models[role].correct, models[role].n) == (RIGHT[role], 20)


def test_who_and_what_is_named(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    assert (report.name, report.model, report.task, report.seed) == ("small", "path/of/model", "playground/logic", 7)
    assert report.pruning.as_json() == {
        "keep": 2, "experts": 4, "blocks": 2, "experts_per_token": 1, "criterion": "weighted_ean", "mode": None, "tokens": "all",
        "seed": 7, "schedule": None,
    }  # fmt: skip
    assert report.recipe["pruning"]["keep"] == 2
    assert "torch" in report.versions
    assert {name: (stage["seconds"], stage["ranks"]) for name, stage in report.stages.items()}["recover"] == (2.5, 2)


def test_sizes_are_compared_with_the_original_and_speed_is_not(tmp_path: Path) -> None:
    same_size = {"parameters": 0.5, "active_parameters": 1.0, "checkpoint_bytes": 0.5}
    assert read_run_facts(make_run(tmp_path).path).ratios == {"pruned": same_size, "recovered": same_size}


def test_a_size_nobody_knows_has_no_ratio(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "original", checkpoint_bytes=None)  # a model on the hub
    assert "checkpoint_bytes" not in read_run_facts(run.path).ratios["pruned"]


def test_shares_of_a_block_are_its_counts_over_their_sum(tmp_path: Path) -> None:
    block = read_run_facts(make_run(tmp_path).path).blocks[BLOCKS[0]]
    assert block.share["all"] == [0.4, 0.4, 0.0, 0.2]
    assert block.share["prompt"] == [0.25, 0.5, 0.0, 0.25]
    assert block.kept == KEPT[0]
    assert block.kept_share == 0.8
    assert block.unobserved == [2]
    assert block.entropy_bits == pytest.approx(1.5219, abs=1e-4)


def test_training_losses_are_the_logged_ones(tmp_path: Path) -> None:
    training = read_run_facts(make_run(tmp_path).path).training
    assert training.loss == [(10, 1.5), (20, 0.5)]
    assert training.dev_loss == [(20, 0.7)]
    assert training.steps == 20


def test_a_control_is_a_fourth_model(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path, roles=(*ROLES, "control"), control=True).path)
    assert list(report.models) == [*ROLES, "control"]
    assert report.models["control"].correct == RIGHT["control"] == 20
    assert report.ratios["control"]["parameters"] == 1.0


def test_without_a_control_nothing_is_missing(tmp_path: Path) -> None:
    assert list(read_run_facts(make_run(tmp_path).path).models) == list(ROLES)


def test_a_schedule_is_told_from_the_original_to_the_last_round(tmp_path: Path) -> None:
    run = make_run(tmp_path, pruning={"schedule": [3, 2]})
    plan = Plan.load(run.plan)  # of the last round: 2 of the 3 that the first left
    run.rounds.mkdir()
    plan.with_experts({b: BlockPlan(experts=6, kept=[1, 5]) for b in plan.blocks}).save(run.rounds / "plan.json")
    report = read_run_facts(run.path)
    assert (report.pruning.experts, report.pruning.keep, report.pruning.schedule) == (6, 2, [3, 2])
    assert report.headline.startswith("2 of 6 experts, 2.0× smaller: ")
    assert report.summary.startswith("2 of 6 experts kept in each of 2 blocks, in rounds (3, 2).")


@pytest.mark.parametrize("until", ["calibrate", "select", "prune", "recover"])
def test_a_run_that_stopped_early_reports_what_there_is(tmp_path: Path, until: str) -> None:
    report = write_report(make_run(tmp_path, until=until).path)
    assert report.models == dict.fromkeys(ROLES)
    assert (report.pruning is None) == (until == "calibrate")
    assert (report.training is None) == (until != "recover")


def test_an_empty_folder_is_a_run_that_has_done_nothing(tmp_path: Path) -> None:
    report = write_report(tmp_path)
    assert report.headline == "No experts chosen yet; no model has been evaluated."
    assert report.warnings == ()


def test_a_stage_that_is_being_done_again_has_no_result(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.open("path/of/model", "playground/logic", run.recipe.read_text(), ["evaluate/pruned"])
    report = read_run_facts(run.path)
    assert report.models["pruned"] is None
    assert report.stale == [StaleFiles(parts=["evaluation/pruned.json"], why="made of what has changed since")]
    run.begin("evaluate/pruned")
    (found,) = read_run_facts(run.path).stale
    assert found.why.endswith("; it was begun again and has not finished")


def test_what_is_stale_is_named_and_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.recovered.mkdir()
    recipe = run.recipe.read_text()
    run.open("path/of/model", "playground/logic", recipe.replace("keep: 2", "keep: 3"), ["recover", "evaluate/recovered"])
    report = write_report(run.path)
    assert report.models["recovered"] is None and report.training is None
    assert report.stale == [StaleFiles(parts=["recovered/", "evaluation/recovered.json"], why="made with pruning.keep=2")]
    page = (run.path / "report.html").read_text()
    assert "Stale, and not shown here: recovered/, evaluation/recovered.json (made with pruning.keep=2)." in page
    assert 'data-fact="models/pruned/score"' in page and 'data-fact="models/recovered/' not in page
    assert "90.0" not in report.headline + report.summary  # the stale score


# YAML 1.1 has `no` and `off` as truth values, and 1e-5 as text.
def test_the_recipe_is_read_and_shown_as_it_was_written(tmp_path: Path) -> None:
    trainer = {"eval_strategy": "no", "save_strategy": "off", "learning_rate": 1e-5}
    run = make_run(tmp_path, finetuning={"trainer": trainer})
    run.recipe.write_text(dump_recipe(load_recipe(run.recipe, ["name=on", "task.stop=[yes, n, '1_000']"])))
    report = write_report(run.path)
    assert report.recipe["finetuning"]["trainer"] == trainer
    assert (report.recipe["name"], report.recipe["task"]["stop"]) == ("on", ["yes", "n", "1_000"])
    text = recipe_text(report.recipe)
    assert text and "eval_strategy: no\n" in text
    for shown in (html.unescape((run.path / name).read_text()) for name in ("report.html", "README.md")):
        assert "eval_strategy: no\n" in shown and "learning_rate: 1e-05\n" in shown
    (tmp_path / "again.yaml").write_text(text)
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(run.recipe)


def test_a_result_the_recipe_does_not_ask_for_is_left_out(tmp_path: Path) -> None:
    # it may have been made with another `keep`: the pipeline does not do it again
    report = read_run_facts(make_run(tmp_path, evaluation={"models": ["original", "pruned"]}).path)
    assert report.models["recovered"] is None
    assert "recovered.json is left out" in report.warnings[-1]


def test_files_that_were_removed_to_save_space_are_missing_facts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for file in (run.plan, run.recipe, run.training_log, run.statistics / "statistics.json"):
        file.unlink()
    report = write_report(run.path)
    assert (report.pruning, report.recipe, report.blocks, report.training.loss) == (None, None, {}, [])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.evaluation / "pruned.json").write_text('{"score": ')
    with raises("report.damaged-file", run.evaluation / "pruned.json"):
        read_run_facts(run.path)


def test_the_file_holds_what_is_returned_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    report = write_report(run.path)
    files = [run.path / "report.json", run.path / "report.html"]
    assert json.loads(files[0].read_text()) == report.as_json()
    before = [file.read_text() for file in files]
    run.finish("report", "report", 0.1)  # as the pipeline does next
    write_report(run.path)
    assert [file.read_text() for file in files] == before


def test_a_loss_that_is_not_finite_leaves_valid_json(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.training_log.write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": NaN}\n')
    report = write_report(run.path)
    assert report.training.loss == [(10, 2.0), (20, None)]
    assert "The training loss was not finite at 1 of 2 logged steps, first at step 20." in report.warnings
