"""A tiny random model of the family that a recipe names, with as many experts, and rows for its task."""

import json
from pathlib import Path
from typing import Any

import torch
from conftest import PLAYGROUND, ROOT, tiny_model
from safetensors.torch import load_file, save_file

CHOICES = ("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok")  # kept as published
ROWS: dict[str, dict[str, Any]] = {  # columns of the published data sets
    "gsm8k": {"question": "A hen lays 5 eggs a week. How many in 2?", "answer": "5*2 = <<5*2=10>>10 eggs.\n#### 10"},
    "math": {"problem": "What is $\\frac12 + \\frac13$?", "solution": "It is $\\boxed{\\frac56}$.", "level": "Level 1"},
    "classification": {"text": "Shares fell after the bank's report.", "label": 2},
    "custom": {
        "question": "How many heads?",
        "context": "CREATE TABLE head (age INTEGER)",
        "answer": "SELECT COUNT(*) FROM head",
    },
}


def save_tiny(published: Path, folder: Path) -> None:
    """`published`: a folder with the real model's config.json."""
    config = json.loads((published / "config.json").read_text())
    numbers = {key: config[key] for key in CHOICES if key in config}
    wide = {"intermediate_size": 32} if "quantization_config" in config else {}  # MXFP4 scales 32 weights at a time
    numbers |= {"max_position_embeddings": 4096}  # solved examples stand before some questions
    model = tiny_model(config["model_type"], torch.bfloat16, vocab_size=768, eos_token_id=1, **(numbers | wide))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes((PLAYGROUND / "model" / file).read_bytes())
    if "quantization_config" in config:
        _to_mxfp4(folder, config["quantization_config"])


def _to_mxfp4(folder: Path, said: dict[str, Any]) -> None:
    """Random experts, as gpt-oss stores them: four bits a weight, and a scale for every 32."""
    tensors, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = tensors.pop(name).shape  # [E, in, out]
        shape = (experts, rows, width // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=draw, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 124, shape, generator=draw, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))


def write_rows(task: str, path: Path, count: int) -> None:
    """Lines as the task's data set has them, no two the same."""
    text = next(key for key in ("question", "problem", "text") if key in ROWS[task])
    rows = [ROWS[task] | {text: f"{ROWS[task][text]} ({number})"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def published(name: str) -> Path:
    return ROOT / "benchmarks" / "scaling" / name
