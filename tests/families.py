"""Every MoE family of the installed transformers, as a tiny random model.

`python tests/families.py > docs/families.md` writes the table of which work; tests/cuts/test_families.py shows each row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from family_sizes import EXPERTS, OVERRIDES, SMALL, VOCABULARY
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from toolkit.moe import find_blocks
from toolkit.moe.load import auto_class

EXCEPTIONS = {
    "diffusion_gemma": "no: writes blocks by diffusion, so there are no next-token logits to compare or train with",
    "openai_privacy_filter": "no: labels tokens, and has no language model",
}
KEPT_LAYERS = {"hy_v4": [0, 1, 3], "jamba": [2, 3], "nemotron_h": [1, 2], "minimax": [0, 2]}
LAYER_EXCEPTIONS = {"beam": 1, "gemma4": 1}
WHOLE = ("ernie4_5_vl_moe",)  # pruned by loading the model: its text and image experts stand in one list
WIDTH_EXCEPTIONS = {
    "ernie4_5_vl_moe": ("width.several-widths", "its experts for text and for images have widths of their own"),
    "inkling": ("width.unsupported-family", "its shared experts, on the same key, are one tensor"),
}
WIDTH_WHOLE = ("inkling2",)  # loading puts the rows of its experts into another order
LAYERS_WHOLE = (*WHOLE, "inkling2")
NOTES = {
    "deepseek_v4": "its layers that look experts up by token id (`hash_moe`) are refused",
    "ernie4_5_vl_moe": "text never enters its experts for images: calibrated on text, these are kept by index; "
    "pruned by loading the whole model, not file by file",
    "qwen3_omni_moe": "its thinker",
}
HEAD = """# Families

What `pollard` prunes: every family of the installed transformers whose experts stand behind the experts interface, found
in the package, not listed by hand. Each of the {works} (of {all}) that work is shown to in
[tests/cuts/test_families.py](../tests/cuts/test_families.py), as a tiny random model: calibrate (layer by layer from the
files: exactly what the loaded model gives), select, prune (file by file), reload by stock transformers (tensors and logits
exactly those of the sliced model), compare with the masked original (1e-5), one training step, generate.
Multimodal families are pruned whole; text is what they are calibrated, trained and judged on.

This page is written by `python tests/families.py > docs/families.md`, and a test keeps it in step.
"""


def families() -> list[str]:
    """The packages of transformers whose experts stand behind the experts interface."""
    models = Path(transformers.__file__).parent / "models"
    return sorted(f.parent.name for f in models.glob("*/modeling_*.py") if "\n@use_experts_implementation" in f.read_text())


def config_class(family: str) -> type[PreTrainedConfig] | None:
    """The family's configuration with a language model: of its text part alone where that is a model of its own."""
    ours = [c for c in CONFIG_MAPPING.values() if c.__module__.split(".")[-2] == family and auto_class(c)]
    return min(ours, key=lambda c: (auto_class(c).__name__ != "AutoModelForCausalLM", "Text" not in c.__name__), default=None)


def shrunk(config: PreTrainedConfig, overrides: dict[str, Any]) -> dict[str, Any]:
    """Arguments that make the same configuration tiny."""
    default = config.to_dict()
    small = {key: value for key, value in SMALL.items() if default.get(key) is not None or key.endswith("token_id")}
    parts = {name: {} for name in config.sub_configs if getattr(config, name, None) is not None}
    small |= {name: shrunk(getattr(config, name), {}) for name in parts}
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(small.get(key), dict):
            small[key] = small[key] | value
        else:
            small[key] = value
    return small


def tiny_family(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of the family whose routers really choose (many start with zero weights and biases)."""
    torch.manual_seed(seed)
    kind = config_class(family)
    config = kind(**shrunk(kind(), OVERRIDES.get(family, {}) | changes))
    model = auto_class(kind).from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for block in find_blocks(model):
        for name, tensor in [*block.module.state_dict().items()]:
            if name.startswith(block.router_name) and tensor.ndim > 1:
                tensor.normal_(std=0.5)  # state_dict shares memory
            if "bias" in name and tensor.numel() in (EXPERTS, EXPERTS + 1):
                tensor.normal_(std=0.05)  # of the choice: less than the scores decide
            if name.endswith("balancing_biases"):
                tensor[-1] = -1.0  # Zaya's class that skips: stock loading always resets it
    return model


@torch.no_grad()
def text_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits for two fixed random sequences of 24 tokens."""
    ids = torch.randint(3, VOCABULARY - 2, (2, 24), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False).logits


@contextmanager
def minus_infinity(model: PreTrainedModel, kept: list[int]) -> Iterator[None]:
    """Every linear layer of a router gives −inf for pruned experts, and so does every bias that enters the choice."""
    pruned = [expert for expert in range(EXPERTS) if expert not in kept]
    blocks = find_blocks(model)
    linear, before = nn.functional.linear, {id(block.router): block.router.forward for block in blocks}
    rows = {EXPERTS} | {getattr(blocks[0].router, name, EXPERTS) for name in ("n_total_experts", "num_router_classes")}

    def router_linear(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = linear(*args, **kwargs).clone()
        if out.shape[-1] in rows:
            out[..., pruned] = -torch.inf
        return out

    def within(router: nn.Module) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with mock.patch.object(nn.functional, "linear", router_linear):
                return before[id(router)](*args, **kwargs)

        return call

    saved = []
    for block in blocks:
        block.router.forward = within(block.router)
        holders = [block.module, *block.router.modules()]
        own = [pair for m in holders for pair in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]]
        for name, tensor in own:
            if "bias" in name and tensor.shape[-1] in rows:
                saved.append((tensor, tensor.data.clone()))
                tensor.data[..., pruned] = -torch.inf
    yield
    for tensor, data in saved:
        tensor.data = data
    for block in blocks:
        del block.router.forward


def table() -> str:
    """docs/families.md."""
    lines = [
        f"| {family} | {EXCEPTIONS.get(family) or 'yes' + (f'; {NOTES[family]}' if family in NOTES else '')} |"
        for family in families()
    ]
    works = len(lines) - len(EXCEPTIONS)
    return "\n".join([HEAD.format(works=works, all=len(lines)), "| family | works |", "|---|---|", *lines, ""])


if __name__ == "__main__":
    print(table(), end="")
