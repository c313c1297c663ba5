"""Law: the card is read by the hub and by people, and says what was not measured."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from made_up_run import ROLES, make_cuts, make_run
from test_sweep_table import row

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.file import load_recipe
from toolkit.recipe.roles import Role
from toolkit.report import card, tabulate
from toolkit.report.card import off_task_cost
from toolkit.report.local_paths import name_of_path
from toolkit.report.measurements import HarnessRow, HarnessScore, SweepRow
from toolkit.runtime import formatting as formats


def test_the_hub_understands_the_metadata(tmp_path: Path) -> None:
    run = make_run(tmp_path, model="mistralai/Mixtral-8x7B-v0.1", task="gsm8k")
    run.pruned.mkdir()
    (run.pruned / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    report = read_run_facts(run.path)
    data = ModelCard(card(report, "me/small"), ignore_metadata_errors=False).data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("mistralai/Mixtral-8x7B-v0.1", "finetune")
    assert (data.license, data.datasets) == ("apache-2.0", ["openai/gsm8k"])
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-generation", "small")
    assert {"pollard", "moe", "pruning"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == ("openai/gsm8k", "test", "accuracy")
    assert result.metric_value == 100 * report.models["recovered"].score == 90.0


def test_the_table_holds_every_models_measures(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path, roles=(*ROLES, "control"), control=True).path)
    lines = card(report, "me/small").splitlines()
    assert "| | original | pruned | recovered | control |" in lines
    scores = " | ".join(formats.percent(found.score) for found in report.models.values())
    assert f"| Score | {scores} |" in lines
    assert lines.index("|---|---:|---:|---:|---:|") == lines.index(f"| Score | {scores} |") - 1


def test_it_says_how_to_load_it_and_how_it_was_made(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = card(read_run_facts(run.path), "me/small")
    assert 'AutoModelForCausalLM.from_pretrained("me/small"' in text and "vllm serve me/small" in text
    shown = tmp_path / "shown.yaml"
    shown.write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])  # type: ignore[index]
    assert load_recipe(shown) == load_recipe(run.recipe)


def test_what_was_not_measured_is_called_that(tmp_path: Path) -> None:
    text = card(read_run_facts(make_run(tmp_path).path), "me/small")
    assert "What it lost elsewhere: not measured." in text
    assert "licence is not known" in text


def test_what_the_sweep_measured_off_the_task_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.sweep.mkdir()
    mine = row("weighted_ean", 2, 50, off=9, criterion="weighted_ean", tokens="all", mode="layerwise")
    table = tabulate([row("original", 4, 95, off=90), mine])
    (run.sweep / "table.json").write_text(json.dumps(table.as_json()))
    run.finish("sweep", "sweep", 1.0, seed=7, ranks=1)
    text = card(read_run_facts(run.path), "me/small")
    assert "on playground/code the pruning alone takes the score from 90.0 % to 9.0 %" in text


def test_what_the_harness_measured_off_the_task_is_told(tmp_path: Path) -> None:
    scores = {Role.ORIGINAL: HarnessScore(value=0.512, error=0.013), Role.RECOVERED: HarnessScore(value=0.4, error=None)}
    harness = [HarnessRow(task="arc_easy", metric="acc", n=100, models=scores)]
    text = card(read_run_facts(make_run(tmp_path).path).model_copy(update={"harness": harness}), "me/small")
    assert "measured with lm-evaluation-harness (± one standard error):\n" in text
    assert "  - arc_easy, acc: original 0.5120 ± 0.0130, recovered 0.4000\n" in text


def test_a_model_that_skips_experts_says_which_loader_does(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    assert "skipping.json" not in card(report, "me/small")
    measured = report.models[Role.RECOVERED].model_copy(update={"skip_rate": 0.5, "experts_skipped": 0.25})
    report.models[Role.SKIPPING] = measured
    assert '`toolkit.moe.load_model("me/small")` follows it' in card(report, "me/small")


def test_it_lies_in_the_run_and_with_the_recovered_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.recovered.mkdir()
    write_report(run.path)
    text = (run.path / "README.md").read_text()
    assert text == (run.recovered / "README.md").read_text()
    assert 'from_pretrained("recovered")' in text


def test_no_path_of_the_machine_is_in_it(tmp_path: Path) -> None:
    data = tmp_path / "quite private" / "tickets.jsonl"
    data.parent.mkdir()
    data.write_text("")
    model = tmp_path / "models" / "playground" / "model"
    model.mkdir(parents=True)
    (model / "README.md").write_text("---\nbase_model: lab/theirs\n---\n")
    task = {"train": str(data), "test": str(data), "prompt": "/no_think {q}", "completion": "{a}"}
    run = make_run(tmp_path / "runs", model=str(model), task=task)
    report = read_run_facts(run.path)
    text = card(report.model_copy(update={"warnings": (f"{run.evaluation / 'pruned.json'} is left out.",)}), "recovered")
    assert str(tmp_path) not in text and "small/evaluation/pruned.json is left out" in text
    assert "Made with Pollard from `playground/model` (itself made from lab/theirs)" in text
    assert "train: tickets.jsonl" in text and "/no_think {q}" in text  # a template is no path
    assert ModelCard(text).data.base_model == "lab/theirs"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/mixtral", "mixtral"), ("/data/playground/model", "playground/model"), ("runs/a/pruned", "a/pruned"),
        ("../mixtral", "mixtral"), ("/", "/"), ("model", "model"),
    ],
)  # fmt: skip
def test_a_path_is_called_by_its_end(path: str, name: str) -> None:
    assert name_of_path(path) == name


@pytest.mark.parametrize("until", ["nothing", "calibrate", "select", "prune", "recover"])
def test_a_run_that_stopped_early_has_a_card_that_claims_nothing(tmp_path: Path, until: str) -> None:
    text = card(read_run_facts(tmp_path if until == "nothing" else make_run(tmp_path, until=until).path), "here")
    assert "Not evaluated." in text
    assert ModelCard(text).data.eval_results is None


def test_every_cut_is_named_with_its_criterion_and_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "width-pruning" not in card(read_run_facts(run.path), "me/small")
    make_cuts(run)
    text = card(read_run_facts(run.path), "me/small")
    for said in (
        "2 of 4 experts stay in each of 2 blocks, chosen by `weighted_ean`",
        "Each expert keeps 4 of its 8 channels, chosen by `energy`.",
        "2 of 3 layers stay (0, 2), chosen by `dev_loss`.", "| narrower | 2 | 2 | 4 | 1.00 M | 900.00 k |",
        "- expert-pruning", "- width-pruning", "- layer-pruning", "- 1 layer fewer costs written answers",
    ):  # fmt: skip
        assert said in text, said


def test_a_sweep_of_another_shape_says_nothing_of_this_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    report, mine = read_run_facts(run.path), {"criterion": "weighted_ean", "tokens": "all", "mode": "layerwise"}
    for cuts, found in (({}, False), ({"width": 4, "layers": 2, "width_criterion": "energy"}, True), ({"width": 4}, False)):
        cell = SweepRow.model_validate(row("weighted_ean", 2, 50, off=9, **mine).model_dump() | cuts)
        table = tabulate([row("original", 4, 95, off=90), cell])
        assert (off_task_cost(report.model_copy(update={"sweep": table})) is not None) == found
        compressed = SweepRow.model_validate(cell.model_dump() | {"compression": "2:4", "not_written": "no reader"})
        table = tabulate([row("original", 4, 95, off=90), compressed])
        assert off_task_cost(report.model_copy(update={"sweep": table})) is None
