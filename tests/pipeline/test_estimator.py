"""A recipe's estimate, against what the model and the pipeline's own stages do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import plan_for, raises, tiny_model
from planned_recipe import config_folder, recipe_of
from small_run import make_small, small_recipe

from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.estimate import Estimate, StageEstimate, resolve_machine
from toolkit.moe import checkpoint_bytes, find_blocks, load_config, load_model, load_tokenizer, meta_model
from toolkit.pipeline.data_sizes import data_sizes
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.recipe_on_machine import trainer_settings
from toolkit.pipeline.runner import plan_stages
from toolkit.recipe.schema import Recipe
from toolkit.recovery.teacher import predicted_tokens
from toolkit.recovery.top_logits import bytes_per_token
from toolkit.recovery.training_data import read_training_data

LARGE = {"gpus": 8, "gpu": "h100", "cpu_memory": "1T"}


@pytest.fixture
def config_only(tmp_path: Path) -> str:
    return config_folder(tmp_path)


def estimated(recipe: Recipe, **there: Any) -> Estimate:
    return Estimator(resolve_machine(**(LARGE | there))).estimate(recipe)


def stages_of(recipe: Recipe, **there: Any) -> dict[str, StageEstimate]:
    return {stage.name: stage for stage in estimated(recipe, **there).stages}


EVERYTHING: dict[str, Any] = {
    "control": True,
    "pruning": {"schedule": [6, 4, 2], "skipping": "median"},
    "finetuning": {"teacher": "original", "data": [{"task": "gsm8k"}, {"self_generated": True, "samples": 2, "examples": 100}]},
}


def test_every_stage_of_the_pipeline_is_estimated(config_only: str) -> None:
    recipe = recipe_of(config_only, **EVERYTHING)
    found = stages_of(recipe)
    assert [*found, "report"] == [stage.name for stage in plan_stages(recipe)]
    assert {
        "answers",
        "teacher",
        "rounds/6",
        "rounds/4",
        "control",
        "evaluate/control",
        "skip",
        "evaluate/skipping",
    } < found.keys()
    assert all(stage.seconds is not None for stage in found.values())
    assert "200 questions" in found["answers"].work


def test_new_questions_cost_their_writing_and_their_answers(config_only: str) -> None:
    def answers(**source: object) -> StageEstimate:
        mix = [{"self_generated": True, "samples": 2, "examples": 100} | source]
        return stages_of(recipe_of(config_only, finetuning={"data": mix}))["answers"]

    plain, new, unseen = answers(), answers(questions=100), answers(questions=100, shown=1)
    assert plain.flops < unseen.flops < new.flops  # type: ignore[operator]
    assert not plain.notes and "new questions first: 100 questions" in new.notes[-1]
    recipe = recipe_of(config_only, finetuning={"data": [{"self_generated": True, "questions": 64, "samples": 4}]})
    sizes = data_sizes(recipe)
    assert sizes.answers and sizes.answers.examples == 256 and sizes.training.examples == 64  # of its answers one is kept


def test_the_control_costs_what_training_the_original_costs(config_only: str) -> None:
    found = estimated(recipe_of(config_only, control=True, finetuning={"trainer": {"save_strategy": "no"}}))
    stages = {stage.name: stage for stage in found.stages}
    recover, control = stages["recover"], stages["control"]
    assert control.flops / recover.flops == pytest.approx(found.active[0] / found.active[1])  # type: ignore[operator]
    assert control.disk / recover.disk == pytest.approx(found.parameters[0] / found.parameters[1])
    assert control.gpu_bytes > recover.gpu_bytes
    assert stages["evaluate/control"].flops == stages["evaluate/original"].flops


def test_a_round_is_a_run_of_what_the_round_before_it_left(config_only: str) -> None:
    def alone(keep: int) -> dict[str, StageEstimate]:
        return stages_of(recipe_of(config_only, pruning={"keep": keep}))

    found = stages_of(recipe_of(config_only, pruning={"schedule": [6, 4, 2]}))
    parts = ("calibrate", "prune", "recover")
    assert found["rounds/6"].flops == pytest.approx(sum(alone(6)[part].flops or 0 for part in parts))
    assert found["rounds/6"].disk == sum(alone(6)[part].disk for part in parts)
    assert found["rounds/4"].gpu_bytes < found["rounds/6"].gpu_bytes
    assert found["recover"] == alone(2)["recover"]
    assert found["prune"].host["blocks"] == pytest.approx(alone(2)["prune"].host["blocks"] * 4 / 8, rel=0.05)


def test_the_teachers_cache_is_as_large_as_recovery_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_small(tmp_path)
    models = ["original", "pruned", "recovered"]
    recipe = small_recipe(evaluation__models=models, finetuning={"teacher": "original", "examples": 20})
    learnt = read_training_data(recipe, load_tokenizer("original"), tmp_path)
    counted = sum(map(predicted_tokens, learnt.encoded))
    assert stages_of(recipe)["teacher"].disk == pytest.approx(counted * bytes_per_token(768), rel=0.2)  # a sample of the data
    all_of_it = recipe.model_copy(update={"finetuning": recipe.finetuning.model_copy(update={"examples": None})})
    learnt = read_training_data(all_of_it, load_tokenizer("original"), tmp_path)
    counted = sum(map(predicted_tokens, learnt.encoded))
    assert stages_of(all_of_it)["teacher"].disk == counted * 388
    weighted = [{"task": recipe.task.model_dump(), "weight": weight, "examples": 30} for weight in (1, 2)]
    mix = recipe.model_copy(update={"finetuning": recipe.finetuning.model_validate({"data": weighted})})
    learnt = read_training_data(mix, load_tokenizer("original"), tmp_path)
    trained = stages_of(mix, gpus=1)["recover"].work
    assert trained.startswith(f"{3 * -(-len(learnt.encoded) // 8):,} steps of 8 examples")


def test_pruning_holds_the_block_that_it_checks_however_many_there_are(config_only: str) -> None:
    block = sum(p.numel() for p in find_blocks(meta_model(load_config(config_only)))[0].module.parameters())
    found = stages_of(recipe_of(config_only), gpus=2)["prune"]
    assert found.host["blocks"] == 2 * round(5 / 3 * 2 * block)
    config = json.loads((Path(config_only) / "config.json").read_text())
    (Path(config_only) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 8}))
    assert stages_of(recipe_of(config_only), gpus=2)["prune"].host == found.host


def test_sizes_are_those_of_the_pruned_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_small(tmp_path)
    unsaved = {"trainer": {"save_strategy": "no"}}
    found = estimated(small_recipe(evaluation__models=["original", "pruned", "recovered"], finetuning=unsaved), gpus=0)
    prune_checkpoint("original", plan_for(tiny_model("mixtral", vocab_size=768), [0, 1, 2, 3]), "pruned")
    whole = [sum(p.numel() for p in load_model(path).parameters()) for path in ("original", "pruned")]
    assert found.parameters == tuple(whole)
    written = {stage.name: stage.disk for stage in found.stages}
    assert written["prune"] == pytest.approx(checkpoint_bytes("pruned"), rel=0.05)  # the file's header is not counted
    assert written["recover"] == written["prune"]
    assert [stage.name for stage in found.stages][-2:] == ["recover", "evaluate/recovered"]


def test_local_data_is_counted_and_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_small(tmp_path)
    recipe = small_recipe(finetuning={"trainer": {"per_device_train_batch_size": 4, "num_train_epochs": 2}})
    found = estimated(recipe, gpus=1)
    assert found.steps == 2 * 48 // 4  # 60 lines, 12 of them dev
    assert "those of a sample" in found.assumptions[0]
    assert found.tokens_per_step < 4 * 100 < 4 * recipe.finetuning.max_length


def test_hub_data_is_bounded(config_only: str) -> None:
    found = estimated(recipe_of(config_only, finetuning={"max_length": 512}))
    assert found.steps == 3 * -(-(7473 - 500) // 64)  # GSM8K's size is known, its dev slice is not trained on
    assert found.tokens_per_step == 64 * 512
    assert "upper bound" in found.assumptions[0]


def test_hub_data_of_unknown_size_leaves_steps_and_time_open(config_only: str) -> None:
    task = {"dataset": "some/data", "prompt": "{a}", "completion": "{b}"}
    unknown = estimated(recipe_of(config_only, task=task))
    recover = next(stage for stage in unknown.stages if stage.name == "recover")
    assert (unknown.steps, recover.flops, recover.seconds) == (None, None, None)
    assert recover.gpu_bytes > 0
    known = estimated(recipe_of(config_only, task=task, finetuning={"examples": 640}))
    assert known.steps == 3 * 10


def test_operations_are_eight_per_active_parameter_and_trained_token(config_only: str) -> None:
    trainer = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    found = estimated(recipe_of(config_only, finetuning={"max_length": 100, "trainer": trainer}))
    tokens = 5 * 2 * 3 * 8 * 100
    flops = {stage.name: stage.flops for stage in found.stages}
    assert flops["recover"] == 8 * found.active[1] * tokens  # forward 2, backward 4, and once more for checkpointing
    without = recipe_of(config_only, finetuning={"max_length": 100, "trainer": trainer | {"gradient_checkpointing": False}})
    assert next(stage.flops for stage in estimated(without).stages if stage.name == "recover") == 6 * found.active[1] * tokens


def test_a_search_evaluates_every_expert(config_only: str) -> None:
    def calibration(**pruning: Any) -> tuple[float, int]:
        stage = estimated(recipe_of(config_only, pruning={"keep": 4, **pruning})).stages[0]
        assert stage.flops
        return stage.flops, stage.host_bytes

    plain, layerwise = calibration(), calibration(criterion="reconstruction")
    progressive = calibration(criterion="reconstruction", mode="progressive")
    assert plain[0] < layerwise[0] < progressive[0]
    assert progressive[1] == 2 * plain[1]  # two hidden states per token


def test_narrower_experts_are_fewer_active_parameters_in_every_stage_behind_the_cut(config_only: str) -> None:
    def found(**pruning: Any) -> Estimate:
        return estimated(recipe_of(config_only, pruning=pruning))

    experts, width = found(keep=0.5), found(width=0.5)
    assert (width.experts, width.width, width.layers) == ((8, 8), (16, 8), None)
    assert width.active[1] < experts.active[1] < width.active[0]  # fewer experts only make routers smaller
    recover = [next(stage for stage in each.stages if stage.name == "recover") for each in (experts, width)]
    assert recover[1].flops / recover[0].flops == pytest.approx(width.active[1] / experts.active[1])  # type: ignore[operator]


def test_a_model_of_fewer_layers_is_what_calibration_observes(config_only: str) -> None:
    def calibrate(**pruning: Any) -> StageEstimate:
        return stages_of(recipe_of(config_only, pruning=pruning))["calibrate"]

    half, whole = calibrate(layers=1, layer_criterion="top"), calibrate(keep=4)
    assert 0.5 < half.flops / (whole.flops or 0) < 0.6  # type: ignore[operator]  # beside the layers: the embeddings
    assert "layers" not in stages_of(recipe_of(config_only, pruning={"keep": 4}))
    assert estimated(recipe_of(config_only, pruning={"layers": 1, "layer_criterion": "top"})).layers == (2, 1)


def test_gradients_of_channels_take_the_whole_model_and_a_backward_pass(config_only: str) -> None:
    def calibrate(criterion: str) -> StageEstimate:
        return stages_of(recipe_of(config_only, pruning={"width": 0.5, "width_criterion": criterion}))["calibrate"]

    forward, backward, plain = calibrate("energy"), calibrate("taylor"), stages_of(recipe_of(config_only))["calibrate"]
    assert forward.flops == plain.flops and forward.disk > plain.disk
    assert backward.disk > forward.disk and backward.flops > 3 * (forward.flops or 0)
    assert backward.gpu["activations"] > forward.gpu["activations"] and "logits" in backward.gpu
    assert any("whole model" in note for note in backward.notes) and "backward" in backward.work


def test_fewer_experts_per_token_are_fewer_active_parameters(config_only: str) -> None:
    found = estimated(recipe_of(config_only, pruning={"keep": 0.25, "experts_per_token": 1}))
    assert found.experts == (8, 2)
    assert found.active[1] < found.active[0]


def test_checkpoints_are_counted_as_far_as_they_are_kept(config_only: str) -> None:
    def written(**trainer: Any) -> int:
        stage = next(s for s in estimated(recipe_of(config_only, finetuning={"trainer": trainer})).stages if s.name == "recover")
        return stage.disk

    none, one = written(save_strategy="no"), written(save_strategy="epoch", save_total_limit=1)
    assert written() - none == 3 * (one - none) / 2  # two are kept, and the third is written; of one, two
    assert written(save_strategy="epoch", save_total_limit=9) == written()  # three epochs make three
    assert one - none > 2 * 6 * none  # weights, master copy, two states


def test_the_trainer_is_as_the_fine_tuning_sets_it_up(config_only: str) -> None:
    assert trainer_settings(recipe_of(config_only), True).dtype == torch.bfloat16
    assert trainer_settings(recipe_of(config_only), True).checkpointing
    assert trainer_settings(recipe_of(config_only), False).dtype == torch.float32
    half = recipe_of({"path": config_only, "dtype": "float16"})
    assert trainer_settings(half, True).dtype == torch.float16


def test_the_original_is_spread_over_the_gpus_where_one_is_too_small(config_only: str) -> None:
    def first(gpu_memory: str) -> tuple[int, str]:
        stages = {s.name: s for s in estimated(recipe_of(config_only), gpu_memory=gpu_memory).stages}
        return stages["evaluate/original"].gpu["weights"], stages["evaluate/original"].work

    whole, spread = first("80G"), first("0.02M")
    assert "8 copies" in whole[1] and "one copy over 8 GPUs" in spread[1]
    assert spread[0] == -(-whole[0] // 8)


def test_what_spread_leaves_on_the_host_is_counted_there(config_only: str) -> None:
    spread = {"path": config_only, "placement": "spread"}
    found = stages_of(recipe_of(spread, evaluation={"fidelity": 8}), gpus=1, gpu_memory="0.02M")
    size = stages_of(recipe_of(config_only))["evaluate/original"].gpu["weights"]
    for name in ("evaluate/original", "fidelity/original"):
        assert found[name].host["weights"] + found[name].gpu["weights"] == size
        assert found[name].host["weights"] > 0 and "are on the host" in found[name].notes[0]
    apart = stages_of(recipe_of(spread), gpus=0)["evaluate/original"]
    assert apart.host["weights"] == 2 * size  # one copy, in float32, where `copies` has one on every rank
    assert stages_of(recipe_of(config_only), gpus=0)["evaluate/original"].host["weights"] == 4 * size
    few = estimated(recipe_of(spread), gpus=1, gpu_memory="0.02M", cpu_memory="0.01M")
    assert "host" in few.lacking["evaluate/original"]


# What it would estimate stops at the first stage.
def test_a_model_that_cannot_be_run_is_refused_with_the_cure(config_only: str) -> None:
    path = Path(config_only) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    with raises("model.quantized", "fp8", "unquantized copy", "prune it with the plan of that run"):
        estimated(recipe_of(config_only))


# A list among the task's keys must not stand in the way of counting data once.
def test_a_classification_is_estimated_like_any_task(config_only: str) -> None:
    task = {"name": "classification", "dataset": "some/texts", "labels": ["good", "bad"]}
    assert estimated(recipe_of(config_only, task=task)).stages


def test_a_quantized_original_is_watched_as_a_whole(config_only: str) -> None:
    def weights() -> int:
        return stages_of(recipe_of(config_only))["calibrate"].gpu["weights"]

    layers, path = weights(), Path(config_only) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}))
    found = stages_of(recipe_of(config_only))
    assert layers < found["calibrate"].gpu["weights"] == found["evaluate/original"].gpu["weights"]
    assert "the whole model is loaded" in found["calibrate"].notes[0]


@pytest.mark.parametrize(
    ("sections", "code", "named"),
    [
        ({"pruning": {"keep": 9}}, "selection.keep", ["9", "8 experts per block"]),
        ({"pruning": {"keep": 4, "experts_per_token": 3}}, "selection.experts-per-token", ["3", "2 experts per token"]),
        ({"finetuning": {"zero": "none.json"}}, "zero.no-config", ["none.json"]),
        ({"finetuning": {"trainer": {"optim": "galore"}}}, "estimate.unknown-optimizer", ["galore"]),
        ({"task": {"train": "none.jsonl", "test": "none.jsonl", "prompt": "{a}", "completion": "{b}"}}, "data.no-file",
         ["none.jsonl"]),
    ],
)  # fmt: skip
def test_what_the_stages_would_refuse_is_refused(config_only: str, sections: dict, code: str, named: list[str]) -> None:
    with raises(code, *named):
        estimated(recipe_of(config_only, **sections))
