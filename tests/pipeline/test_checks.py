"""Everything that is wrong is told at once; and what the model cannot read, before it is asked to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_model
from small_run import TASK, small_folder, small_recipe, small_values
from transformers import AutoTokenizer

from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import run
from toolkit.pipeline.sweep import sweep
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.schema import Recipe
from toolkit.runtime.errors import Mistakes, PollardError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "checks") as folder:
        rows = [{"question": "word " * (5 + 20 * (i % 4 == 0)) + str(i), "answer": str(i)} for i in range(20)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield folder


def told(recipe: Recipe) -> str:
    with pytest.raises(PollardError) as error:
        run(recipe)
    assert not Path("runs", recipe.name).exists()
    return str(error.value)


def model_with(folder: Path, name: str, **config: object) -> str:
    """A copy of the small model with other numbers in its configuration."""
    tiny_model("mixtral", vocab_size=768, eos_token_id=1).save_pretrained(folder / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name / file).write_bytes((folder / "original" / file).read_bytes())
    path = folder / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return name


def test_mistakes_that_do_not_depend_on_each_other_come_together(folder: Path) -> None:
    both = TASK | {"train": "trian.jsonl", "test": "tset.jsonl"}
    recipe = small_recipe(
        name="many", model="orignal", task=both, calibration={"data": [{"text": "texts.txt"}]},
        evaluation={"models": ["recovered"], "harness": ["x"], "harness_tasks": "nowhere"},
        finetuning={"trainer": {"lr": 1, "warmup": 2}},
    )  # fmt: skip
    lines = told(recipe).splitlines()
    for said in (
        "Cannot open the model orignal", "Cannot read trian.jsonl", "Cannot read tset.jsonl", "texts.txt",
        "finetuning.trainer.lr is not a field", "finetuning.trainer.warmup is not a field", "harness_tasks is nowhere",
    ):  # fmt: skip
        assert sum(said in line for line in lines) == 1, said


def test_numbers_and_data_are_told_together_when_the_model_is_there(folder: Path) -> None:
    said = told(small_recipe(name="numbers", task=TASK | {"prompt": "{problem}"}, pruning={"keep": 9}))
    assert "pruning.keep is 9" in said and "train.jsonl, line 1: no field `problem`" in said and "test.jsonl, line 1" in said


def test_examples_that_are_all_too_long_are_told_with_the_key_before_the_first_stage(folder: Path) -> None:
    short = {"calibration__max_length": 3, "finetuning__max_length": 4, "evaluation__models": ["recovered"]}
    said = told(small_recipe(name="short", **short))
    assert "No example fits into max_length 3: the shortest has " in said and "Raise calibration.max_length." in said
    assert "No example fits into max_length 4: the shortest has " in said and "Raise finetuning.max_length." in said


def test_another_runs_folder_is_told_with_everything_else(folder: Path) -> None:
    directory = RunDirectory("taken")
    directory.path.mkdir(parents=True)
    directory.open("another", "custom", "", [])
    with pytest.raises(PollardError) as error:
        run(small_recipe(name="taken", task=TASK | {"train": "trian.jsonl"}))
    assert "holds a run with model another" in str(error.value) and "Cannot read trian.jsonl" in str(error.value)


def test_a_missing_client_for_servers_is_told_before_the_first_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    servers = {"original": "http://localhost:1/v1", "pruned": "http://localhost:1/v1"}
    evaluation = {"models": ["original", "pruned"], "backend": "server", "servers": servers}
    assert "pip install 'pollard-moe[server]'" in told(small_recipe(name="served", evaluation=evaluation))


def test_checkpoints_are_looked_for_under_the_root_that_was_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("toolkit.recovery.settings.finetuning_checks", lambda recipe, output, data: seen.append(output) or [])
    check(RunContext(small_recipe(evaluation={"models": ["recovered"]}), RunDirectory("small", "elsewhere")))
    assert seen == [Path("elsewhere/small/checkpoints")]


def test_of_several_cells_of_a_sweep_each_mistake_is_told_once(folder: Path) -> None:
    values = small_values(name="swept", task=TASK | {"train": "trian.jsonl"})
    Path("r.yaml").write_text(json.dumps(values))
    with pytest.raises(PollardError) as error:
        sweep(load_grid("r.yaml", ["pruning.keep=4,2"]))
    assert str(error.value).count("Cannot read trian.jsonl") == 1


def test_one_mistake_is_raised_as_it_is_and_none_is_none() -> None:
    mistakes, one = Mistakes(), PollardError("one")

    def wrong() -> None:
        raise one

    assert mistakes.collect(lambda: 3) == 3 and not mistakes
    mistakes.raise_all()
    assert mistakes.collect(wrong) is None and mistakes.collect(wrong) is None and mistakes
    with pytest.raises(PollardError) as error:
        mistakes.raise_all()
    assert error.value is one
    with pytest.raises(ZeroDivisionError):
        mistakes.collect(lambda: 1 // 0)


LONG = {"train": "rows.jsonl", "test": "rows.jsonl"}


def notes(recipe: Recipe) -> list[str]:
    return check(RunContext(recipe))


def test_training_on_the_questions_of_the_test_is_told_before_it(folder: Path) -> None:
    same = TASK | {"test": "train.jsonl"}
    said = "48 of 48 training questions of custom are questions of test, too, word for word"
    assert said in " ".join(notes(small_recipe(task=same, evaluation__models=["recovered"])))
    for fine in (
        small_recipe(evaluation__models=["recovered"]),
        small_recipe(task=same),  # nothing is trained
        small_recipe(task=same, evaluation__models=["recovered"], finetuning={"data": [{"task": same}]}),  # they are left out
    ):
        assert "word for word" not in " ".join(notes(fine))


def test_prompts_that_fit_are_not_spoken_of(folder: Path) -> None:
    assert notes(small_recipe(task=TASK | LONG)) == []


# Prompts of about 15 tokens and, every fourth, of about 55.
def test_prompts_beyond_the_context_are_counted_and_those_without_room_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(
        name="context", model=model_with(folder, "short", max_position_embeddings=32), task=TASK | LONG,
        calibration={"examples": 8, "batch_size": 4, "max_length": 32}, evaluation={"max_new_tokens": 4, "models": ["original"]},
    )  # fmt: skip
    context = "the model's context of 32 tokens (max_position_embeddings)"
    assert [note.partition(":")[0] for note in notes(recipe)] == [f"5 of 20 test prompts do not fit {context}"]
    more = notes(recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"max_new_tokens": 30})}))
    assert len(more) == 2 and more[1].startswith(
        f"15 of 20 test prompts fit {context}, but not with evaluation.max_new_tokens=30"
    )
    fewer = notes(recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"examples": 3})}))
    assert fewer[0].startswith("1 of 3 test prompts")
    run(recipe)
    assert f"note 5 of 20 test prompts do not fit {context}" in capsys.readouterr().out
    found = json.loads(Path("runs/context/evaluation/original.json").read_text())
    assert (found["context_length"], found["prompts_beyond_context"], found["prompts_without_room"]) == (32, 5, 0)
    report = json.loads(Path("runs/context/report.json").read_text())
    assert "5 of 20 prompts do not fit the model's context of 32 tokens (original)." in report["warnings"]


def test_examples_beyond_the_context_are_counted_with_the_key_that_leaves_them_out(folder: Path) -> None:
    recipe = small_recipe(
        model=model_with(folder, "short", max_position_embeddings=32), task=TASK | LONG, finetuning={"zero": 0},
        calibration={"examples": 100}, evaluation={"max_new_tokens": 4, "models": ["recovered"]},
    )  # fmt: skip
    said = " ".join(notes(recipe))
    assert "calibration examples do not fit" in said and "calibration.max_length=32 leaves them out" in said
    assert "training examples do not fit" in said and "finetuning.max_length=32 leaves them out" in said


def test_where_nothing_fits_the_run_is_refused_with_everything_that_does_not(folder: Path) -> None:
    recipe = small_recipe(name="nothing", model=model_with(folder, "tiny", max_position_embeddings=8), task=TASK | LONG)
    lines = told(recipe).splitlines()
    assert lines[0].startswith("All 8 calibration examples are longer than the model's context of 8 tokens")
    assert lines[1].startswith("All 20 test prompts are longer than") and "the shortest has 15" in lines[1]


def test_tokens_without_an_embedding_are_refused_where_the_data_uses_them(folder: Path) -> None:
    name = model_with(folder, "unresized")
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.add_tokens(["<|sql|>"])
    tokenizer.save_pretrained(name)
    assert "uses none of those beyond it" in notes(small_recipe(model=name))[0]
    for key, split in (("train", "train.jsonl"), ("test", "test.jsonl")):
        text = Path(split).read_text()
        (folder / f"sql.{split}").write_text(text + text.splitlines()[0].replace('"question": "', '"question": "<|sql|> ') + "\n")
        said = told(small_recipe(name="unresized", model=name, task=TASK | {key: f"sql.{split}"}))
        assert f"'<|sql|>' (number 768) in sql.{split}, line " in said and "769 tokens" in said and "768 rows" in said
    (folder / "sql.txt").write_text("Plain text with <|sql|> in it.\n")
    said = told(small_recipe(name="unresized", model=name, calibration={"data": [{"text": "sql.txt"}]}))
    assert "(number 768) in sql.txt" in said


def test_a_bug_that_a_mistake_leads_to_does_not_hide_the_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.pipeline.checks.limit_checks", lambda *_: [lambda: 1 // 0])
    with pytest.raises(PollardError, match=r"pruning\.keep is 9"):
        check(RunContext(small_recipe(pruning={"keep": 9})))
    with pytest.raises(ZeroDivisionError):
        check(RunContext(small_recipe()))


def test_a_router_gradient_over_all_experts_is_refused_where_all_are_active(folder: Path) -> None:
    finetuning = {"method": "full", "router_gradient": "all"}
    said = told(small_recipe(name="active", pruning={"keep": 2}, finetuning=finetuning, evaluation={"models": ["recovered"]}))
    assert "finetuning.router_gradient" in said and "of 2 experts every token activates 2" in said
