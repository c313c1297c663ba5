"""A run that skips: thresholds beside the model that it ends with, evaluated as a model of its own; the others are as without."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import make_small, small_folder, small_recipe

from toolkit.calibration import skipping_thresholds
from toolkit.moe import load_model, load_tokenizer
from toolkit.moe.expert_skipping import Skipping, is_skipping
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.runner import plan_stages, run
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Task, encode_all, padded_batches

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no"}
FINETUNING = {"zero": 0, "examples": 8, "trainer": TRAINER}
RUN = Path("runs/small")


def recipe(skipping: object = "median", **changes: object) -> Recipe:
    return small_recipe(pruning={"keep": 4, "skipping": skipping}, finetuning=FINETUNING, **changes)


def trained() -> Recipe:
    return recipe(evaluation__models=["original", "pruned", "recovered"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "skip") as folder:
        run(recipe(None))
        yield folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def stages_run(one: Recipe, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    run(one)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] and line.split()[0] in names(one)]
    done = {line.split()[0]: "done already, skipped" not in line for line in lines}
    return [stage for stage, again in done.items() if again]


def names(one: Recipe) -> list[str]:
    return [stage.name for stage in plan_stages(one)]


def measures(role: str) -> dict:
    return json.loads((RUN / "evaluation" / f"{role}.json").read_text())


def test_skipping_is_added_to_a_run_without_doing_the_rest_again(capsys: pytest.CaptureFixture[str]) -> None:
    plain = measures("pruned")
    assert stages_run(recipe(), capsys) == ["skip", "evaluate/skipping", "report"]
    assert measures("pruned") == plain and "skip_rate" not in plain
    assert stages_run(recipe(0.2), capsys) == ["skip", "evaluate/skipping", "report"]
    assert Skipping.load(RUN / "pruned").rule == 0.2
    assert stages_run(recipe(0.2), capsys) == []


def test_thresholds_are_those_of_the_pruned_model_where_nothing_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe())
    thresholds = Skipping.load(RUN / "pruned")
    tokenizer, task = load_tokenizer(str(RUN / "pruned")), Task(recipe().task)
    import random

    chosen = random.Random(0).sample(task.examples("train"), 8)
    batches = padded_batches(encode_all(tokenizer, chosen, 1024)[0], 4, tokenizer.pad_token_id)
    assert thresholds == skipping_thresholds(load_model(str(RUN / "pruned"), skipping=False), batches)
    assert is_skipping(load_model(str(RUN / "pruned")))


def test_the_report_has_a_row_with_skip_rate_score_and_speed() -> None:
    run(recipe())
    report = json.loads((RUN / "report.json").read_text())
    found, pruned = report["models"]["skipping"], report["models"]["pruned"]
    assert 0.2 < found["skip_rate"] < 0.8 and found["experts_skipped"] == pytest.approx(found["skip_rate"] / 2)
    assert found["tokens_per_second"] > 0 and found["n"] == pruned["n"] and found["interval"]
    assert found["parameters"] == pruned["parameters"]
    experts = 4 * 2 * 3 * 32 * 16 // 2  # active: two of four in two blocks
    assert found["active_parameters"] == pruned["active_parameters"] - round(found["experts_skipped"] * experts)
    page = (RUN / "report.html").read_text()
    assert "`skipping.json` beside the weights is for Pollard's own loader" in (RUN / "README.md").read_text()
    assert "Skipping: the last model once more" in page and "after a token’s first, skipped" in page
    run(recipe(None))
    assert "skipping" not in json.loads((RUN / "report.json").read_text())["models"]


def test_a_trained_run_skips_with_thresholds_of_the_recovered_model(capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe())  # thresholds of the pruned model are there: training must not follow them
    assert stages_run(trained(), capsys) == ["recover", "evaluate/recovered", "skip", "evaluate/skipping", "report"]
    assert Skipping.load(RUN / "pruned") is None and Skipping.load(RUN / "recovered")
    assert measures("skipping")["model"].endswith("recovered")
    assert "skip_rate" in measures("skipping") and "skip_rate" not in measures("recovered")


def test_a_run_that_starts_from_a_model_that_skips_says_that_it_does_not_follow_it(tmp_path, capsys, monkeypatch) -> None:
    make_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    batches = padded_batches(encode_all(load_tokenizer("original"), Task(recipe().task).examples("train")[:4], 1024)[0], 4, 0)
    skipping_thresholds(load_model("original"), batches).save("original")
    run(small_recipe())
    told = capsys.readouterr().out
    assert told.count("without skipping experts, although original has a skipping.json") == 2  # observed, evaluated
    assert "left out: skipping.json" in told
    assert "skip_rate" not in measures("original")


def test_one_expert_per_token_leaves_nothing_to_skip() -> None:
    one = small_recipe(pruning={"keep": 0.125, "skipping": "median"})
    with pytest.raises(PollardError, match="activates one per token"):
        check(RunContext(one))


@pytest.mark.parametrize("wrong", [0, 1, 1.5, True, "mean"])
def test_a_share_lies_between_nothing_and_everything(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"skipping is median, or the share .* in \(0, 1\)"):
        small_recipe(pruning={"keep": 4, "skipping": wrong})


def test_rounds_before_the_last_do_not_skip() -> None:
    from toolkit.pipeline.context import RunContext
    from toolkit.pipeline.stages.round import Round

    rounds = small_recipe(pruning={"schedule": [6, 4], "skipping": "median"})
    (first,) = Round.planned(RunContext(rounds), None, [])
    assert first.own_context().recipe.pruning.skipping is None
