"""Only what a model has grown by is trained: every old tensor and row is the same afterwards, to the last bit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, ROOT, logits_of, raises
from families import tiny_family
from grown_checkpoint import by_expert, grown
from rank_launcher import launch_ranks

from toolkit.moe import find_blocks, load_model
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery import new_experts, trainer
from toolkit.recovery.method import Loaded
from toolkit.recovery.methods import METHODS, count_trainable
from toolkit.recovery.recover import recover
from toolkit.runtime import distributed
from toolkit.runtime.zero import deepspeed_config

FAMILIES = ("mixtral", "gpt_oss", "qwen2_moe", "deepseek_v3")
RUNS = [f"{family}-{zero}" for family in FAMILIES[:2] for zero in (2, 3)]


def prepare(root: Path, name: str, zero: object, **changes: object) -> dict:
    """A grown checkpoint in the run directory `name`, whose first task's weights were moved; and the recipe that trains it."""
    family = name.partition("-")[0]
    grown(family, root / name, trained=True, vocab_size=768, eos_token_id=1)
    (root / name / "grown").rename(root / name / "pruned")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(PLAYGROUND / "model" / file, root / name / "pruned")
    settings = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0}
    return {
        "name": name,
        "model": str(root / name / "original"),
        "task": {"name": "playground/arithmetic", "dev_examples": 8},
        "pruning": {"grow": {"onto": "a/first", "keep": 6}},
        "finetuning": {
            "method": "new", "zero": zero, "examples": 40, "trainer": settings | {"eval_strategy": "no"} | changes,
        },
    }  # fmt: skip


def check_trained(folder: Path) -> None:
    """In `recovered/` every old tensor and row is that of `pruned/`, to the last bit; the new experts have moved, and their
    routing with them (where a token chose them: not in every layer)."""
    kept = next(iter(json.loads((folder / "plan.json").read_text())["cuts"][0]["kept"].values()))
    before, after = by_expert(folder / "pruned", kept), by_expert(folder / "recovered", kept)
    assert {key: tensor.dtype for key, tensor in before.items()} == {key: tensor.dtype for key, tensor in after.items()}
    moved = {key for key, tensor in before.items() if not torch.equal(after[key], tensor)}
    assert {expert for _, expert in moved} == {3, 5}
    for expert in (3, 5):
        assert {".experts." in name for name, number in moved if number == expert} == {True, False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two ranks, that route to different experts, for all families and stages."""
    root = tmp_path_factory.mktemp("new_experts")
    whole = deepspeed_config(3)
    whole["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # everything is partitioned
    (root / "3.json").write_text(json.dumps(whole))
    zero = {"2": 2, "3": str(root / "3.json")}
    recipes = {name: prepare(root, name, zero[name[-1]], gradient_checkpointing=name[-1] == "3") for name in RUNS}
    (root / "recipes.json").write_text(json.dumps(recipes))
    launch_ranks(ROOT / "tests" / "recovery" / "every_method.py", root)
    return root


@pytest.mark.launcher
@pytest.mark.parametrize("name", RUNS)
def test_on_ranks_the_new_experts_alone_move(root: Path, name: str) -> None:
    check_trained(root / name)


@pytest.mark.launcher
@pytest.mark.parametrize("family", FAMILIES[:2])
def test_both_stages_leave_the_same_weights(root: Path, family: str) -> None:
    one, other = (load_model(str(root / f"{family}-{zero}" / "recovered")).state_dict() for zero in (2, 3))
    apart = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    assert apart.max() <= 3e-2 and apart.mean() <= 1e-5  # three steps of 1e-2; Adam's, so rounding can turn one


@pytest.fixture
def alone() -> Iterator[None]:
    distributed.start()
    yield
    distributed.stop()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_was_trained(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, trained = Recipe.model_validate(prepare(tmp_path, family, 0)), []
    real = new_experts.NewExperts.save

    def save(self: object, recipe: object, trainer: object, model: torch.nn.Module, training: object) -> None:
        trained.append(logits_of(model.eval()))
        real(self, recipe, trainer, model, training)

    monkeypatch.setattr(new_experts.NewExperts, "save", save)
    recover(recipe, str(tmp_path))
    check_trained(tmp_path / family)
    before, after = (new_experts.new_experts_of(str(tmp_path / family / name)) for name in ("pruned", "recovered"))
    assert before == after  # so that another training can go on
    assert (logits_of(load_model(str(tmp_path / family / "recovered"))) - trained[0]).abs().max() <= 1e-5


@pytest.mark.usefixtures("alone")
def test_killed_and_resumed_it_leaves_what_an_undisturbed_training_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (Recipe.model_validate(prepare(tmp_path / name, "mixtral", 0, save_steps=1)) for name in ("whole", "killed"))
    recover(whole, str(tmp_path / "whole"))

    def stop(self: object, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.StepProgress, "on_step_begin", stop, raising=False)
        with pytest.raises(KeyboardInterrupt):
            recover(killed, str(tmp_path / "killed"))
    assert not (tmp_path / "killed" / "mixtral" / "recovered").exists()
    recover(killed, str(tmp_path / "killed"))
    one, other = (tmp_path / name / "mixtral" / "recovered" / "model.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.usefixtures("alone")
def test_old_rows_that_moved_are_an_error_and_nothing_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.model_validate(prepare(tmp_path, "mixtral", 0))
    monkeypatch.setattr(new_experts, "_only_rows", lambda axis, new, gradient: gradient)
    with raises("recovery.old-moved", "rows of model.layers"):
        recover(recipe, str(tmp_path))
    assert not (tmp_path / "mixtral" / "recovered").exists()


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_that_has_not_grown_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(prepare(tmp_path, "mixtral", 0))
    shutil.copy(tmp_path / "mixtral" / "first" / "pollard.json", tmp_path / "mixtral" / "pruned")
    with raises("recovery.nothing-new", tmp_path / "mixtral" / "pruned"):
        recover(recipe, str(tmp_path))


MOVING = ("adafactor", "adamw_bnb_8bit", "adamw_torch_4bit", "galore_adamw")


@pytest.mark.parametrize("setting", [{"weight_decay": 0.01}, *({"optim": optimizer} for optimizer in MOVING)])
def test_what_would_move_old_rows_is_refused_before_anything_starts(setting: dict, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(prepare(tmp_path, "mixtral", 0, **setting))
    with raises("recovery.moves-old", *setting, *setting.values()):
        METHODS["new"].check(recipe)


def test_only_rows_count_as_trained_and_what_the_router_shares_is_frozen() -> None:
    method, model = METHODS["new"], tiny_family("gemma4")  # its router has a scale of all experts
    blocks = find_blocks(model)
    new = {block.name: [6, 7] for block in blocks}
    method.set_up(Loaded(model, blocks, [], new), LoraRecipe())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {row.name for block in blocks for row in new_experts.row_parameters(block, [6, 7])}
    counts = count_trainable(model, blocks, new)
    experts = sum(parameter.numel() for block in blocks for parameter in block.experts.parameters())
    assert counts["experts"] == experts // 4 and counts["other layers"] == 0 and counts["routers"] > 0
