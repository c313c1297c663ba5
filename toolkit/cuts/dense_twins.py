"""The dense twin of a mixture of experts: a model of a stock family that has one feed-forward layer in place of every MoE block.

    qwen3_moe   model.layers.3.mlp.{gate, experts}     everything else has the same name and shape in both
    qwen3       model.layers.3.mlp.{gate_proj, up_proj, down_proj}

TWINS says which family that is; families without an entry are their own twin where their configuration can say that every layer
is dense. Nothing is taken on trust: the twin is built without weights, its tensors are compared with the family's name by name,
and a small copy of its feed-forward layer must compute what the experts' own gate computes.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from toolkit.cuts.mlp_layout import MlpLayout, mlp_layout
from toolkit.moe.blocks import MoEBlock, find_blocks
from toolkit.moe.channels import block_width
from toolkit.moe.load import auto_class, meta_model
from toolkit.moe.partition import layer_prefix
from toolkit.runtime.errors import PollardError


class Twin(NamedTuple):
    """A dense family, by its `model_type`, and keys of its configuration that the MoE family's does not decide."""

    model_type: str
    settings: Mapping[str, object] = {}


TWINS = {
    "aria_text": Twin("llama"),
    "cohere2_moe": Twin("cohere2"),
    "ernie4_5_moe": Twin("ernie4_5"),
    "flex_olmo": Twin("olmo2"),
    "granitemoe": Twin("granite"),
    "granitemoe_swa": Twin("granite_swa"),
    "granitemoehybrid": Twin("granitemoehybrid", {"num_local_experts": 0}),
    "granitemoeshared": Twin("granite"),
    "hunyuan_v1_moe": Twin("hunyuan_v1_dense"),
    "jamba": Twin("jamba", {"num_experts": 1}),
    "lfm2_moe": Twin("lfm2", {"block_auto_adjust_ff_dim": False}),
    "mixtral": Twin("mistral"),
    "qwen2_moe": Twin("qwen2"),
    "qwen3_5_moe": Twin("qwen3_5"),
    "qwen3_5_moe_text": Twin("qwen3_5_text"),
    "qwen3_moe": Twin("qwen3"),
    "qwen3_vl_moe": Twin("qwen3_vl"),
    "qwen3_vl_moe_text": Twin("qwen3_vl_text"),
    "solar_open": Twin("llama"),
}
"""By the `model_type` of a configuration, or of a part of one."""

DIFFERENT = {
    "beam": "its blocks multiply what the experts give by a number",
    "minimax_m3_vl": "its blocks multiply what the experts give by a number",
    "minimax_m3_vl_text": "its blocks multiply what the experts give by a number",
}
"""Families whose twin has the right tensors, and computes something else."""

# What configurations call the width of the feed-forward layers of dense layers; the first that sizes them counts
WIDTH_KEYS = ("dense_intermediate_size", "shared_intermediate_size", "intermediate_size")


def all_dense(layers: int) -> dict[str, object]:
    """Every spelling of "none of these layers has experts"."""
    return {
        "first_k_dense_replace": layers,
        "num_dense_layers": layers,
        "mlp_layer_types": ["dense"] * layers,
        "mlp_only_layers": list(range(layers)),
    }


class DenseLayer(NamedTuple):
    """One MoE block, and what takes its place."""

    block: str
    shared: tuple[str, ...]  # shared experts, in the block or beside it
    shared_gate: str | None  # the linear layer whose sigmoid weighs them
    mlp: str  # in the twin


@dataclass(frozen=True)
class DenseTwin:
    """The twin of a model, without weights."""

    family: str  # `model_type` of the model
    model: PreTrainedModel
    layers: tuple[DenseLayer, ...]
    mlps: tuple[str, ...]  # of layers that are dense already; their channels are filled up with zeros
    layout: MlpLayout  # of all of these
    shared_layouts: Mapping[str, MlpLayout]  # by the shared expert's name
    own_widths: Mapping[str, int]  # by the name of a block, or of a dense layer's MLP: as wide as it would be alone

    @property
    def width(self) -> int:
        """Of every feed-forward layer: that of the widest."""
        return max(self.own_widths.values())

    @property
    def is_itself(self) -> bool:
        """Whether the twin is of the same family, with every layer dense."""
        return bool(self.model.config.model_type == self.family)


def no_twin(model: PreTrainedModel, reason: str) -> PollardError:
    return PollardError(
        f"{model.config.model_type} cannot be written as a dense model: {reason}. Leave pruning.form out; docs/families.md says "
        "which families can.",
        code="dense.no-twin",
    )


def dense_twin(model: PreTrainedModel) -> DenseTwin:
    """The twin of `model` (which may be without weights), as wide as all of its experts together. Raises PollardError where there
    is none, with the reason."""
    blocks = find_blocks(model)
    if reason := DIFFERENT.get(model.config.model_type):
        raise no_twin(model, reason)
    for block in blocks:
        _check_block(model, block)
    shared = {block.name: _shared_experts(model, block) for block in blocks}
    gates = {block.name: _shared_gate(block) for block in blocks}
    layouts = {name: _layout(model, model, name, blocks[0]) for names in shared.values() for name in names}
    own_widths = {
        block.name: block.expert_count * block_width(block)
        + sum(_width(model, name, layouts[name]) for name in shared[block.name])
        for block in blocks
    }
    replaced = (*(block.name for block in blocks), *layouts)
    stays = {
        name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith(tuple(f"{r}." for r in replaced))
    }
    twin = _built(model, max(own_widths.values()))
    mlp_of, relative = _mlps_of_blocks(model, twin, blocks, stays)
    layout = _layout(model, twin, mlp_of[blocks[0].name], blocks[0])
    dense = tuple(name for name, _ in model.named_modules() if _is_dense_mlp(name, blocks, relative))
    own_widths |= {name: _width(model, name, layout) for name in dense}
    twin = _sized(model, max(own_widths.values()), f"{mlp_of[blocks[0].name]}.{layout.down}")
    _check_rest(model, twin, stays, (*mlp_of.values(), *dense))
    layers = tuple(DenseLayer(b.name, shared[b.name], gates[b.name], mlp_of[b.name]) for b in blocks)
    return DenseTwin(model.config.model_type, twin, layers, dense, layout, layouts, own_widths)


def _check_block(model: PreTrainedModel, block: MoEBlock) -> None:
    experts: Any = block.experts
    found = {name for name, _ in experts.named_parameters()}
    for wrong, reason in (
        (not experts.has_gate, "its experts have no gate, and no dense family is like them"),
        (experts.has_bias, "its experts have biases, which a feed-forward layer would add up whatever the token"),
        (experts.has_post_expert_norm, "its experts have a norm behind them, each by itself"),
        (found != {"gate_up_proj", "down_proj"}, f"its experts hold more than projections ({', '.join(sorted(found))})"),
    ):
        if wrong:
            raise no_twin(model, reason)
    for name, child in block.module.named_children():
        if child not in (block.router, block.experts) and not name.startswith("shared") and not isinstance(child, nn.Identity):
            raise no_twin(model, f"its block has {name} ({type(child).__name__}) beside router and experts")


def _shared_experts(model: PreTrainedModel, block: MoEBlock) -> tuple[str, ...]:
    """In the block, or beside it in the layer."""
    parents = block.name, block.name.rpartition(".")[0]
    return tuple(
        f"{parent}.{name}"
        for parent in parents
        for name, child in model.get_submodule(parent).named_children()
        if name.startswith("shared") and not isinstance(child, nn.Linear)
    )


def _shared_gate(block: MoEBlock) -> str | None:
    gates = [f"{block.name}.{name}" for name, child in block.module.named_children() if isinstance(child, nn.Linear)]
    return next((name for name in gates if name.rpartition(".")[2].startswith("shared")), None)


def _layout(model: PreTrainedModel, owner: PreTrainedModel, name: str, block: MoEBlock) -> MlpLayout:
    """Of the MLP `name` of `owner`, the model or its twin."""
    mlp = owner.get_submodule(name)
    found = mlp_layout(mlp, block.experts)
    if found is None:
        raise no_twin(model, f"{type(mlp).__name__} does not compute what its experts compute")
    return found


def _width(model: PreTrainedModel, mlp: str, layout: MlpLayout) -> int:
    down: Any = model.get_submodule(f"{mlp}.{layout.down}")
    return int(down.in_features)


def _is_dense_mlp(name: str, blocks: list[MoEBlock], relative: str) -> bool:
    """Whether a module is the feed-forward layer of a decoder layer without experts."""
    prefix = layer_prefix(f"{name}.")
    path = prefix.rpartition(".")[0]
    in_list = path == layer_prefix(f"{blocks[0].name}.").rpartition(".")[0]
    return in_list and name == f"{prefix}.{relative}" and not any(block.name.startswith(f"{prefix}.") for block in blocks)


def _mlps_of_blocks(
    model: PreTrainedModel, twin: PreTrainedModel, blocks: list[MoEBlock], stays: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, str], str]:
    """For every block the module of the twin that is in its place, and that module's path in its layer."""
    new = [name for name in twin.state_dict() if name not in stays]
    found = {}
    for block in blocks:
        prefix = layer_prefix(f"{block.name}.")
        mlps = {name.rpartition(".")[0].rpartition(".")[0] for name in new if name.startswith(f"{prefix}.")}
        if len(mlps) != 1:
            raise no_twin(
                model, f"{_named(twin)} has other layers ({', '.join(sorted(mlps)) or 'none'} in place of {block.name})"
            )
        found[block.name] = mlps.pop()
    if len(set(found.values())) < len(found):
        raise no_twin(model, "a layer of it has two sets of experts")
    relative = {mlp.removeprefix(f"{layer_prefix(f'{block}.')}.") for block, mlp in found.items()}
    return found, relative.pop()


def _check_rest(
    model: PreTrainedModel, twin: PreTrainedModel, stays: Mapping[str, tuple[int, ...]], mlps: tuple[str, ...]
) -> None:
    """Raises PollardError unless all tensors but those of the feed-forward layers are the same in both."""
    ours = {name: shape for name, shape in stays.items() if not name.startswith(tuple(f"{mlp}." for mlp in mlps))}
    theirs = {n: tuple(t.shape) for n, t in twin.state_dict().items() if not n.startswith(tuple(f"{mlp}." for mlp in mlps))}
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        raise no_twin(model, f"{_named(twin)} has other tensors ({len(differing)}, such as {differing[0]})")


def _built(model: PreTrainedModel, width: int, key: str | None = None) -> PreTrainedModel:
    """The twin, its feed-forward layers `width` wide where `key` sizes them (or any of WIDTH_KEYS)."""
    config = twin_config(model, {name: width for name in WIDTH_KEYS if key in (None, name)})
    try:
        twin = meta_model(config)
    except PollardError as error:
        raise no_twin(model, f"{config.model_type} cannot be built of its configuration") from error
    try:
        find_blocks(twin)
    except PollardError:
        return twin
    raise no_twin(
        model, "no dense family has its attention and norms, and its configuration cannot say that every layer is dense"
    )


def _sized(model: PreTrainedModel, width: int, down: str) -> PreTrainedModel:
    """The twin whose feed-forward layers are `width` wide, by the one key that sizes them."""
    for key in WIDTH_KEYS:
        twin = _built(model, width, key)
        linear: Any = twin.get_submodule(down)
        if linear.in_features == width:
            return twin
    raise no_twin(model, "no key of the configuration sizes its feed-forward layers")


def twin_config(model: PreTrainedModel, sizes: Mapping[str, int]) -> Any:
    """The twin's configuration, with `sizes` where it has these keys."""
    config, text = model.config, model.config.get_text_config()
    if config.model_type in TWINS:
        values = _twin_values(config, sizes)
        kind: Any = CONFIG_MAPPING[str(values["model_type"])]
        return kind(**values)
    config = copy.deepcopy(config)
    text, known = config.get_text_config(), config.get_text_config().to_dict()
    for key, value in (all_dense(int(text.num_hidden_layers)) | dict(sizes)).items():
        if key in known:
            setattr(text, key, value)
    return config


def _twin_values(config: Any, sizes: Mapping[str, int]) -> dict[str, object]:
    """Of a configuration, or of a part of one: what the twin's class knows of it."""
    own: dict[str, object] = config.to_dict()
    values = own | {part: _twin_values(getattr(config, part), sizes) for part in config.sub_configs if own.get(part)}
    twin = TWINS.get(config.model_type)
    if twin is None:
        return values
    known = CONFIG_MAPPING[twin.model_type]().to_dict().keys()
    if twin.model_type != config.model_type and "head_dim" in known and "head_dim" not in own:
        values["head_dim"] = config.hidden_size // config.num_attention_heads  # what a family without the key takes
    values = {key: value for key, value in values.items() if key in known} | {"model_type": twin.model_type}
    values.pop("architectures", None)
    return values | {key: size for key, size in sizes.items() if key in known} | dict(twin.settings)


def _named(twin: PreTrainedModel) -> str:
    return f"{twin.config.model_type} ({type(twin).__name__})"


def opens_with(config: Any) -> str:
    """The class that opens the twin, as `architectures` names it."""
    model: Any = auto_class(type(config))._model_mapping[type(config)]
    return model.__name__
