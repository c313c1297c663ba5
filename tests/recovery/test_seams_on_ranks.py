"""The seam loss on two real ranks: ZeRO-2 and ZeRO-3 learn the same, full and with adapters, and a training that was given up
ends as an undisturbed one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, ROOT, plan_for, tiny_model
from rank_launcher import RANKS, ranks
from safetensors.torch import load_file

from toolkit.cuts import LayersCut, Plan
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.moe import load_tokenizer
from toolkit.recipe.schema import Recipe
from toolkit.recovery.seams import seams_of
from toolkit.recovery.teacher import cache_logits
from toolkit.recovery.training_data import read_training_data
from toolkit.runtime.zero import deepspeed_config

TRAINER = {
    "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-3, "eval_strategy": "no",
    "save_steps": 2, "warmup_steps": 0,
}  # fmt: skip
METHODS: dict[str, dict] = {
    "full": {"distillation": {"hidden": 0.3}},
    "lora": {"distillation": {"hidden": 0.3, "weight": 0}, "method": "lora", "lora": {"rank": 4, "router": True}},
}
RUNS = [f"{method}-{zero}" for method in METHODS for zero in (2, 3)]
PARTS = ("loss", "cross_entropy", "divergence", "seam")


def launch(root: Path, recipes: dict) -> str:
    (root / "recipes.json").write_text(json.dumps(recipes))
    command = ranks(RANKS, str(ROOT / "tests" / "recovery" / "resumed.py"), str(root), "recipes.json")
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers 0 and 3 of 5 stay: a gap between them, and one at the end. `given-up` stops after its third step, and goes on."""
    root = tmp_path_factory.mktemp("seams")
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1, num_hidden_layers=5)
    model.save_pretrained(root / "original")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(PLAYGROUND / "model" / file, root / "original")
    experts = plan_for(model, [0, 2, 3, 5, 6, 7])
    plan = Plan(model="original", experts_per_token=2, cuts=[*experts.cuts, LayersCut.of(model, [0, 3], "by hand")])
    plan = plan.model_copy(update={"cuts": [_of_kept_layers(plan), plan.cuts[1]]})
    stage3 = deepspeed_config(3)
    stage3["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # here everything is partitioned
    (root / "3.json").write_text(json.dumps(stage3))
    zero = {"2": 2, "3": str(root / "3.json")}
    recipes = {name: recipe(root, name, zero[name[-1]], METHODS[name[:-2]]) for name in RUNS}
    recipes["given-up"] = recipe(root, "given-up", zero["3"], METHODS["full"])
    prune_checkpoint(str(root / "original"), plan, root / "full-2" / "pruned")
    plan.save(root / "full-2" / "plan.json")
    learned = read_training_data(Recipe.model_validate(recipes["full-2"]), load_tokenizer(str(root / "original")), root)
    cache_logits(model, learned.encoded, root / "full-2" / "teacher", 2.0, 4, 0, "by hand", seams_of(plan))
    for name in (name for name in recipes if name != "full-2"):
        shutil.copytree(root / "full-2", root / name)
    launch(root, {"given-up": recipes["given-up"] | {"stop_at": 3}})
    (root / "output").write_text(launch(root, recipes))
    return root


def _of_kept_layers(plan: Plan) -> object:
    """The cut of experts, in the layers that stay."""
    blocks = {name: block for name, block in plan.blocks.items() if name.split(".")[2] in ("0", "3")}
    return plan.with_experts(blocks).cuts[0]


def recipe(root: Path, name: str, zero: object, method: dict) -> dict:
    learning = {"teacher": "original", "zero": zero, "examples": 16}
    trainer = TRAINER | {"gradient_checkpointing": zero != 2}
    return {
        "name": name,
        "model": str(root / "original"),
        "task": {"name": "playground/arithmetic", "dev_examples": 8},
        "pruning": {"keep": 6, "layers": [0, 3]},
        "finetuning": learning | method | {"trainer": trainer},
    }


def log_of(root: Path, name: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (root / name / "training_log.jsonl").read_text().splitlines()]
    return [{part: line[part] for part in PARTS} for line in lines if "loss" in line]


@pytest.mark.launcher
@pytest.mark.parametrize("name", RUNS)
def test_the_loss_is_its_three_parts(root: Path, name: str) -> None:
    weight, lines = METHODS[name[:-2]]["distillation"].get("weight", 0.5), log_of(root, name)
    assert len(lines) == 4
    for line in lines:
        expected = (1 - weight) * line["cross_entropy"] + weight * 4 * line["divergence"] + 0.3 * line["seam"]
        assert line["loss"] == pytest.approx(expected, rel=1e-4) and line["seam"] > 0.01


@pytest.mark.launcher
@pytest.mark.parametrize("method", METHODS)
def test_both_stages_learn_the_same(root: Path, method: str) -> None:
    two, three = (log_of(root, f"{method}-{zero}") for zero in (2, 3))
    for part in PARTS:
        assert [line[part] for line in two] == pytest.approx([line[part] for line in three], rel=1e-3), part
    one, other = (load_file(root / f"{method}-{zero}" / "recovered" / "model.safetensors") for zero in (2, 3))
    apart = torch.cat([(one[key] - other[key]).abs().flatten() for key in one])
    assert apart.max() <= 8e-3 and apart.mean() <= 1e-5  # Adam: a near-zero gradient may turn, 4 steps of 1e-3 each


@pytest.mark.launcher
def test_given_up_and_resumed_it_ends_bit_for_bit_as_undisturbed(root: Path) -> None:
    assert f"going on from {root}/given-up/checkpoints/recovered/checkpoint-2" in (root / "output").read_text()
    assert log_of(root, "given-up") == log_of(root, "full-3")
    found = [(root / name / "recovered" / "model.safetensors").read_bytes() for name in ("given-up", "full-3")]
    assert found[0] == found[1]
