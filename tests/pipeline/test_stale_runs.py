"""A run that has moved on says so everywhere: the real command, from a finished run to another `keep` and back."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_run import small_folder, small_recipe

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.pipeline import push as push_module
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_models import find_run
from toolkit.pipeline.runner import plan_stages
from toolkit.recipe.file import dump_recipe, load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime import distributed

Pollard = Callable[..., tuple[int, str]]
RUN, STALE = Path("runs/small"), "runs/small/recovered is stale (made with pruning.keep=4)"


def recipe() -> Recipe:
    trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "eval_strategy": "no"}
    return small_recipe(
        finetuning={"zero": 0, "examples": 8, "trainer": trainer},
        evaluation={"batch_size": 3, "max_new_tokens": 4, "off_task": False},
    )


def call(*arguments: str) -> int:
    """`pollard …` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pollard", *arguments])
        patch.setattr(exit_status, "quiet_libraries", lambda: None)
        distributed.stop()
        return cli.main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run with `keep: 4`, whole; small.yaml is its recipe."""
    with small_folder(tmp_path_factory, "stale") as folder:
        Path("small.yaml").write_text(dump_recipe(recipe()))
        assert call("run", "small.yaml") == 0
        shutil.copytree("runs", "finished")
        yield folder


@pytest.fixture
def pollard(finished: Path, capsys: pytest.CaptureFixture[str]) -> Pollard:
    """Calls it on the run as it was finished."""
    shutil.rmtree("runs")
    shutil.copytree("finished", "runs")

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return call(*arguments), capsys.readouterr().out

    return run


def after(word: str, out: str) -> str:
    return out.split(f"\n{word}")[-1]


def redone(out: str) -> list[str]:
    """The stages that were not skipped."""
    names = [stage.name for stage in plan_stages(recipe())]
    lines = [line for line in out.splitlines() if line[:1].strip() and line.split()[0] in names]
    return [line.split()[0] for line in lines if "done already, skipped" not in line]


def weights() -> bytes:
    return (RUN / "recovered" / "model.safetensors").read_bytes()


def test_a_finished_run_proposes_commands_that_work(pollard: Pollard) -> None:
    last = after("Done in", pollard("run", "small.yaml")[1])
    assert "Stale" not in last and "runs/small/recovered" in last and "report.html" in last
    commands = [line.split("  ")[1].split()[1:] for line in after("Next", last).splitlines() if line.strip()]
    assert [words[0] for words in commands] == ["chat", "compare", "sweep"]
    assert call(*commands[1]) == 0 and call(*commands[2]) == 0


def test_after_another_keep_the_last_screen_lists_only_what_is_current(pollard: Pollard) -> None:
    status, out = pollard("prune", "small.yaml", "pruning.keep=2")
    last = after("Done in", out)
    current, stale = last.split("Stale")[0], last.split("Stale")[1].split("Next")[0]
    assert status == 0 and redone(out) == ["select", "prune"] and "replaced" not in out
    assert "runs/small/pruned" in current and "recovered" not in current and "report.html" not in current
    assert "runs/small/recovered " in stale and stale.count("made with pruning.keep=4") == 3
    following = after("Next", last)
    assert "compare" not in following and "chat runs/small" in following
    assert "run small.yaml pruning.keep=2  the stages that are left" in following  # `prune` again would do nothing


def test_nothing_that_is_stale_is_compared_asked_or_uploaded_by_mistake(
    pollard: Pollard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pollard("prune", "small.yaml", "pruning.keep=2")
    for words in (["runs/small/recovered", "runs/small/original"], ["runs/small", "runs/small/original"]):
        status, out = pollard("compare", *words)
        assert status == 1 and STALE in out and "pruning.keep=4` goes back" in out and "--stale compares it" in out
    status, out = pollard("compare", "runs/small/recovered", "runs/small/original", "--stale")
    assert status == 0 and "runs/small/recovered (made with pruning.keep=4)" in out
    assert pollard("compare", "runs/small/original", "runs/small/original")[0] == 0
    status, out = pollard("generate", "runs/small", "Why?", "--max-new-tokens", "2")
    assert "stale: runs/small/recovered (made with pruning.keep=4): left out" in out and "pruned: 2 tokens" in out
    for words in (["runs/small", "Why?", "--by", "recovered"], ["runs/small/recovered", "Why?"]):
        status, out = pollard("generate", *words, "--max-new-tokens", "2")
        assert status == 0 and "stale: runs/small/recovered (made with pruning.keep=4): used as it is" in out
    found = find_run("runs/small")
    assert list(found.models) == ["original", "pruned"] and list(found.stale) == ["recovered"]
    monkeypatch.setattr(push_module, "get_token", lambda: "hf_secret")
    status, out = pollard("push", "runs/small", "me/small")
    assert status == 1 and STALE in out and "Nothing was uploaded" in out


def test_chat_asks_the_current_models_unless_another_is_named(pollard: Pollard, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    pollard("prune", "small.yaml", "pruning.keep=2")
    for words, told, asked in (
        ([], "left out", "original 0.3 MiB + pruned"),
        (["--models", "original,recovered"], "used as it is", "original 0.3 MiB + recovered"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO("Why?\n"))
        status, out = pollard("chat", "runs/small", "--max-new-tokens", "2", *words)
        assert status == 0 and f"stale: runs/small/recovered (made with pruning.keep=4): {told}" in out and asked in out


def test_the_report_shows_only_what_is_current_and_names_the_rest(pollard: Pollard) -> None:
    pollard("prune", "small.yaml", "pruning.keep=2")
    report, page = json.loads((RUN / "report.json").read_text()), (RUN / "report.html").read_text()
    assert report["pruning"]["keep"] == 2
    assert [role for role, found in report["models"].items() if found] == ["original"] and not report["training"]
    (stale,) = report["stale"]
    assert stale["why"] == "made with pruning.keep=4"
    assert stale["parts"] == ["recovered/", "evaluation/pruned.json", "evaluation/recovered.json"]
    assert "Stale, and not shown here: recovered/" in page


def test_back_again_the_trained_model_is_the_one_that_was_asked_for(pollard: Pollard) -> None:
    before, page = weights(), json.loads((RUN / "report.json").read_text())
    pollard("prune", "small.yaml", "pruning.keep=2")
    status, out = pollard("run", "small.yaml")
    assert status == 0 and redone(out) == ["select", "prune"] and "will be replaced" not in out
    assert weights() == before
    assert "Stale" not in after("Done in", out) and "runs/small/recovered" in after("Done in", out)
    assert pollard("compare", "runs/small/recovered", "runs/small/original")[0] == 0
    again = json.loads((RUN / "report.json").read_text())
    assert again["models"] == page["models"] and again["stale"] == []
    assert list(find_run("runs/small").models) == ["original", "pruned", "recovered"]


def test_back_by_prune_alone_everything_is_current_again(pollard: Pollard) -> None:
    pollard("prune", "small.yaml", "pruning.keep=2")
    _, out = pollard("prune", "small.yaml")
    assert "Stale" not in after("Done in", out) and "runs/small/recovered" in after("Done in", out)
    assert json.loads((RUN / "report.json").read_text())["models"]["recovered"]


def test_replacing_a_trained_model_is_said_before_it_happens(pollard: Pollard) -> None:
    before = weights()
    status, out = pollard("run", "small.yaml", "pruning.keep=2")
    first = out.split("\ncalibrate ")[0]
    assert status == 0 and "note: runs/small/recovered will be replaced: trained in " in first
    assert "with pruning.keep=4. To keep it, stop now (Ctrl-C) and give this run another name: name=small-2" in first
    assert weights() != before
    _, out = pollard("run", "small.yaml", "pruning.keep=2", "--fresh")
    assert "runs/small/recovered will be replaced: trained in " in out and "with the same settings" in out
    assert "will be replaced" not in pollard("run", "small.yaml", "pruning.keep=2")[1]


# The old score has the right fingerprint, and is of a model that is no longer there.
def test_back_after_another_training_the_model_is_trained_and_judged_anew(pollard: Pollard) -> None:
    pollard("recover", "small.yaml", "pruning.keep=2")
    stages = RunDirectory("small").entries()
    assert (stages["recover"]["status"], stages["evaluate/recovered"]["status"]) == ("done", "stale")
    status, out = pollard("run", "small.yaml")
    assert status == 0 and "will be replaced: trained in" in out and "with pruning.keep=2" in out
    assert redone(out) == ["select", "prune", "evaluate/pruned", "recover", "evaluate/recovered"]


def test_a_training_that_is_stopped_leaves_a_model_that_nobody_takes_for_current(
    pollard: Pollard, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.recovery import recover

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recover, "read_training_data", stopped)
        assert pollard("run", "small.yaml", "pruning.keep=2")[0] == 130
    assert list(find_run("runs/small").stale) == ["recovered"]
    assert "stopped at recover" in pollard("runs")[1]
    status, out = pollard("compare", "runs/small/recovered", "runs/small/original")
    assert status == 1 and STALE in out
    status, out = pollard("run", "small.yaml")  # whether what lies there is whole, nobody knows
    assert status == 0, out
    assert redone(out) == ["select", "prune", "evaluate/pruned", "recover", "evaluate/recovered"]


def test_what_the_recipe_no_longer_asks_for_is_stale_where_it_would_come_out_otherwise(pollard: Pollard) -> None:
    only_pruned = "evaluation.models=[original,pruned]"
    _, out = pollard("run", "small.yaml", only_pruned)
    assert "Stale" not in after("Done in", out)  # the same model, only not asked for
    _, out = pollard("run", "small.yaml", only_pruned, "pruning.keep=2")
    assert "runs/small/recovered " in after("Stale", out) and "made with pruning.keep=4" in out


def test_a_changed_data_file_makes_stale_without_a_key_to_name(pollard: Pollard) -> None:
    text = Path("train.jsonl").read_text()
    try:
        Path("train.jsonl").write_text(text.replace("How many", "Count: how many"))
        pollard("prune", "small.yaml")
        status, out = pollard("compare", "runs/small/recovered", "runs/small/original")
        assert status == 1 and "is stale (made of what has changed since)" in out and "goes back" not in out
    finally:
        Path("train.jsonl").write_text(text)


def test_a_run_in_somebody_elses_folder_is_refused_before_anything_is_written(pollard: Pollard) -> None:
    mine = Path("runs/mine")
    mine.mkdir()
    (mine / "recipe.yaml").write_text("# my notes\n")
    (mine / "answers").mkdir()
    for verb, *more in (["run"], ["prune"], ["sweep", "pruning.keep=4,2"], ["run", "--fresh"]):
        status, out = pollard(verb, "small.yaml", "name=mine", *more)
        assert status == 1 and "holds answers/, recipe.yaml. Nothing of it is touched" in out and "name=mine-2" in out
    assert sorted(path.name for path in mine.iterdir()) == ["answers", "recipe.yaml"]
    assert (mine / "recipe.yaml").read_text() == "# my notes\n"


# Scores stay without their model; a stage that needs it makes it again, and what was trained from it stays.
def test_a_run_that_was_cleaned_is_complete_and_makes_again_only_what_is_needed(pollard: Pollard) -> None:
    before = weights()
    status, out = pollard("runs", "small", "--clean")
    assert status == 0 and "runs/small/pruned" in out and "Nothing is removed yet" in out and (RUN / "pruned").exists()
    (RUN / "pruned" / "mine.gguf").write_text("mine")
    status, out = pollard("runs", "small", "--clean", "--yes")
    assert status == 0 and "not Pollard's, left: runs/small/pruned/mine.gguf" in out
    assert [path.name for path in (RUN / "pruned").iterdir()] == ["mine.gguf"]
    assert "complete" in pollard("runs")[1] and redone(pollard("run", "small.yaml")[1]) == []
    assert pollard("compare", "runs/small/pruned", "runs/small/original")[0] == 0
    status, out = pollard("run", "small.yaml", "evaluation.max_new_tokens=5")
    assert status == 1 and "mine.gguf" in out and "Nothing there is touched" in out and not redone(out)
    (RUN / "pruned" / "mine.gguf").unlink()
    status, out = pollard("run", "small.yaml", "evaluation.max_new_tokens=5")
    assert redone(out) == ["prune", "evaluate/original", "evaluate/pruned", "evaluate/recovered", "report"]
    assert "removed before, and needed again" in out and weights() == before


# Before any stage begins, and not after hours; the manifest is as it was.
@pytest.mark.parametrize("file", ["notes.txt", "model.safetensors", "generation_config.json", "README.md"])
def test_what_somebody_left_or_changed_in_a_trained_model_keeps_it(pollard: Pollard, file: str) -> None:
    (RUN / "recovered" / file).write_text("mine")
    status, out = pollard("run", "small.yaml", "pruning.keep=3")
    assert status == 1 and f"runs/small/recovered holds what Pollard did not write: {file}" in out and not redone(out)
    assert (RUN / "recovered" / file).read_text() == "mine" and "complete" in pollard("runs")[1]


def test_a_card_that_somebody_edited_is_kept(pollard: Pollard) -> None:
    (RUN / "recovered" / "README.md").write_text("what I found")
    assert pollard("report", "small.yaml")[0] == 0
    assert (RUN / "recovered" / "README.edited.md").read_text() == "what I found"


def test_a_trained_model_is_removed_only_where_it_is_named(pollard: Pollard) -> None:
    pollard("runs", "--clean", "--yes")
    assert (RUN / "recovered" / "model.safetensors").exists()
    assert pollard("runs", "--clean", "--parts", "recovered")[1].splitlines()[0].endswith("hours of training")
    pollard("runs", "--clean", "--parts", "recovered", "--yes")
    assert not (RUN / "recovered").exists()
    last = after("Done in", pollard("run", "small.yaml")[1])
    assert "recovered" not in last.split("Next")[0] and "chat" not in last and "compare" in last


def test_the_recipe_in_the_run_directory_is_the_one_that_ran(pollard: Pollard) -> None:
    pollard("prune", "small.yaml", "pruning.keep=2")
    assert load_recipe(RUN / "recipe.yaml").pruning.keep == 2
    assert redone(pollard("prune", str(RUN / "recipe.yaml"))[1]) == []


# Models are large, and removed where they are not needed now; figures are small, and the report is made of them.
@pytest.mark.parametrize(
    ("removed", "again", "then"),
    [
        ("pruned", [], ["prune", "recover", "evaluate/recovered", "report"]),
        ("recovered", [], ["recover", "evaluate/recovered", "report"]),
        ("calibration", [], ["recover", "evaluate/recovered", "report"]),
        ("evaluation/recovered.json", ["evaluate/recovered"], ["recover", "evaluate/recovered", "report"]),
        ("plan.json", ["calibrate", "select"], ["recover", "evaluate/recovered", "report"]),
    ],
)
def test_what_somebody_removed_by_hand_is_made_again_where_it_is_needed(
    pollard: Pollard, removed: str, again: list[str], then: list[str]
) -> None:
    if removed == "plan.json":
        shutil.rmtree(RUN / "calibration")
    path = RUN / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, out = pollard("run", "small.yaml")
    assert status == 0 and redone(out) == [*again]
    if not again:
        assert f"done already, skipped: {path} was removed, and nothing needs it" in out
    status, out = pollard("run", "small.yaml", "finetuning.trainer.max_steps=3")
    assert status == 0 and redone(out) == then and "Stale" not in out
