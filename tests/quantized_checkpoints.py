"""Small checkpoints in quantized numbers, as their makers store them."""

from pathlib import Path

import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file


def in_fp8(folder: Path) -> Path:
    """A checkpoint whose experts are stored in FP8, as DeepSeek does; its configuration says bfloat16."""
    model = tiny_model("mixtral", torch.bfloat16)
    model.config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[name] = tensor.to(torch.float8_e4m3fn) if ".experts." in name else tensor
        tensors |= {f"{name}_scale_inv": torch.ones(1, 1)} if ".experts." in name else {}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def in_mxfp4(folder: Path) -> Path:
    """A checkpoint whose experts are stored in MXFP4, as gpt-oss does: 32 numbers of four bits share a scale."""
    model = tiny_model("gpt_oss", torch.bfloat16, intermediate_size=32)
    model.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    model.save_pretrained(folder)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if not name.endswith("_proj")}
    for layer in range(2):
        for name, rows in (("gate_up_proj", 64), ("down_proj", 32)):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            tensors[f"{stem}_blocks"] = torch.zeros(8, rows, 1, 16, dtype=torch.uint8)
            tensors[f"{stem}_scales"] = torch.zeros(8, rows, 1, dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
