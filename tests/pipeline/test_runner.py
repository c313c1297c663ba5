"""One small run in this process, then what a second one does with it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from families import tiny_family
from small_run import make_small, small_recipe
from transformers import LlamaConfig

from toolkit.cuts.plan import Plan
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import plan_stages, run
from toolkit.recipe.schema import Recipe
from toolkit.runtime import distributed
from toolkit.runtime.errors import PollardError

STAGES = [
    "calibrate", "select", "prune", "evaluate/original", "evaluate/pruned", "recover", "evaluate/recovered", "report",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny original model, data files, and a finished run of `small()`."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_small(folder)
    dense = {"vocab_size": 768, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(**dense).save_pretrained(folder / "dense")
    distributed.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(small())
        yield folder
    distributed.stop()


def small(**changes: object) -> Recipe:
    trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "eval_strategy": "no"}
    finetuning = {"zero": 0, "examples": 8, "trainer": trainer}
    return small_recipe(finetuning=finetuning, evaluation={"batch_size": 3, "max_new_tokens": 4, "off_task": False}, **changes)


def done_by(recipe: Recipe, capsys: pytest.CaptureFixture[str], **options: object) -> dict[str, bool]:
    """Runs the recipe; per stage whether it was really done (else skipped)."""
    capsys.readouterr()
    run(recipe, **options)  # type: ignore[arg-type]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] and line.split()[0] in STAGES]
    return {line.split()[0]: "done already, skipped" not in line for line in lines}


def test_a_run_leaves_what_the_contract_promises(folder: Path) -> None:
    run_path = folder / "runs" / "small"
    for name in (
        "recipe.yaml", "manifest.json", "plan.json", "calibration/statistics.safetensors", "calibration/statistics.json",
        "pruned/model.safetensors", "recovered/model.safetensors", "report.html", "report.json", "alternatives.json",
        "README.md", "recovered/README.md",
        "evaluation/original.json", "evaluation/pruned.predictions.jsonl", "evaluation/recovered.json",
    ):  # fmt: skip
        assert (run_path / name).is_file(), name
    stages = RunDirectory("small").read_manifest()["stages"]
    assert list(stages) == STAGES
    for stage in stages.values():
        assert {"fingerprint", "status", "seconds", "versions", "seed", "git_commit"} <= stage.keys()
    assert not list(run_path.rglob("*.tmp"))


def test_what_is_done_is_not_done_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "runs" / "small" / "manifest.json").read_text()
    assert done_by(small(), capsys) == dict.fromkeys(STAGES, False)
    assert (folder / "runs" / "small" / "manifest.json").read_text() == before


def test_a_changed_key_redoes_from_the_first_stage_it_affects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def redone(recipe: Recipe) -> list[str]:
        return [stage for stage, done in done_by(recipe, capsys).items() if done]

    after_selection = ["select", "prune", "evaluate/pruned", "recover", "evaluate/recovered", "report"]
    assert redone(small(pruning__keep=5)) == after_selection
    assert redone(small(finetuning__examples=9, pruning__keep=5)) == ["recover", "evaluate/recovered", "report"]
    assert redone(small(evaluation__max_new_tokens=5, finetuning__examples=9, pruning__keep=5)) == [
        "evaluate/original", "evaluate/pruned", "evaluate/recovered", "report",
    ]  # fmt: skip
    assert redone(small()) == [stage for stage in STAGES if stage != "calibrate"]  # back again: nothing older is kept


# Criteria score what the pruned model will do; with as many experts per token as before, that is the same calibration.
def test_fewer_experts_per_token_are_another_calibration(folder: Path) -> None:
    def calibration(**pruning: int) -> str:
        return plan_stages(small(**{f"pruning__{key}": value for key, value in pruning.items()}))[0].fingerprint()

    same = [calibration(), calibration(keep=2), calibration(experts_per_token=2)]
    fewer = [calibration(keep=1), calibration(experts_per_token=1), calibration(keep=2, experts_per_token=1)]
    assert len(set(same)) == len(set(fewer)) == 1 and same[0] != fewer[0]


# Results do not depend on where a model is held while it answers.
def test_another_placement_redoes_nothing(folder: Path) -> None:
    there, elsewhere = ([stage.fingerprint() for stage in plan_stages(small(model=model))] for model in (
        "original", {"path": "original", "placement": "spread"},
    ))  # fmt: skip
    assert there == elsewhere


def test_fewer_experts_than_a_token_activates_go_the_whole_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run(small(name="one", pruning__keep=1), until="recover")
    out = capsys.readouterr().out
    assert "observed with 1 expert per token, as the pruned model will have" in out
    assert "8 -> 1 experts (1 per token) in each of 2 blocks" in out
    assert "every kept expert serves every token: a load-balancing loss would be constant, and is off" in out
    for checkpoint in (directory.pruned, directory.recovered):
        assert json.loads((checkpoint / "config.json").read_text())["num_experts_per_tok"] == 1


def test_a_changed_data_file_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "test.jsonl").read_text()
    (folder / "test.jsonl").write_text(text.replace("How many", "Count: how many"))
    redone = done_by(small(), capsys)
    assert [stage for stage, done in redone.items() if done] == [s for s in STAGES if s.startswith(("evaluate", "report"))]
    (folder / "test.jsonl").write_text(text)
    run(small())


def test_fresh_does_everything_again_and_until_stops(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert done_by(small(), capsys, fresh=True, until="select") == {"calibrate": True, "select": True}
    run(small())


def test_another_model_or_task_in_the_same_run_directory_is_refused(folder: Path) -> None:
    with pytest.raises(PollardError, match=r"runs/small holds a run with model original, and this recipe says elsewhere"):
        run(small(model="elsewhere"))
    with pytest.raises(PollardError, match=r"holds a run with task custom, and this recipe says gsm8k"):
        run(small(task={"name": "gsm8k", "train": "train.jsonl", "test": "test.jsonl"}))


def test_leftovers_of_a_killed_run_are_removed_and_its_stage_repeated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = RunDirectory("small")
    directory.open("original", "custom", directory.recipe.read_text(), ["prune"])  # what a run does first
    directory.begin("prune")
    (directory.path / "pruned.tmp").mkdir()
    (directory.path / "pruned.tmp" / "half").write_text("half")
    redone = done_by(small(), capsys)
    assert [stage for stage, done in redone.items() if done] == ["prune"]
    assert not (directory.path / "pruned.tmp").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pruning__keep": 9}, "pruning.keep is 9, but the model has 8 experts per block"),
        ({"pruning__experts_per_token": 3}, "experts_per_token is 3: the model activates 2 experts per token and keeps 4, so"),
        ({"model": "nowhere"}, "Cannot open the model nowhere"),
        ({"model": "dense"}, "llama has no MoE block"),
        ({"model": {"path": "original", "dtype": "bfloat16"}}, "this machine has no GPU: say model.dtype=float32 (or auto)"),
        ({"finetuning__trainer": {"learning_rat": 1}}, "Did you mean `learning_rate`?"),
        ({"task__train": "missing.jsonl"}, "Cannot read missing.jsonl"),
        ({"task__prompt": "{problem}"}, "train.jsonl, line 1: no field `problem`. Fields there: question, answer"),
    ],
)
def test_mistakes_are_told_before_the_first_stage(
    folder: Path, changes: dict, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PollardError) as error:
        run(small(name="wrong", **changes))
    assert said in str(error.value)
    assert "calibrate" not in capsys.readouterr().out


def test_groups_that_the_budget_breaks_are_told_before_the_first_stage(folder: Path) -> None:
    tiny_family("deepseek_v3").save_pretrained(folder / "grouped")
    for pruning, said in (
        ({"pruning__keep": 3}, "within 2 groups of experts of equal size. Give a multiple of 2."),
        ({"pruning__keep": 2}, "ranked by the two best of each. Keep at least 4."),
    ):
        with pytest.raises(PollardError) as error:
            run(small(name="grouped", model=str(folder / "grouped"), **pruning))
        assert said in str(error.value)
    assert not (folder / "runs" / "grouped").exists()


def test_reconstruction_is_searched_in_calibration_only_where_it_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def redone(**changes: object) -> list[str]:
        recipe = small(name="search", pruning__criterion="reconstruction", **changes)
        return [stage for stage, done in done_by(recipe, capsys, until="select").items() if done]

    run_path, both = folder / "runs" / "search", ["calibrate", "select"]
    assert redone() == both
    plan = Plan.load(run_path / "plan.json")
    assert (plan.criterion, plan.mode, plan.keep) == ("reconstruction", "layerwise", 4)
    assert redone(pruning__keep=3) == ["select"]  # one layerwise search serves every keep
    assert redone(pruning__mode="progressive") == both
    assert Plan.load(run_path / "plan.json").mode == "progressive"
    assert redone(pruning__mode="progressive", pruning__keep=3) == both
    assert "reconstruction" not in json.loads((folder / "runs" / "small" / "calibration" / "statistics.json").read_text())


def test_statistics_of_another_run_are_refused(folder: Path) -> None:
    run(small(name="swapped"), until="calibrate")
    path = folder / "runs" / "swapped" / "calibration" / "statistics.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"fingerprint": "of another"}))
    with pytest.raises(PollardError, match=r"not this run's: their fingerprint is of another.* Calibrate again \(--fresh\)"):
        run(small(name="swapped"), until="select")


def test_scores_in_the_report_are_those_of_the_evaluations(folder: Path) -> None:
    run_path = folder / "runs" / "small"
    report = json.loads((run_path / "report.json").read_text())
    for role in ("original", "pruned", "recovered"):
        assert f'"score": {json.loads((run_path / "evaluation" / f"{role}.json").read_text())["score"]}' in json.dumps(report)
