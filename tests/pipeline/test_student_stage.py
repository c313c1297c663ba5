"""A run whose student writes training data, in two rounds, with a control: what stages are made from, and when again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import raises
from small_run import TASK, kill_in_call, small_folder, small_recipe

from toolkit.estimate import Machine
from toolkit.moe import load_tokenizer
from toolkit.pipeline import drawing
from toolkit.pipeline.cleaning import removable, remove
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.drawing import Answer, Answered, Drawing
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import plan_stages, run
from toolkit.pipeline.stage_list import stages_of
from toolkit.pipeline.stages.round import Round
from toolkit.pipeline.stages.student import all_different
from toolkit.recipe.schema import Recipe
from toolkit.report import RunFacts
from toolkit.tasks import DataCache, Example

STUDENT = [
    "student/1/answers", "student/1/teacher", "student/1/recover", "student/2/answers", "student/2/teacher",
]  # fmt: skip
TRAINER = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "eval_strategy": "no", "save_steps": 1}


def taught(rounds: int = 2, samples: int = 2, **changes: object) -> Recipe:
    written = {"self_generated": True, "writer": "student", "samples": samples, "rounds": rounds}
    finetuning = {"zero": 0, "max_length": 96, "examples": 8, "teacher": "original", "trainer": TRAINER}
    values: dict = {
        "finetuning": finetuning | {"data": [{"task": TASK}, written]},
        "control": True,
        "evaluation": {"models": ["recovered"], "examples": 2, "max_new_tokens": 6, "batch_size": 4, "off_task": False},
    }
    return small_recipe(**(values | changes))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDirectory]:
    """A finished run of `taught()`, the working folder its own."""
    with small_folder(tmp_path_factory, "student"):
        yield run(taught())


def redone(recipe: Recipe, capsys: pytest.CaptureFixture[str], until: str | None = None) -> list[str]:
    capsys.readouterr()
    run(recipe, until=until)
    reasons = ("(not done yet)", "done again)", "made again)", "needed again)")
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith(reasons)]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("1/*.jsonl")) for line in path.read_text().splitlines()]


def source_of(checkpoint: Path) -> str:
    return json.loads((checkpoint / "pollard.json").read_text())["source"]


def test_every_training_is_on_answers_of_what_the_one_before_has_left(directory: RunDirectory) -> None:
    stages = [*directory.read_manifest()["stages"]]
    assert stages[:9] == ["calibrate", "select", "prune", "teacher", *STUDENT] and stages[9] == "recover"
    first, second = directory.student_round(1), directory.student_round(2)
    assert source_of(first.recovered) == str(directory.pruned) and source_of(directory.recovered) == str(first.recovered)
    assert not second.recovered.exists() and not directory.checkpoints.exists()
    for each in (first, second):
        written, about = lines(each.answers), json.loads((each.teacher / "about.json").read_text())
        assert sum(line["drawn"] for line in written) == 16 and about["examples"] == len(written)
        assert len({tuple(line["input_ids"]) for line in written}) == len(written)
        assert about["tokens"] == sum(len(line["input_ids"]) - line["prompt_length"] for line in written)
    assert lines(first.answers) != lines(second.answers)
    entries = directory.entries()
    assert entries["recover"]["examples"] == 8 + len(lines(second.answers))
    for log in (first.training_log, directory.training_log):
        assert '"divergence"' in log.read_text() and '"step": 2' in log.read_text()


def test_the_report_says_what_was_written_and_how_much_of_it_is_right(directory: RunDirectory) -> None:
    facts = RunFacts.model_validate_json((directory.path / "report.json").read_text())
    assert facts.training and [written.drawn for written in facts.training.student] == [16, 16]
    right = [sum(line["right"] for line in lines(directory.student_round(number).answers)) for number in (1, 2)]
    assert [written.right for written in facts.training.student] == right
    assert facts.control_training and facts.control_training.student == [] and facts.control_training.examples == 8
    assert "Before training 2 of 2 the model" in (directory.path / "report.html").read_text()


def test_what_is_done_stays_and_the_control_depends_on_nothing_that_a_student_writes(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert redone(taught(), capsys) == []
    again = ["recover", "evaluate/recovered", "report"]
    assert redone(taught(samples=1), capsys) == [*STUDENT, *again]
    assert redone(taught(rounds=1, samples=1), capsys) == again
    assert redone(taught(rounds=3, samples=1), capsys)[:2] == ["student/2/recover", "student/3/answers"]
    assert redone(taught(pruning={"keep": 2}), capsys) == ["select", "prune", *STUDENT, *again]
    assert redone(taught(), capsys) == ["select", "prune", *STUDENT, *again]


def test_answers_of_another_model_under_the_same_fingerprint_are_drawn_again(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    about = directory.student_round(1).answers / "1" / "about.json"
    before, manifest = about.read_text(), directory.read_manifest()
    manifest["stages"]["prune"]["result"] = "a plan that came out otherwise"
    directory.manifest.write_text(json.dumps(manifest))
    assert "student/1/answers" in redone(taught(), capsys)
    assert about.read_text() != before  # no piece of before was taken for one of this model


def test_answers_can_be_removed_and_come_back_where_a_training_needs_them(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run(taught())
    before = {path: path.read_bytes() for path in directory.student.rglob("*") if path.is_file()}
    (found,) = removable(directory, ["student"])
    assert {path.name for path in found.files} == {"about.json", "00000.jsonl", "00000.safetensors"} and remove(found)
    assert redone(taught(), capsys) == []
    other = taught(finetuning=taught().finetuning.model_dump() | {"trainer": TRAINER | {"learning_rate": 1e-4}}, control=False)
    assert redone(other, capsys)[:3] == STUDENT[:3]
    first = directory.student_round(1)
    for path in (*first.answers.rglob("0*"), *first.teacher.glob("0*")):
        assert path.read_bytes() == before[path]
    trained = {path for part in removable(directory, ["recovered"]) for path in part.folders}
    assert {directory.recovered, first.recovered} <= trained


def test_neither_batches_nor_a_kill_change_what_is_drawn(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "PROMPTS", 2)
    whole = run(taught(name="whole"), until="student/1/answers")
    evaluation = taught().evaluation.model_dump() | {"batch_size": 2}
    with monkeypatch.context() as patch:
        calls = kill_in_call(6, drawing, patch)
        with pytest.raises(KeyboardInterrupt):
            run(taught(name="killed", evaluation=evaluation), until="student/1/answers")
        killed = run(taught(name="killed", evaluation=evaluation), until="student/1/answers")
    assert len(calls) == 10  # eight batches of a prompt; of the piece that was killed in its second, both are drawn again
    files = sorted(path.relative_to(whole.path) for path in whole.student.rglob("0*.jsonl"))
    assert len(files) == 4
    for path in files:
        assert (whole.path / path).read_bytes() == (killed.path / path).read_bytes()


def test_answers_are_kept_wrong_or_cut_and_counted_as_they_were_drawn(directory: RunDirectory) -> None:
    recipe, prompt = taught(), [*range(90)]
    asked = Drawing(recipe, recipe.finetuning.student_sources[0], load_tokenizer("original"), DataCache())
    example = Example(({"role": "user", "content": "2 + 2?"},), "4", "4")
    long = Answer([7] * 9, False, "7 and so on")
    right = Answer([4, 1], True, "4")
    found = all_different(asked, [Answered(prompt, example, [right, long, right, Answer([5, 1], True, "5")])])
    assert [(line["drawn"], line["right"], line["ended"]) for line in found] == [(2, 2, 2), (1, 0, 0), (1, 0, 1)]
    assert [len(line["input_ids"]) for line in found] == [92, 96, 92] and {line["prompt_length"] for line in found} == {90}


def test_every_round_of_a_schedule_has_a_student_of_its_own(directory: RunDirectory) -> None:
    scheduled = run(taught(rounds=1, name="rounds", pruning={"schedule": [6, 4]}, control=False), until="recover")
    assert [*scheduled.read_manifest()["stages"]][:2] == ["teacher", "rounds/6"]
    early = RunDirectory("6", scheduled.rounds)
    for each in (early, scheduled):
        assert {"student/1/answers", "student/1/teacher"} <= each.done().keys() and lines(each.student_round(1).answers)
        assert source_of(each.recovered) == str(each.pruned)
    assert early.teacher.resolve() == scheduled.teacher.resolve() and not early.student.is_symlink()


def test_every_round_of_a_schedule_is_of_as_many_trainings_as_the_recipe_says(directory: RunDirectory) -> None:
    def fingerprint(rounds: int) -> str:
        context = RunContext(taught(rounds=rounds, name="rounds", pruning={"schedule": [6, 4]}))
        return next(stage for stage in stages_of(context) if stage.name == "rounds/6").fingerprint()

    assert len({fingerprint(1), fingerprint(2), fingerprint(3)}) == 3


def test_a_student_alone_needs_no_cache_of_other_data(directory: RunDirectory) -> None:
    written = [{"self_generated": True, "writer": "student", "samples": 1}]
    alone = taught(name="alone", finetuning=taught().finetuning.model_dump() | {"data": written}, control=False)
    assert "teacher" not in [stage.name for stage in plan_stages(alone)]
    log = run(alone, until="recover").training_log.read_text()
    assert '"divergence"' in log and '"cross_entropy"' not in log


def test_the_estimate_of_a_round_has_what_the_original_says_of_the_student_alone(directory: RunDirectory) -> None:
    written = [{"self_generated": True, "writer": "student"}]
    finetuning = taught().finetuning.model_dump() | {"data": written}
    context = RunContext(taught(pruning={"schedule": [6, 4]}, finetuning=finetuning, control=False))
    (early,) = Round.planned(context, None, ())
    assert "388 bytes each" in early.estimate(Machine(0, 1, 0, 2**34, None)).work


def test_the_estimate_has_every_stage_and_the_control_reads_less(directory: RunDirectory) -> None:
    context = RunContext(taught())
    sizes = context.data_sizes
    assert sizes.student and (sizes.training.examples, sizes.shared.examples, sizes.student.prompts.examples) == (24, 8, 16)
    machine = Machine(0, 1, 0, 2**34, None)
    estimates = {stage.name: stage.estimate(machine) for stage in plan_stages(taught())}
    for name in STUDENT:
        assert (found := estimates[name]) and found.host and found.disk
    assert (asked := estimates["teacher"]) and asked.disk == 388 * round(8 * sizes.shared.completion_tokens)


def test_a_source_that_is_all_too_long_is_told_as_that(directory: RunDirectory) -> None:
    short = taught().finetuning.model_dump() | {"max_length": 2, "data": taught().finetuning.model_dump()["data"][1:]}
    with raises("answers.no-prompts", "the student's answers"):
        run(taught(name="short", finetuning=short, control=False), until="student/1/answers")
