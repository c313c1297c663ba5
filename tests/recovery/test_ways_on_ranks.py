"""Two real ranks, real DeepSpeed: the router gradient over all experts, shared adapters, kept zeros and spp, under ZeRO-2 and
ZeRO-3 with everything partitioned; each given up under ZeRO-3 and started again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, tiny_model
from peft import PeftModel
from safetensors.torch import load_file
from sparse_checkpoint import make_sparse
from test_resume import launch, log_of, weights
from transformers import AutoModelForCausalLM

from toolkit.runtime.zero import deepspeed_config

WAYS: dict[str, dict] = {
    "routers": {"method": "experts", "router_gradient": "all"},
    "usual": {"method": "experts"},
    "shared": {"method": "lora", "lora": {"rank": 4, "experts": "shared"}},
    "qshared": {"method": "qlora", "lora": {"rank": 4, "experts": "shared"}},
    "zeros": {"method": "full", "keep_zeros": True},
    "spp": {"method": "spp"},
    "packed": {"method": "experts", "packing": True},
}
TRAINER = {
    "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2, "eval_strategy": "no",
    "save_steps": 2, "weight_decay": 0.1, "warmup_steps": 0,
}  # fmt: skip


def recipe(root: Path, name: str, way: str, zero: int | str) -> dict:
    shutil.copytree(root / "original", root / name / "pruned")
    trainer = TRAINER | {"gradient_checkpointing": zero != 2}
    return {
        "name": name,
        "model": str(root / "original"),
        "task": {"name": "playground/arithmetic", "dev_examples": 8},
        "finetuning": WAYS[way] | {"zero": zero, "examples": 16, "trainer": trainer},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ways")
    make_sparse(tiny_model("mixtral", vocab_size=768, eos_token_id=1)).save_pretrained(root / "original")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(PLAYGROUND / "model" / file, root / "original")
    stage = deepspeed_config(3)
    stage["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # here everything is partitioned
    (root / "3.json").write_text(json.dumps(stage))
    given_up = {f"{way}-3": recipe(root, f"{way}-3", way, str(root / "3.json")) for way in WAYS if way != "usual"}
    others = {f"{way}-2": recipe(root, f"{way}-2", way, 2) for way in WAYS}
    others |= {f"{way}-undisturbed": recipe(root, f"{way}-undisturbed", way, str(root / "3.json")) for way in WAYS}
    for recipes in ({name: values | {"stop_at": 3} for name, values in given_up.items()}, given_up | others):
        process = launch(root, recipes)
        output, _ = process.communicate(timeout=540)
        assert process.returncode == 0, output[-8000:]
    (root / "output").write_text(output)
    failed = {path.parent.name: path.read_text() for path in root.glob("*/facts.json") if "error" in json.loads(path.read_text())}
    assert not failed, failed
    return root


@pytest.mark.launcher
@pytest.mark.parametrize("way", [way for way in WAYS if way != "usual"])
def test_given_up_and_started_again_it_ends_bit_for_bit_as_undisturbed(root: Path, way: str) -> None:
    assert f"going on from {root}/{way}-3/checkpoints/recovered/checkpoint-2" in (root / "output").read_text()
    found, expected = weights(root, f"{way}-3"), weights(root, f"{way}-undisturbed")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert log_of(root, f"{way}-3") == log_of(root, f"{way}-undisturbed")


@pytest.mark.launcher
@pytest.mark.parametrize("way", WAYS)
def test_both_stages_leave_the_same_weights_in_a_stock_checkpoint(root: Path, way: str) -> None:
    two, three, before = (
        weights(root, f"{way}-2"),
        weights(root, f"{way}-undisturbed"),
        load_file(root / "original/model.safetensors"),
    )
    assert {key: tensor.shape for key, tensor in two.items()} == {key: tensor.shape for key, tensor in before.items()}
    apart = torch.cat([(two[key] - three[key]).abs().flatten() for key in two])
    assert apart.max() <= 4e-2 and apart.mean() <= 1e-5  # four steps of 1e-2; Adam's, so rounding can turn one
    assert any(not torch.equal(two[key], before[key]) for key in two if ".experts." in key)
    AutoModelForCausalLM.from_pretrained(root / f"{way}-2" / "recovered")


@pytest.mark.launcher
def test_the_first_loss_is_the_usual_one_and_routers_go_another_way(root: Path) -> None:
    for zero in ("2", "undisturbed"):
        assert log_of(root, f"routers-{zero}")[0]["loss"] == log_of(root, f"usual-{zero}")[0]["loss"]
        found, usual = weights(root, f"routers-{zero}"), weights(root, f"usual-{zero}")
        assert any(not torch.equal(found[key], usual[key]) for key in usual if key.endswith("gate.weight"))


@pytest.mark.launcher
def test_packed_rows_learn_and_count_what_padded_ones_do(root: Path) -> None:
    for zero in ("2", "undisturbed"):
        found, usual = log_of(root, f"packed-{zero}"), log_of(root, f"usual-{zero}")
        for key in ("loss", "num_tokens", "entropy", "mean_token_accuracy"):
            assert [entry[key] for entry in found if key in entry] == pytest.approx(
                [entry[key] for entry in usual if key in entry], rel=1e-3
            ), key


@pytest.mark.launcher
@pytest.mark.parametrize("way", ["zeros", "spp"])
@pytest.mark.parametrize("zero", ["2", "undisturbed"])
def test_the_zeros_are_those_of_the_checkpoint_before_bit_for_bit(root: Path, way: str, zero: str) -> None:
    before, after = load_file(root / "original/model.safetensors"), weights(root, f"{way}-{zero}")
    for key, tensor in before.items():
        if (tensor == 0).any():
            assert torch.equal(tensor == 0, after[key] == 0), key


@pytest.mark.launcher
@pytest.mark.parametrize("zero", ["2", "undisturbed"])
def test_stock_peft_puts_the_shared_adapter_on_the_pruned_checkpoint(root: Path, zero: str) -> None:
    folder = root / f"shared-{zero}"
    ids = torch.randint(3, 768, (2, 16), generator=torch.Generator().manual_seed(0))
    pruned = AutoModelForCausalLM.from_pretrained(folder / "pruned")
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder / "recovered")(ids).logits
        found = PeftModel.from_pretrained(pruned, folder / "adapter")(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.launcher
@pytest.mark.parametrize("way", ["shared", "qshared"])
def test_beside_the_adapter_stands_that_some_servers_drop_what_belongs_to_experts(root: Path, way: str) -> None:
    text = (root / f"{way}-2" / "adapter" / "README.md").read_text()
    assert text.startswith("---\n") and "library_name: peft" in text and "[More Information Needed]" not in text
    assert "`recovered`" in text and "servers" in text
