"""Every MoE family of the installed transformers, as a tiny random model.

`python tests/families.py > docs/families.md` writes the table of which work; tests/cuts/test_families.py shows each row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
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
WHOLE = ("ernie4_5_vl_moe",)  # pruned by loading the model: its text and image experts stand in one list
NOTES = {
    "deepseek_v4": "its layers that look experts up by token id (`hash_moe`) are refused",
    "ernie4_5_vl_moe": "text never enters its experts for images: calibrated on text, these are kept by index; "
    "pruned by loading the whole model, not file by file",
    "qwen3_omni_moe": "its thinker",
}

WIDTH_EXCEPTIONS = {
    "ernie4_5_vl_moe": "no: its experts for text and for images have widths of their own",
    "inkling": "no: its shared experts hang on the same key, and are no plain MLP",
}
WIDTH_WHOLE = ("inkling2",)  # pruned by loading the model
WIDTH_NOTES = {
    "inkling2": "pruned by loading the whole model, not file by file: loading puts the rows of its experts into another order",
    "jamba": "its dense layers narrow, too",
}

LAYER_EXCEPTIONS = {
    "beam": "no: how much a layer adds to the residual stream follows from its number",
    "minimax": "no: the decay of its linear attention follows from a layer's number and from how many there are",
}
KEPT_LAYERS = {"hy_v4": [0, 1, 3], "jamba": [2, 3], "nemotron_h": [1, 2]}  # of four; others keep 0, 2 and 3
LAYERS_WHOLE = (*WHOLE, "inkling2")  # pruned by loading the model
LAYER_CHANGES: dict[str, dict[str, Any]] = {"gemma4": {"hidden_size_per_layer_input": 0}}
BORROWING = "a layer stays together with those that use its indexer's choice"
LAYER_NOTES = {
    "ernie4_5_vl_moe": "pruned by loading the whole model, not file by file",
    "gemma4": "its last full-attention layer stays; not with per-layer embeddings, which lie in one table for all layers",
    "glm5_next": BORROWING,
    "glm_moe_dsa": BORROWING,
    "hy_v4": BORROWING,
    "inkling2": "layer 0 stays; whole residual blocks go, or the last layers; pruned by loading the whole model",
    "jamba": "whole periods go, or the last layers",
    "mistral_large4": f"{BORROWING}, or its keys and values",
    "zaya": "layer 0 stays",
}


OTHER_FORM = "no: no dense family has its attention and norms, and its configuration has no dense layers"
FACTOR = "no: its blocks multiply what the experts give by a number"
DENSE_EXCEPTIONS = {
    "axk1": "no: a norm stands behind each block's experts",
    "axk2": "no: its layers with experts have other norms than dense ones",
    "beam": FACTOR,
    "deepseek_v4": OTHER_FORM,
    "diffusion_gemma": "no",
    "ernie4_5_vl_moe": "no: every layer has two sets of experts",
    "gemma4": "no: its experts stand beside a dense layer, between norms of their own",
    "gpt_oss": "no: its experts have biases, which a feed-forward layer would add up whatever the token",
    "hy_v4": "no: its dense layers clamp otherwise than its experts",
    "inkling": "no: its shared experts are no plain MLP",
    "inkling2": OTHER_FORM,
    "kolibri1": OTHER_FORM,
    "minimax": OTHER_FORM,
    "minimax_m2": OTHER_FORM,
    "minimax_m3_vl": FACTOR,
    "muse_spark": "no: each expert has a norm behind it",
    "nemotron_h": "no: its experts have no gate",
    "olmoe": OTHER_FORM,
    "openai_privacy_filter": "no",
    "phimoe": OTHER_FORM,
    "qwen4_exp": OTHER_FORM,
    "zaya": OTHER_FORM,
}
ITSELF = "as itself, every layer dense"
DENSE_NOTES = {
    "aria": "as `llama`",
    "cohere2_moe": "as `cohere2`",
    "ernie4_5_moe": "as `ernie4_5`",
    "flex_olmo": "as `olmo2`",
    "granitemoe": "as `granite`",
    "granitemoe_swa": "as `granite_swa`",
    "granitemoeshared": "as `granite`",
    "hunyuan_v1_moe": "as `hunyuan_v1_dense`",
    "lfm2_moe": "as `lfm2`",
    "mixtral": "as `mistral`",
    "qwen2_moe": "as `qwen2`",
    "qwen3_5_moe": "as `qwen3_5_text`",
    "qwen3_moe": "as `qwen3`",
    "qwen3_vl_moe": "as `qwen3_vl`",
    "solar_open": "as `llama`",
}


REFIT_EXCEPTIONS = {"muse_spark": "no: each expert's output is normalised behind its down projection"}
OWN_OUTPUT = "to each block's own output"
REFIT_NOTES = dict.fromkeys(
    (
        "afmoe", "axk1", "beam", "deepseek_v4", "flex_olmo", "gemma4", "glm5_next", "hy_v4", "inkling", "inkling2", "kolibri1",
        "qwen4_exp", "zaya",
    ),
    OWN_OUTPUT,
)  # fmt: skip


class Column(NamedTuple):
    """A column of the table: families that cannot be cut in a way, and what is to be known of some that can."""

    exceptions: dict[str, str]
    notes: dict[str, str]
    usual: str = ""  # of families without a note


COLUMNS = {
    "experts": Column(EXCEPTIONS, NOTES),
    "width": Column(dict.fromkeys(EXCEPTIONS, "no") | WIDTH_EXCEPTIONS, WIDTH_NOTES),
    "layers": Column(dict.fromkeys(EXCEPTIONS, "no") | LAYER_EXCEPTIONS, LAYER_NOTES),
    "dense": Column(DENSE_EXCEPTIONS, DENSE_NOTES, ITSELF),
    "refit": Column(dict.fromkeys(EXCEPTIONS, "no") | REFIT_EXCEPTIONS, REFIT_NOTES),
}
HEAD = """# Families

What `pollard` prunes: every family of the installed transformers whose experts stand behind the experts interface, found
in the package, not listed by hand; each is tried as a tiny random model. Multimodal families are pruned whole; text is what they
are calibrated, trained and judged on.

**Experts** ({experts} of {all} families), in [tests/cuts/test_families.py](../tests/cuts/test_families.py): calibrate (layer by
layer from the files: exactly what the loaded model gives), select, prune (file by file), reload by stock transformers (tensors
and logits exactly those of the sliced model), compare with the masked original (1e-5), one training step, generate.

**Width** ({width} of {all}), in [tests/cuts/test_width_families.py](../tests/cuts/test_width_families.py): the same for narrower
experts, alone, together with fewer experts, and with fewer layers as well. Shared experts whose size hangs on the same key narrow
in proportion.

**Layers** ({layers} of {all}), in [tests/cuts/test_layer_families.py](../tests/cuts/test_layer_families.py): the same for fewer
layers, alone and together with fewer experts; generated text is the same with and without a cache. At least one layer with
experts stays, and one with attention.

**Dense** ({dense} of {all}), in [tests/cuts/test_dense_families.py](../tests/cuts/test_dense_families.py): what stays as a
[dense model](dense.md), of a dense family or of the same one with every layer dense: the model with fixed gate weights (1e-5),
written, and reloaded by stock transformers with every tensor filled and none left over.

**Refit** ({refit} of {all}), in [tests/recovery/test_refit_layers.py](../tests/recovery/test_refit_layers.py): with half of the
experts, every layer comes nearer to the original's residual stream, or, where the layer does not add the block's output as it is,
the block to the original block's own output ([refit](refit.md)).

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
def minus_infinity(model: PreTrainedModel, kept: list[int] | dict[str, list[int]]) -> Iterator[None]:
    """Every linear layer of a router gives −inf for pruned experts, and so does every bias that enters the choice. `kept`: in
    every block, or by block."""
    blocks, linear = find_blocks(model), nn.functional.linear
    before = {id(block.router): block.router.forward for block in blocks}
    rows = {EXPERTS} | {getattr(blocks[0].router, name, EXPERTS) for name in ("n_total_experts", "num_router_classes")}

    def within(router: nn.Module, pruned: list[int]) -> Any:
        def router_linear(*args: Any, **kwargs: Any) -> torch.Tensor:
            out = linear(*args, **kwargs).clone()
            if out.shape[-1] in rows:
                out[..., pruned] = -torch.inf
            return out

        def call(*args: Any, **kwargs: Any) -> Any:
            with mock.patch.object(nn.functional, "linear", router_linear):
                return before[id(router)](*args, **kwargs)

        return call

    saved = []
    for block in blocks:
        stay = kept[block.name] if isinstance(kept, dict) else kept
        pruned = [expert for expert in range(EXPERTS) if expert not in stay]
        block.router.forward = within(block.router, pruned)
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
    found = families()
    works = {name: len(found) - len(column.exceptions) for name, column in COLUMNS.items()}
    rows = [["family", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    rows += [[family, *(cell(family, column) for column in COLUMNS.values())] for family in found]
    return "\n".join([HEAD.format(all=len(found), **works), *(f"| {' | '.join(row)} |" for row in rows), ""])


def cell(family: str, column: Column) -> str:
    return column.exceptions.get(family) or "; ".join(["yes", *filter(None, [column.notes.get(family, column.usual)])])


if __name__ == "__main__":
    print(table(), end="")
