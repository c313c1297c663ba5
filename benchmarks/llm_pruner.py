"""The official code of LLM-Pruner beside the criterion `taylor`, on a tiny Llama:

    git clone https://github.com/horseee/LLM-Pruner
    python benchmarks/llm_pruner.py LLM-Pruner

Both score the channels of every MLP on the same tokens and the same loss. LLM-Pruner has gradients of the weights, and its
`TaylorImportance(taylor="vectorize")` is called on the group that its block_wise mode finds behind a gate projection: gate and
up rows, down columns. `taylor` has gradients of activations only. They must choose the same channels where LLM-Pruner looks at
the down projection alone; how far its sum over all three layers chooses others is printed beside it.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.calibration.channel_gradients import observe_gradients
from toolkit.moe.channels import ChannelAxis, ChannelGroup

HIDDEN, WIDTH, LAYERS, BATCHES, TOKENS = 64, 128, 4, 4, 64
KEPT = [WIDTH * 3 // 4, WIDTH // 2, WIDTH // 4]
Batches = list[dict[str, torch.Tensor]]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def batches() -> Batches:
    ids = torch.randint(256, (BATCHES, 8, TOKENS), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


def backward(model: LlamaForCausalLM, data: Batches) -> None:
    """As LLM-Pruner does it: gradients of all weights."""
    for batch in data:
        counted = batch["input_ids"][:, 1:].numel()
        (model(**batch, labels=batch["input_ids"], use_cache=False).loss * counted).backward()


def official_scores(checkout: Path, mlp: Any, alone: bool) -> torch.Tensor:
    """[W] by LLM-Pruner's code: of the down projection `alone`, or summed over the whole group."""
    sys.path.insert(0, str(checkout))
    import LLMPruner.torch_pruning as tp  # type: ignore[import-not-found]
    from LLMPruner.pruner.hf_llama_pruner import TaylorImportance  # type: ignore[import-not-found]

    rows, columns = tp.prune_linear_out_channels, tp.prune_linear_in_channels
    layers = [(mlp.down_proj, columns)] if alone else [(mlp.gate_proj, rows), (mlp.up_proj, rows), (mlp.down_proj, columns)]
    group = [
        (SimpleNamespace(target=SimpleNamespace(module=layer), handler=handler), list(range(WIDTH))) for layer, handler in layers
    ]
    return TaylorImportance(group_reduction="sum", taylor="vectorize")(group).detach()


def our_scores(model: LlamaForCausalLM, data: Batches) -> list[torch.Tensor]:
    """[W] per layer by `taylor`."""
    groups = []
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.mlp"
        down = {f"{name}.down_proj.weight": ChannelAxis(1, torch.arange(WIDTH))}
        groups.append(ChannelGroup(name, None, WIDTH, WIDTH, down, f"{name}.down_proj.weight"))
    vectors = observe_gradients(model, data, groups)
    return [sum(vectors[f"{group.name}/channel_taylor/{part}"] for part in ("prompt", "completion")).abs() for group in groups]


def alike(one: list[torch.Tensor], other: list[torch.Tensor], keep: int) -> float:
    """Which part of the kept channels both keep."""
    chosen = [[set(scores.topk(keep).indices.tolist()) for scores in each] for each in (one, other)]
    return sum(len(mine & theirs) for mine, theirs in zip(*chosen, strict=True)) / (keep * len(one))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a folder with the repository horseee/LLM-Pruner")
    checkout = parser.parse_args().checkout
    if not (checkout / "LLMPruner").is_dir():
        sys.exit(f"{checkout} is no checkout of LLM-Pruner: git clone https://github.com/horseee/LLM-Pruner")
    model, data = tiny_llama(), batches()
    backward(model, data)
    mlps = [layer.mlp for layer in model.model.layers]
    down, whole = ([official_scores(checkout, mlp, alone) for mlp in mlps] for alone in (True, False))
    ours = our_scores(model, data)
    print(f"Llama, hidden {HIDDEN}, width {WIDTH}, {LAYERS} layers, {BATCHES} x 8 x {TOKENS} tokens, float64")
    print("channels that both LLM-Pruner and taylor keep:")
    print(f"{'kept':>6}  {'down projection alone':>22}  {'sum over the group':>20}")
    for keep in KEPT:
        print(f"{keep:>6}  {alike(ours, down, keep):>22.1%}  {alike(ours, whole, keep):>20.1%}")
    if any(alike(ours, down, keep) < 1 for keep in KEPT):
        sys.exit("taylor and LLM-Pruner's term of the down projection choose different channels")


if __name__ == "__main__":
    main()
