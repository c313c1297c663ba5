"""Loads a mixture of experts for llm-compressor, and again what it has written.

llm-compressor quantizes `nn.Linear` modules, so a mixture's fused experts become a module per expert and matrix
(`experts.3.gate_proj`), and would be written under these names, which no reader finds in a family whose files say `w1`.
transformers knows what they say: its own table of how files become fused parameters is where the names are taken from.
transformers itself cannot load the result: it warns that weights are missing, and draws the experts at random.
"""

import re
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import apply_quantization_config
from llmcompressor.modeling.moe.linearize import linearize_moe
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, revert_weight_conversion

WHOLE = ["lm_head", "re:.*gate$", "re:.*router$"]
"""Modules that are not quantized, in the words of the model. The configuration names them as the files do."""
MATRICES = {"gate_up_proj": ["gate_proj", "up_proj"], "up_proj": ["up_proj"], "down_proj": ["down_proj"]}
"""The modules that llm-compressor makes of a fused parameter."""


def load_source(folder: str) -> PreTrainedModel:
    """The model of a stock checkpoint, taken apart, in the dtype of its files."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return _taken_apart(model)


def load_compressed(folder: str) -> PreTrainedModel:
    """The model of a folder that llm-compressor has written, with every weight filled, ready to answer.

    Raises RuntimeError where a weight of the folder finds no place in the model, or a place in the model no weight.
    """
    config = AutoConfig.from_pretrained(folder)
    settings = config.quantization_config | {"ignore": [*config.quantization_config["ignore"], *WHOLE]}
    del config.quantization_config
    model = _taken_apart(AutoModelForCausalLM.from_config(config, dtype=config.dtype))
    compressor = ModelCompressor.from_compression_config(CompressedTensorsConfig(**settings))
    apply_quantization_config(model, compressor.quantization_config, run_compressed=False)
    compressor.compress_model(model=model)
    places = revert_weight_conversion(model, model.state_dict())
    stored = {name: tensor for file in sorted(Path(folder).glob("*.safetensors")) for name, tensor in load_file(file).items()}
    tied = set(model._tied_weights_keys or ()) if config.get_text_config().tie_word_embeddings else set()
    faults = sorted(places.keys() - stored.keys() - tied) + sorted(stored.keys() - places.keys())
    if faults:
        raise RuntimeError(f"weights of {folder} do not fit the model: {', '.join(faults[:4])} ({len(faults)} in all)")
    with torch.no_grad():
        for name, tensor in stored.items():
            places[name].copy_(tensor)
    model.tie_weights()
    return model.eval()


def _taken_apart(model: PreTrainedModel) -> PreTrainedModel:
    """With a module per expert and matrix, which are saved under the names that the family's files have for them."""
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    linearize_moe(model)
    model._weight_conversions = [  # type: ignore[assignment]
        renamed for conversion in conversions for renamed in _by_matrix(conversion)
    ]
    return model


def _by_matrix(conversion: Any) -> list[Any]:
    """Of a conversion that fuses experts, one that renames each of their matrices; any other as it is."""
    found = [re.search(r"experts\.\*\.(\w+)\.weight", pattern) for pattern in conversion.source_patterns]
    if not isinstance(conversion, WeightConverter) or not all(found):
        return [] if isinstance(conversion, WeightConverter) and "experts." in conversion.target_patterns[0] else [conversion]
    names = [match[1] for match in found if match]
    return [
        WeightRenaming(source_patterns=rf"\.experts\.(\d+)\.{name}\.", target_patterns=rf".experts.\1.{matrix}.")
        for name, matrix in zip(names, MATRICES[conversion.target_patterns[0].rpartition(".")[2]], strict=True)
    ]
