"""The linear layers of a model's decoder that are no experts."""

from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.blocks import MoEBlock
from toolkit.moe.layers import decoder_layers


def decoder_linears(model: PreTrainedModel, blocks: list[MoEBlock], shared: bool = False) -> dict[str, nn.Linear]:
    """By name, the linear layers of the decoder layers outside the MoE blocks: attention, and the MLPs of dense layers. `blocks`:
    all of the model's; none of a dense one.

    With `shared`, also those inside the blocks that every token passes: shared experts. The decoder layers are the lists
    that the blocks stand in, so the towers of a multimodal model are none of them. Mamba's are left out: its fused kernels
    read the weights directly, and would miss whatever replaced the layer.
    """
    modules = dict(model.named_modules())
    lists = {_list_of(modules, block.name) for block in blocks} if blocks else {decoder_layers(model)[0]}
    left_out = [
        f"{block.name}.{child}"
        for block in blocks
        for child, module in block.module.named_children()
        if module is block.router or module is block.experts
    ]
    if not shared:  # a block that is the decoder layer itself stays open
        left_out += [block.name for block in blocks if not isinstance(modules[block.name.rpartition(".")[0]], nn.ModuleList)]
    return {
        name: module
        for name, module in modules.items()
        if type(module) is nn.Linear  # a class derived from it may compute something else (DeepSeek-V4's groups)
        and not hasattr(modules[name.rpartition(".")[0]], "D")  # Mamba's skip weights, as every family calls them
        and any(name.startswith(f"{path}.") for path in lists)
        and not any(f"{name}.".startswith(f"{path}.") for path in left_out)
    }


def _list_of(modules: dict[str, nn.Module], name: str) -> str:
    parts = name.split(".")
    paths = [".".join(parts[:n]) for n in range(1, len(parts))]
    return next((path for path in paths if isinstance(modules[path], nn.ModuleList)), paths[-1])
