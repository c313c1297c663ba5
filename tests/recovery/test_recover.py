"""Real ranks, real DeepSpeed: what fine-tuning leaves must not depend on how ZeRO spread it out."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from companions import add_companions, check_companions
from conftest import PLAYGROUND, ROOT, tiny_model
from rank_launcher import RANKS, free_port, ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit.runtime.zero import deepspeed_config

ZERO = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3, "offload": "3-offload", "partitioned": "partitioned.json", "bnb8": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two ranks that recovers the same tiny pruned model under every preset."""
    root = tmp_path_factory.mktemp("recover")
    raw = deepspeed_config(3)  # small tensors stay whole by default: here everything is partitioned
    raw["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (root / "partitioned.json").write_text(json.dumps(raw))
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    recipes = {}
    for name, zero in ZERO.items():
        pruned = root / name / "pruned"
        model.save_pretrained(pruned)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(PLAYGROUND / "model" / file, pruned)
        add_companions(pruned, without="skipping.json")
        trainer = {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-3, "eval_steps": 2}
        trainer |= {"eval_strategy": "steps", "optim": "adamw_bnb_8bit" if name == "bnb8" else "adamw_torch"}
        recipes[name] = {
            "name": name,
            "model": str(root / "zero2" / "pruned") if name == "zero2" else "the/original",
            "task": {"name": "playground/arithmetic", "dev_examples": 8},
            "finetuning": {"zero": str(root / zero) if str(zero).endswith("json") else zero, "examples": 40, "trainer": trainer},
        }
    (root / "recipes.json").write_text(json.dumps(recipes))
    port = free_port()
    (root / "port").write_text(port)
    command = ranks(RANKS, str(ROOT / "tests" / "recovery" / "every_stage.py"), str(root), port=port)
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return root


def facts(root: Path, name: str) -> dict:
    return json.loads((root / name / "facts.json").read_text())


@pytest.mark.launcher
def test_the_first_loss_is_the_same_under_every_stage(root: Path) -> None:
    first = {name: facts(root, name)["first_loss"] for name in ZERO}
    assert all(loss == pytest.approx(first["zero0"], rel=1e-5) for loss in first.values()), first


# DeepSpeed's own buffers would stay, 66 MiB of RAM per rank and launch.
@pytest.mark.launcher
def test_no_shared_memory_outlives_the_ranks(root: Path) -> None:
    assert not list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{(root / 'port').read_text()}_*"))


@pytest.mark.launcher
@pytest.mark.parametrize("name", ZERO)
def test_a_stock_reader_finds_a_whole_trained_checkpoint(root: Path, name: str) -> None:
    before, after = (load_file(root / name / which / "model.safetensors") for which in ("pruned", "recovered"))
    assert {key: tensor.shape for key, tensor in before.items()} == {key: tensor.shape for key, tensor in after.items()}
    assert all((after[key] != before[key]).any() for key in before if "experts" in key or "gate" in key)
    AutoModelForCausalLM.from_pretrained(root / name / "recovered")
    assert AutoTokenizer.from_pretrained(root / name / "recovered").chat_template
    configs = [json.loads((root / name / which / "config.json").read_text()) for which in ("pruned", "recovered")]
    for key in ("router_aux_loss_coef", "output_router_logits", "num_local_experts", "dtype"):
        assert configs[0][key] == configs[1][key]


@pytest.mark.launcher
@pytest.mark.parametrize("name", [*ZERO, "control"])
def test_what_lies_beside_the_weights_is_there_under_every_stage(root: Path, name: str) -> None:
    source, target = ("zero2/pruned", "zero2/control") if name == "control" else (f"{name}/pruned", f"{name}/recovered")
    check_companions(root / source, root / target, num_experts=8)
    signed = json.loads((root / target / "pollard.json").read_text())
    assert (signed["what"], signed["source"]) == ("fine-tuned checkpoint", str(root / source))


@pytest.mark.launcher
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "offload", "partitioned"])
def test_training_leaves_the_same_weights_under_every_stage(root: Path, name: str) -> None:
    reference, found = (load_file(root / which / "recovered" / "model.safetensors") for which in ("zero0", name))
    # Adam turns a rounding difference in a near-zero gradient into a step of full size: a few entries, by 4 steps of 1e-3
    apart = torch.cat([(reference[key] - found[key]).abs().flatten() for key in reference])
    assert apart.max() <= 4e-3 and apart.mean() <= 1e-6


@pytest.mark.launcher
def test_the_training_log_tells_train_and_dev_loss(root: Path) -> None:
    log = [json.loads(line) for line in (root / "zero2" / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2, 4]


@pytest.fixture(scope="module")
def in_parts(root: Path) -> dict:
    """What two ranks found that loaded the model under ZeRO-3."""
    return json.loads((root / "in_parts.json").read_text())


@pytest.mark.launcher
def test_no_rank_holds_the_model_whole(in_parts: dict) -> None:
    assert sum(in_parts["without_padding"]) == in_parts["total"]
    assert max(in_parts["held"]) <= in_parts["total"] / 2 + 64  # an odd tensor is padded to even parts


@pytest.mark.launcher
def test_a_load_that_forgets_the_experts_is_noticed_before_training_on_every_rank(in_parts: dict) -> None:
    assert len(in_parts["forgotten"]) == 2
    for said in in_parts["forgotten"]:
        assert "the model was loaded, but its weights are not those in" in said.lower()
        assert "model.layers.0, model.layers.1 (sum of squares of model.layers.0" in said


@pytest.mark.launcher
def test_initialised_experts_of_one_layer_are_noticed_and_named(in_parts: dict) -> None:
    assert ": model.layers.1 (sum of squares of model.layers.1" in in_parts["initialised"]
