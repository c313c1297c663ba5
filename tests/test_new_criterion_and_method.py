"""Law: a new criterion is a function and one line, a new method of fine-tuning a file and one line, and recipes know both.

Shown in a copy of the package: what CONTRIBUTING.md says is done there, and a recipe is run with both.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from rank_launcher import free_port
from safetensors.torch import load_file
from small_run import make_small, small_values

CRITERION = '''def peak_per_token(statistics: ExpertStatistics, block: str, tokens: Tokens, seed: int) -> torch.Tensor:
    """max ‖f‖ / n: a strong expert that few tokens reach."""
    return statistics.get(block, "max_norm", tokens) / statistics.get(block, "count", tokens).clamp(min=1)


'''
METHOD = '''"""Fine-tune the attention alone."""

from typing import Any

from transformers import PreTrainedModel

from toolkit.moe import MoEBlock
from toolkit.recipe.finetuning import LoraRecipe
from toolkit.recovery.method import Loaded, Reach, RecoveryMethod, TrainedMemory, memory_of_part


class Attention(RecoveryMethod):
    name, meaning = "attention", "the attention alone"
    learning_rate = 1e-3
    saves_frozen_weights = True

    def set_up(self, loaded: Loaded, lora: LoraRecipe) -> Any:
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_("self_attn" in name)
        return loaded.model

    def reach(self, block: MoEBlock, lora: LoraRecipe) -> Reach:
        return Reach(experts=0, router=False)

    def memory(self, model: PreTrainedModel, lora: LoraRecipe) -> TrainedMemory:
        return memory_of_part(model, sum(p.numel() for name, p in model.named_parameters() if "self_attn" in name))
'''


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the changed package, in which a recipe with both has run as far as `recover`."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "toolkit", folder / "toolkit", ignore=shutil.ignore_patterns("__pycache__"))
    criteria, methods = (folder / "toolkit" / name for name in ("selection/criteria.py", "recovery/methods.py"))
    edit(criteria, "CRITERIA: dict", CRITERION + "CRITERIA: dict")
    line = '        ScoreCriterion(max_activation, reads=("max_norm",)),\n'
    edit(criteria, line, line + '        ScoreCriterion(peak_per_token, reads=("max_norm", "count")),\n')
    (folder / "toolkit" / "recovery" / "attention.py").write_text(METHOD)
    edit(
        methods,
        "from toolkit.recovery.lora import",
        "from toolkit.recovery.attention import Attention\nfrom toolkit.recovery.lora import",
    )
    edit(methods, "Spp())\n}", "Spp(), Attention())\n}")
    choices = pollard(folder, "recipes", "--choices")
    (folder / "toolkit" / "recipe" / "choices.py").write_text(choices)
    make_small(folder)
    trainer = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 2, "logging_steps": 1}
    trainer |= {"eval_strategy": "no", "save_strategy": "no"}
    values = small_values(
        pruning={"keep": 4, "criterion": "peak_per_token"},
        finetuning={"method": "attention", "zero": 0, "examples": 8, "trainer": trainer},
        evaluation__models=["recovered"],
    )
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    (folder / "said.txt").write_text(pollard(folder, "recover", "small.yaml"))
    return folder


def pollard(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "MASTER_PORT": free_port()}
    command = [sys.executable, "-m", "toolkit.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_a_new_criterion_selects(folder: Path) -> None:
    plan = json.loads((folder / "runs" / "small" / "plan.json").read_text())
    assert "peak_per_token" in (plan.get("criterion"), *(cut.get("criterion") for cut in plan.get("cuts", [])))


def test_a_new_method_trains_what_it_says(folder: Path) -> None:
    run = folder / "runs" / "small"
    before, after = (load_file(run / which / "model.safetensors") for which in ("pruned", "recovered"))
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != ("self_attn" in name), name
    assert "attention: trains " in (folder / "said.txt").read_text()
    assert "learning rate 0.001 (auto)" in (folder / "said.txt").read_text()
