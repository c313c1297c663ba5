"""Models as if made sparse elsewhere: of the experts and of attention, the smaller half of every matrix is zero."""

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def make_sparse(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ("experts." in name or "self_attn" in name) and "bias" not in name:
            parameter[parameter.abs() <= parameter.abs().flatten().median()] = 0.0
    return model


def zeros_of(model: PreTrainedModel) -> dict[str, int]:
    """Zeros of every tensor."""
    return {name: int((tensor == 0).sum()) for name, tensor in model.state_dict().items()}
