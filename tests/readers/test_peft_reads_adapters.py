"""`adapter/` on `pruned/`, by stock PEFT: the model that `recovered/` is."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_run import small_folder, small_recipe

from toolkit.pipeline.runner import run

PROGRAM = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

pruned, adapter, recovered = (f"runs/small/{name}" for name in ("pruned", "adapter", "recovered"))
ids = torch.randint(3, 700, (2, 24), generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    before = AutoModelForCausalLM.from_pretrained(pruned)(ids).logits
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pruned), adapter).eval()(ids).logits
    whole = AutoModelForCausalLM.from_pretrained(recovered)(ids).logits
print((adapted - whole).abs().max().item(), (before - whole).abs().max().item(), "toolkit" in sys.modules)
"""


@pytest.mark.launcher
def test_an_adapter_on_the_pruned_model_is_the_recovered_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    with small_folder(tmp_path_factory, "adapters") as folder:
        settings = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01, "report_to": "none"}
        run(small_recipe(finetuning={"method": "lora", "zero": 0, "trainer": settings}, evaluation__models=["recovered"]))
        program = Path("program.py")
        program.write_text(PROGRAM)
        done = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, check=True)
        apart, trained, toolkit_is_there = done.stdout.split()[-3:]
        assert toolkit_is_there == "False"
        assert float(trained) > 1e-2
        assert float(apart) < 1e-4
