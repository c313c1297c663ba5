"""A checkpoint for benchmarks that run the real command: Mixtral's shape, random weights, the playground's tokenizer."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).parents[1]


def make(folder: Path, layers: int, hidden: int, experts: int = 8) -> None:
    """Writes it to `folder`, in float32; two experts per token."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=768, hidden_size=hidden, intermediate_size=2 * hidden, num_local_experts=experts,
        num_experts_per_tok=2, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, eos_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "data" / "playground" / "model" / name, folder)
