"""Law: what makes a score doubtful is said, with its numbers."""

import json
from pathlib import Path

from made_up_run import BLOCKS, evaluate_role, make_cuts, make_run, off_task_loss

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_run_facts


def warnings_of(run: RunDirectory) -> list[str]:
    return list(read_run_facts(run.path).warnings)


def test_models_on_different_splits_are_not_called_alike(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "recovered", split="dev")
    assert "The scores were not measured alike: split is test (original), test (pruned), dev (recovered)." in warnings_of(run)


def test_kept_experts_that_nobody_chose_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)  # expert 3 of the second block is kept, and no token chose it
    assert warnings_of(run) == [
        "Kept experts that no token of calibration chose: 1 of 4, in 1 of 2 blocks "
        "(`keep` is larger than what the task was seen to use)."
    ]


def test_kept_experts_are_judged_by_the_tokens_that_decided(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path, pruning={"keep": 2, "tokens": "prompt"}).path)
    assert report.blocks[BLOCKS[1]].kept_share == 0.75  # 30 of 40 prompt tokens; of all it would be 40 of 100
    assert "no prompt token of calibration chose: 1 of 4" in report.warnings[0]


def test_random_is_not_blamed_for_the_size_of_keep(tmp_path: Path) -> None:
    assert warnings_of(make_run(tmp_path, pruning={"keep": 2, "criterion": "random"}))[0].endswith("(`random` does not look).")


def test_examples_left_out_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path, calibration={"max_length": 50}, finetuning={"max_length": 60})
    run.finish("calibrate", "calibrate", 1.0, examples=8, left_out=2)
    run.finish("recover", "recover", 1.0, steps=20, examples=90, left_out=10)
    said = warnings_of(run)
    assert "Calibration left out 2 of 10 examples: they are longer than 50 tokens (calibration.max_length)." in said
    assert "Training left out 10 of 100 examples: they are longer than 60 tokens (finetuning.max_length)." in said


def test_training_on_what_is_asked_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.finish("recover", "recover", 1.0, steps=20, examples=90, left_out=0, repeating=7)
    assert any(said.startswith("7 questions of the training data are those of the test set") for said in warnings_of(run))
    run.finish("recover", "recover", 1.0, steps=20, examples=90, left_out=0, repeating=0)
    assert "word for word" not in " ".join(warnings_of(run))


def test_skipping_that_makes_nothing_faster_is_not_recommended(tmp_path: Path) -> None:
    run = make_run(tmp_path, pruning={"keep": 2, "skipping": "median"})
    evaluate_role(run, "recovered", tokens_per_second=1000.0)
    evaluate_role(run, "skipping", right=17, tokens_per_second=812.5)
    said = [line for line in warnings_of(run) if "Skipping" in line]
    assert len(said) == 1 and "812.5 tokens/s with it, 1,000.0 without (recovered)" in said[0]
    for alike in ({"tokens_per_second": 1000.1}, {"tokens_per_second": None}, {"device": "cuda"}, {"batch_size": 8}):
        evaluate_role(run, "skipping", right=17, **{"tokens_per_second": 812.5} | alike)
        assert not any("Skipping" in line for line in warnings_of(run))


def test_lines_that_could_not_be_used_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "could not be used" not in " ".join(warnings_of(run))
    run.finish("calibrate", "calibrate", 1.0, examples=8, left_out=0, bad_lines=3)
    run.finish("evaluate/original", "original", 1.0, bad_lines=1)
    assert "Lines of the data that could not be used and are left out: 3 (calibration), 1 (evaluation)." in warnings_of(run)


def test_examples_and_prompts_beyond_the_models_context_are_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.finish("calibrate", "calibrate", 1.0, examples=8, left_out=0, beyond_context=3)
    run.finish("recover", "recover", 1.0, steps=20, examples=90, left_out=0, beyond_context=9)
    for role in ("original", "pruned"):
        evaluate_role(run, role, context_length=512, prompts_beyond_context=2, prompts_without_room=0)
    evaluate_role(run, "recovered", context_length=512, prompts_beyond_context=0, prompts_without_room=4)
    said = warnings_of(run)
    assert "Calibration read 3 of 8 examples that are longer than the model's context (calibration.max_length)." in said
    assert "Training read 9 of 90 examples that are longer than the model's context (finetuning.max_length)." in said
    assert "2 of 20 prompts do not fit the model's context of 512 tokens (original, pruned)." in said
    assert (
        "4 of 20 prompts leave less room in the model's context of 512 tokens than the 64 new ones allowed (recovered)." in said
    )
    assert sum("context" in line for line in said) == 4


def test_answers_cut_short_or_empty_are_counted_per_model(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "pruned", truncated=3, empty=1)
    said = warnings_of(run)
    assert "Answers that did not end within 64 tokens: 3 of 20 (pruned)." in said
    assert "Answers that are empty: 1 of 20 (pruned)." in said


def test_scores_on_the_dev_split_are_called_that(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for role in ("original", "pruned", "recovered"):
        evaluate_role(run, role, split="dev")
    assert "The scores of original, pruned and recovered are on the dev split" in " ".join(warnings_of(run))


def test_an_evaluation_that_was_cut_short_says_so(tmp_path: Path) -> None:
    said = "The evaluation stops after the first 20 questions of its split (evaluation.examples)."
    assert said in warnings_of(make_run(tmp_path / "cut", evaluation={"examples": 20}))
    assert said not in warnings_of(make_run(tmp_path / "whole", evaluation={"examples": 500}))  # the split has only 20


def test_versions_that_changed_between_stages_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.finish("evaluate/pruned", "pruned", 1.0, versions={"torch": "0.1"}, git_commit="0" * 40)
    said = " ".join(warnings_of(run))
    assert "different versions of torch: " in said and "0.1 (evaluate/pruned)" in said
    assert "000000000000 (evaluate/pruned)" in said


def test_what_fewer_layers_cost_written_answers_is_said_as_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    [said] = [line for line in warnings_of(run) if "layer" in line]
    assert said.startswith("1 layer fewer costs written answers")
    assert said.endswith("With nothing but layers cut it was right on 3 of 12 dev questions, with all layers on 11.")
    make_cuts(make_run(tmp_path), dev_answers=None)
    assert any("`layer_criterion: dev_loss` would have said" in line for line in warnings_of(run))


def test_a_task_of_labels_is_not_warned_of_layers(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    run.finish("layers", "layers", 1.5, seed=7, ranks=2, layers=3, kept=2, written_answers=False)
    assert not [line for line in warnings_of(run) if "written answers" in line]


def test_channels_of_experts_that_no_token_reached_are_chosen_blindly(tmp_path: Path) -> None:
    run = make_run(tmp_path / "energy")
    make_cuts(run)
    [said] = [line for line in warnings_of(run) if "channels" in line]
    assert said.startswith("No token of calibration reached 1 of 4 kept experts: energy knows nothing of their channels")
    drawn = make_run(tmp_path / "random")
    make_cuts(drawn, "random")
    assert not [line for line in warnings_of(drawn) if "channels" in line]


def test_an_original_that_cannot_do_the_task_is_told_and_the_control_offered(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "original", right=1, n=200)
    first = warnings_of(run)[0]  # what everything else is built on comes first
    assert (
        first.startswith("The original itself can hardly do the task (0.5 % of 200 questions right") and "control: true" in first
    )
    control = make_run(tmp_path / "control", control=True)
    evaluate_role(control, "original", right=1, n=200)
    assert "can hardly do" in warnings_of(control)[0] and "control: true" not in warnings_of(control)[0]


def test_it_is_judged_by_its_interval(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for right, n, told in ((0, 20, False), (0, 72, False), (0, 74, True), (2, 200, True), (6, 200, False), (150, 200, False)):
        evaluate_role(run, "original", right=right, n=n)
        assert ("The original itself" in " ".join(warnings_of(run))) == told, (right, n)


def test_where_there_are_choices_it_must_be_above_chance(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for right, told in ((0, True), (50, True), (60, True), (65, False), (150, False)):  # of 200; 31 % is above a quarter
        evaluate_role(run, "original", right=right, n=200, chance=0.25)
        said = " ".join(warnings_of(run))
        assert ("is not told from guessing" in said and "by chance 25.0 %" in said) == told, right


def test_a_model_that_training_made_worse_elsewhere_is_told_with_its_method(tmp_path: Path) -> None:
    run = make_run(tmp_path, finetuning={"method": "qlora"})
    for role, loss in (("original", 2.0), ("pruned", 2.1), ("recovered", 2.6)):
        (run.evaluation / f"{role}.off_task.json").write_text(json.dumps(off_task_loss(loss)))
        run.finish(f"off_task/{role}", role, 1.0)
    [said] = [line for line in warnings_of(run) if "beside its task" in line]
    assert "qlora" in said and "2.1000 to 2.6000" in said


def test_results_that_are_multiple_choice_only_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluation={"harness": ["arc_easy", "gsm8k"]})
    metrics = {"metrics": {"acc": {"value": 0.5, "error": None}}, "n": 10, "shots": 0}
    kinds = {"arc_easy": "multiple_choice", "gsm8k": "generate_until", "old": None}
    tasks = {task: metrics | ({"output_type": kind} if kind else {}) for task, kind in kinds.items()}
    (run.evaluation / "original.harness.json").write_text(json.dumps(tasks))
    run.finish("harness/original", "original", 1.0)
    assert [line for line in warnings_of(run) if line.startswith("Multiple choice only: arc_easy (lm-evaluation-harness)")]
    assert [row.label for row in read_run_facts(run.path).harness] == ["arc_easy (choices)", "gsm8k", "old"]
