"""Real ranks, real DeepSpeed: what each method trains, under ZeRO-2 and ZeRO-3."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from companions import add_companions, check_companions
from conftest import PLAYGROUND, ROOT, raises, tiny_model
from peft import PeftModel
from rank_launcher import launch_ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from toolkit.moe import find_blocks
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.methods import METHODS, check_reach
from toolkit.recovery.settings import sft_config
from toolkit.runtime.errors import PollardError
from toolkit.runtime.zero import deepspeed_config

TRAINED = {
    "lora": {"method": "lora", "lora": {"rank": 4, "router": True}},
    "qlora": {"method": "qlora", "lora": {"rank": 4}},
    "router": {"method": "router"},
    "experts": {"method": "experts"},
}
CHANGED = {
    "lora": ("experts", "gate", "self_attn"),
    "qlora": ("experts", "self_attn"),
    "router": ("gate",),
    "experts": ("experts", "gate"),
}
RUNS = [f"{method}-{zero}" for method in TRAINED for zero in (2, 3)] + ["qlora-offload"]


def prepare(root: Path) -> None:
    """A pruned checkpoint and a recipe for every run."""
    stages = {"2": 2, "3": deepspeed_config(3), "offload": deepspeed_config("3-offload")}
    for stage in ("3", "offload"):
        stages[stage]["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # here everything is partitioned
        (root / f"{stage}.json").write_text(json.dumps(stages[stage]))
        stages[stage] = str(root / f"{stage}.json")
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    recipes = {}
    for name in RUNS:
        pruned = root / name / "pruned"
        model.save_pretrained(pruned)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(PLAYGROUND / "model" / file, pruned)
        add_companions(pruned, without="skipping.json")
        method, _, zero = name.partition("-")
        trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}
        trainer |= {"eval_strategy": "steps", "eval_steps": 1, "warmup_steps": 0, "gradient_checkpointing": zero == "3"}
        recipes[name] = {
            "name": name,
            "model": "the/original",
            "task": {"name": "playground/arithmetic", "dev_examples": 8},
            "finetuning": TRAINED[method] | {"zero": stages[zero], "examples": 40, "trainer": trainer},
        }
    (root / "recipes.json").write_text(json.dumps(recipes))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two ranks, that route to different experts, for all methods and stages."""
    root = tmp_path_factory.mktemp("methods")
    prepare(root)
    launch_ranks(ROOT / "tests" / "recovery" / "every_method.py", root)
    return root


def facts(root: Path, name: str) -> dict:
    return json.loads((root / name / "facts.json").read_text())


def checkpoint(root: Path, name: str, which: str) -> dict[str, torch.Tensor]:
    return load_file(root / name / which / "model.safetensors")


# Adapters begin as nothing, and freezing changes no output.
@pytest.mark.launcher
def test_every_method_begins_where_the_pruned_model_is(root: Path) -> None:
    first = {name: facts(root, name)["first_loss"] for name in RUNS}
    for base, names in {
        "router-2": [name for name in RUNS if not name.startswith("qlora")],
        "qlora-2": [name for name in RUNS if name.startswith("qlora")],
    }.items():
        assert all(first[name] == pytest.approx(first[base], rel=1e-5) for name in names), first
    assert first["qlora-2"] != pytest.approx(first["router-2"], rel=1e-5)  # four bits round


@pytest.mark.launcher
@pytest.mark.parametrize("name", RUNS)
def test_what_lies_beside_the_weights_is_there_by_every_method(root: Path, name: str) -> None:
    check_companions(root / name / "pruned", root / name / "recovered", num_experts=8)


@pytest.mark.launcher
@pytest.mark.parametrize("name", RUNS)
def test_the_dev_loss_falls(root: Path, name: str) -> None:
    log = [json.loads(line) for line in (root / name / "training_log.jsonl").read_text().splitlines()]
    first, second = (entry["eval_loss"] for entry in log if "eval_loss" in entry)
    assert second < first


@pytest.mark.launcher
@pytest.mark.parametrize("name", RUNS)
def test_a_method_changes_what_it_trains_and_nothing_else(root: Path, name: str) -> None:
    before, after = checkpoint(root, name, "pruned"), checkpoint(root, name, "recovered")
    assert {key: tensor.shape for key, tensor in before.items()} == {key: tensor.shape for key, tensor in after.items()}
    trained = CHANGED[name.partition("-")[0]]
    for key in before:
        assert torch.equal(before[key], after[key]) != any(f".{part}." in key for part in trained), key
    AutoModelForCausalLM.from_pretrained(root / name / "recovered")


@pytest.mark.launcher
@pytest.mark.parametrize("name", [name for name in RUNS if not name.endswith("2")])
def test_training_leaves_the_same_weights_under_both_stages(root: Path, name: str) -> None:
    reference, found = checkpoint(root, f"{name.partition('-')[0]}-2", "recovered"), checkpoint(root, name, "recovered")
    apart = torch.cat([(reference[key] - found[key]).abs().flatten() for key in reference])
    assert apart.max() <= 2e-2 and apart.mean() <= 1e-5  # two steps of 1e-2; Adam's, so rounding can turn one


@pytest.mark.launcher
def test_what_trains_is_told_in_numbers(root: Path) -> None:
    said = " ".join((root / "said.txt").read_text().split())
    experts, router = 8 * 3 * 32 * 16, 8 * 32
    assert f"experts: trains {2 * (experts + router):,} parameters" in said
    assert f"router: trains {2 * router:,} parameters (0.62% of the model's 82,592): experts 0, routers {2 * router:,}" in said
    assert "experts in 4 bits: " in said


@pytest.mark.launcher
def test_the_adapter_lies_beside_the_merged_checkpoint_and_fits_the_pruned_one(root: Path) -> None:
    assert {name for name in RUNS if (root / name / "adapter").exists()} == {name for name in RUNS if "lora" in name}
    ids = torch.randint(3, 768, (2, 16), generator=torch.Generator().manual_seed(0))
    pruned = AutoModelForCausalLM.from_pretrained(root / "lora-3" / "pruned")
    recovered = AutoModelForCausalLM.from_pretrained(root / "lora-3" / "recovered")
    with torch.no_grad():
        expected, before = recovered(ids).logits, pruned(ids).logits
        found = PeftModel.from_pretrained(pruned, root / "lora-3" / "adapter")(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2


def recipe(method: str, model: Path | str = "m", **trainer: object) -> Recipe:
    pruning = {"grow": {"onto": "runs/a/recovered", "keep": 6}} if method == "new" else {}
    values = {"finetuning": {"method": method, "trainer": trainer}, "pruning": pruning}
    return Recipe.model_validate({"name": "t", "model": str(model), "task": "gsm8k"} | values)


@pytest.mark.parametrize(("method", "missing"), [("lora", "peft"), ("qlora", "bitsandbytes")])
def test_a_missing_package_is_named_before_anything_starts(method: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.recovery.method.find_spec", lambda name: None if name == missing else name)
    with raises("recovery.missing-package", f"finetuning.method {method}", f"pip install {missing}"):
        METHODS[method].check(recipe(method))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_train_the_playgrounds_model(method: str) -> None:
    METHODS[method].check(recipe(method, PLAYGROUND / "model"))


def test_experts_that_cannot_be_adapted_are_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    find_blocks(model)[1].experts.register_buffer("seen", torch.zeros(8))
    find_blocks(model)[1].experts.register_parameter("scale", torch.nn.Parameter(torch.ones(8)))
    monkeypatch.setattr("toolkit.recovery.lora.meta_model", lambda config: model)
    with pytest.raises(PollardError, match=r"The experts of model\.layers\.1\.mlp hold .*'scale'.*full, router or experts"):
        METHODS["qlora"].check(recipe("qlora", PLAYGROUND / "model"))
    METHODS["router"].check(recipe("router", PLAYGROUND / "model"))


def test_adapters_learn_at_ten_times_the_rate_unless_the_recipe_has_one(tmp_path: Path) -> None:
    rates = {method: sft_config(recipe(method), tmp_path).learning_rate for method in METHODS}
    assert rates["lora"] == rates["qlora"] == pytest.approx(10 * rates["full"])
    assert sft_config(recipe("lora", learning_rate=0.5), tmp_path).learning_rate == 0.5


def test_a_method_that_misses_a_router_is_an_error() -> None:
    model = tiny_model("mixtral")
    blocks = find_blocks(model)
    check_reach(model, blocks, METHODS["full"], LoraRecipe())
    blocks[1].router.requires_grad_(False)
    with raises("recovery.wrong-reach", "method router", "0 tensors", "model.layers.0.mlp"):
        check_reach(model, blocks, METHODS["router"], LoraRecipe())
    with raises("recovery.wrong-reach", "method experts", "model.layers.1.mlp", [2, 0]):
        check_reach(model, blocks, METHODS["experts"], LoraRecipe())
