"""The mixture of experts that can hold a dense model: a stock family with the same tensors outside of the feed-forward layers.

    llama       model.layers.3.mlp.{gate_proj, up_proj, down_proj}      everything else has the same name and shape in both,
    mixtral     model.layers.3.mlp.{gate, experts}                      and does the same

The counterpart of the dense twin (toolkit/cuts/dense_twins.py). No list says which dense families can be taken: both models are
built without weights and compared tensor by tensor; then small copies of both, with random weights, must answer alike, on a text
longer than the attention's window, near its beginning and near the last position, and at a scale at which norms show their
epsilon. (Llama, Helium, SmolLM3 and Ministral have the same tensors, and treat positions in four ways.)

Shape legend: B sequences, S positions, V vocabulary.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from toolkit.cuts.apply import shapes_of
from toolkit.cuts.mlp_layout import MlpLayout, mlp_layout
from toolkit.cuts.upcycling.forms import WIDTH_MULTIPLE, Form
from toolkit.cuts.upcycling.tensors import Place, upcycled_tensors
from toolkit.moe.blocks import MoEBlock, blocks_in, find_blocks
from toolkit.moe.layers import decoder_layers
from toolkit.moe.load import auto_class, meta_model, quantization_of
from toolkit.moe.open_errors import explained
from toolkit.runtime.errors import PollardError

NOT_CARRIED = ("model_type", "architectures", "auto_map", "transformers_version", "quantization_config", "dtype")
SMALL_VOCABULARY, SMALL_WIDTH, SMALL_WINDOW, SMALL_TOKENS = 64, 24, 4, 24
SMALL_EMBEDDINGS = 0.03  # times their usual size: beside it the epsilon of the first norm shows
DIFFERENCE = 1e-4  # of the largest logit of the small copies: more is another computation, less is rounding


class Upcycled(NamedTuple):
    """A dense model and the mixture of experts that it becomes, both without weights."""

    dense: PreTrainedModel
    model: PreTrainedModel
    places: tuple[Place, ...]


class _Mismatch(Exception):
    """Why a family cannot hold a dense model; a phrase about the family."""


def upcycled(config: Any, form: Form) -> Upcycled:
    """What a dense model of this configuration becomes in `form`. Raises PollardError, with the reason, where it is no dense
    language model and where no family can hold it."""
    _check_dense(config)
    dense = meta_model(config)
    reasons: dict[str, list[str]] = {}
    for family in form.families:
        try:
            found = _in_family(dense, family, form)
            _check_small_copies(config, family, form)
            return found
        except _Mismatch as reason:
            reasons.setdefault(str(reason), []).append(family)
    why = "; ".join(f"{', '.join(families)}: {reason}" for reason, families in reasons.items())
    raise PollardError(
        f"{config.model_type} cannot be upcycled as {form.name}, for no family of experts can hold it: {why}. docs/upcycle.md "
        "says what can be.",
        code="upcycle.no-family",
    )


def _check_dense(config: Any) -> None:
    if quantized := quantization_of(config):
        raise PollardError(
            f"Its weights are quantized ({quantized}), and experts are made of plain numbers: start from the model's bfloat16 "
            "copy.",
            code="upcycle.quantized",
        )
    if config.get_text_config() is not config:
        raise PollardError(
            f"{config.model_type} is a model of several parts: give the checkpoint of its language model alone.",
            code="upcycle.several-parts",
        )
    if blocks := blocks_in(meta_model(config)):
        raise PollardError(
            f"{config.model_type} is a mixture of experts already ({len(blocks)} layers with {blocks[0].expert_count} experts): "
            "upcycling makes one of a dense model.",
            code="upcycle.not-dense",
        )


def _in_family(dense: PreTrainedModel, family: str, form: Form) -> Upcycled:
    """Raises _Mismatch where tensors differ outside of the feed-forward layers, or these compute something else."""
    layers_path, layers = decoder_layers(dense.eval())  # without dropout, which some feed-forward layers have
    probe = meta_model(_moe_config(dense, family, form, 1))
    blocks = find_blocks(probe)
    if [block.name.rpartition(".")[0] for block in blocks] != [f"{layers_path}.{number}" for number in range(len(layers))]:
        raise _Mismatch("other layers")
    mlps, layout = dict(dense.named_modules()), None
    for block in blocks:
        try:
            layout = mlp_layout(mlps[block.name], block.experts) if block.name in mlps else None
        except RuntimeError:  # of an activation with weights, which there are none of
            layout = None
        if layout is None:
            raise _Mismatch(f"its experts do not compute what {block.name} does")
    assert layout is not None
    down: Any = dense.get_submodule(f"{blocks[0].name}.{layout.down}")
    if form.widths(down.in_features).routed % WIDTH_MULTIPLE:
        raise _Mismatch(f"experts have a multiple of {WIDTH_MULTIPLE} channels, and its {block.name} has {down.in_features}")
    model = meta_model(_moe_config(dense, family, form, int(down.in_features)))
    blocks = find_blocks(model)
    _compare(dense, model, tuple(f"{block.name}." for block in blocks))
    return Upcycled(dense, model, tuple(_place(model, block, layout) for block in blocks))


def _compare(dense: PreTrainedModel, model: PreTrainedModel, replaced: tuple[str, ...]) -> None:
    ours, theirs = (
        {name: shape for name, shape in shapes_of(each).items() if not name.startswith(replaced)} for each in (dense, model)
    )
    for names, what in (
        (ours.keys() - theirs.keys(), "it lacks"),
        (theirs.keys() - ours.keys(), "it also has"),
        ({name for name in ours if ours[name] != theirs.get(name)}, "another shape of"),
    ):
        if names:
            raise _Mismatch(f"{what} {min(names)}" + f" and {len(names) - 1} tensors more" * (len(names) > 1))
    tied = [{*getattr(each, "all_tied_weights_keys", {})} for each in (dense, model)]
    if tied[0] != tied[1]:
        raise _Mismatch(f"other weights are tied ({', '.join(sorted(tied[0] ^ tied[1]))})")


def _place(model: PreTrainedModel, block: MoEBlock, layout: MlpLayout) -> Place:
    shared = next((name for name, _ in block.module.named_children() if name == "shared_expert"), None)
    if shared is None:
        return Place(block.name, block.experts_name, block.router_path, layout)
    path = f"{block.name}.{shared}"
    shared_layout = mlp_layout(model.get_submodule(path), block.experts)
    return Place(block.name, block.experts_name, block.router_path, layout, path, f"{path}_gate", shared_layout)


def _moe_config(dense: PreTrainedModel, family: str, form: Form, dense_width: int) -> Any:
    """The configuration of the mixture: what its class knows of the dense one's, and the experts."""
    config: Any = dense.config
    kind: Any = CONFIG_MAPPING[family]
    own, known = config.to_dict(), kind().to_dict().keys()
    of_dense = {key: own[key] for key in type(config)().to_dict() if key in own and key not in NOT_CARRIED}
    heads = int(config.num_attention_heads)
    head_dim = int(of_dense.get("head_dim") or config.hidden_size // heads)
    window, per_layer = of_dense.get("sliding_window"), of_dense.get("layer_types")
    if per_layer and "sliding_attention" not in per_layer:
        window = None
    values = of_dense | {
        "num_key_value_heads": of_dense.get("num_key_value_heads") or heads,
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "layer_types": per_layer or ["sliding_attention" if window else "full_attention"] * int(config.num_hidden_layers),
        "qkv_bias": any(name.endswith("q_proj.bias") for name in dense.state_dict()),
        "head_dim": head_dim,
        **experts_settings(form, dense_width),
    }
    values = {key: value for key, value in values.items() if key in known}
    if "head_dim" not in known and head_dim * heads != config.hidden_size:
        values["head_dim"] = head_dim  # which the family's attention reads all the same
    if "moe_intermediate_size" not in known:
        values["intermediate_size"] = form.widths(dense_width).routed
    try:
        return explained(lambda: kind(**values), config.model_type, "configuration")
    except PollardError:
        raise _Mismatch("its configuration cannot say what this one does") from None


def experts_settings(form: Form, dense_width: int) -> dict[str, object]:
    """What the families' configurations say of experts, in every spelling."""
    widths = form.widths(dense_width)
    return {
        "num_experts": form.experts,
        "num_local_experts": form.experts,
        "num_experts_per_tok": form.experts_per_token,
        "norm_topk_prob": True,
        "moe_intermediate_size": widths.routed,
        "shared_expert_intermediate_size": widths.shared,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


@torch.no_grad()
def _check_small_copies(config: Any, family: str, form: Form) -> None:
    """Raises _Mismatch where small copies of both do not answer alike, in the exact variant of the form."""
    small, exact = _shrunk(config), form.exact()
    found = _in_family(meta_model(small), family, exact)
    dense, model = (
        auto_class(type(each)).from_config(copy.deepcopy(each), dtype=torch.float64).eval()
        for each in (small, found.model.config)
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in dense.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn * parameter.shape[1] ** -0.5 if parameter.ndim > 1 else 1 + drawn / 5)
    dense.get_input_embeddings().weight.mul_(SMALL_EMBEDDINGS)
    model.set_experts_implementation("eager")  # the others do not know float64
    model.load_state_dict(upcycled_tensors(dense, model, found.places, exact), strict=True)
    ids_BS = torch.randint(SMALL_VOCABULARY, (2, SMALL_TOKENS), generator=generator)
    last = int(getattr(config, "max_position_embeddings", None) or SMALL_TOKENS)
    for begin in (0, max(last - SMALL_TOKENS, 0)):  # some families scale what is far from the beginning
        positions = torch.arange(begin, begin + SMALL_TOKENS)[None]
        expected_BSV, found_BSV = (each(ids_BS, position_ids=positions, use_cache=False).logits for each in (dense, model))
        gap, largest = (found_BSV - expected_BSV).abs().max().item(), expected_BSV.abs().max().item()
        if not gap <= DIFFERENCE * largest:
            raise _Mismatch(f"with the same tensors it computes something else (small copies differ by {gap / largest:.1g})")


def _shrunk(config: Any) -> Any:
    """The configuration of a model as deep, whose heads are as wide, and everything else small."""
    own: Mapping[str, Any] = config.to_dict()
    heads = own["num_attention_heads"]
    head_dim = own.get("head_dim") or own["hidden_size"] // heads
    small = copy.deepcopy(config)
    for key, value in {
        "vocab_size": SMALL_VOCABULARY,
        "hidden_size": 2 * head_dim,
        "intermediate_size": SMALL_WIDTH,
        "num_attention_heads": 2,
        "num_key_value_heads": 2 if own.get("num_key_value_heads") in (None, heads) else 1,
        "sliding_window": SMALL_WINDOW if own.get("sliding_window") else None,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }.items():
        if key in own:
            setattr(small, key, value)
    return small
