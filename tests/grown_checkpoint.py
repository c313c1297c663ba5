"""A tiny checkpoint, cut for a first task and grown by two experts for a second."""

from pathlib import Path
from typing import Any

import torch
from families import tiny_family
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from toolkit.cuts import BlockPlan, ExpertsCut, Plan, prune_checkpoint
from toolkit.moe import find_blocks, load_model


def chosen(model: PreTrainedModel, kept: list[int], origin: list[str] | None = None, onto: Path | None = None) -> Plan:
    """The same choice in every block."""
    blocks = {b.name: BlockPlan(experts=b.expert_count, kept=kept, origin=origin) for b in find_blocks(model)}
    cut = ExpertsCut.of(blocks, criterion="by hand", keep=len(kept), onto=str(onto) if onto else None)
    return Plan(model="tiny", experts_per_token=2, cuts=[cut])


def grown(family: str, folder: Path, trained: bool = False, **changes: Any) -> tuple[PreTrainedModel, Plan]:
    """`original/`, `first/` (experts 1, 2, 4 and 7 of it, perhaps moved a little) and `grown/`, with 3 and 5 in turn. Returns the
    original and the plan that grew."""
    model = tiny_family(family, **changes)
    model.save_pretrained(folder / "original")
    prune_checkpoint(folder / "original", chosen(model, [1, 2, 4, 7]), folder / "first")
    if trained:
        file = folder / "first" / "model.safetensors"
        save_file({name: t + 0.01 if t.is_floating_point() else t for name, t in load_file(file).items()}, file, {"format": "pt"})
    groups = find_blocks(model)[0].groups or 1
    kept, origin = ([1, 2, 3, 4, 7, 5], "onto onto model onto onto model") if groups == 2 else ([1, 2, 4, 7, 5, 3], "")
    plan = chosen(model, kept, origin.split() or ["onto"] * 4 + ["model"] * 2, folder / "first")
    plan.save(folder / "plan.json")
    plan = Plan.load(folder / "plan.json")
    prune_checkpoint(folder / "original", plan, folder / "grown")
    return model, plan


def by_expert(folder: Path, kept: list[int]) -> dict[tuple[str, int | None], torch.Tensor]:
    """Every tensor of the model in a folder; of those with a row per expert each row, by the original's number."""
    model, found = load_model(str(folder), dtype="checkpoint"), {}
    blocks = [block.name for block in find_blocks(model)]
    for name, tensor in model.state_dict().items():
        of_block = any(name.startswith(f"{block}.") for block in blocks) and tensor.shape[0] == len(kept)
        found |= {(name, e): tensor[i] for i, e in enumerate(kept)} if of_block else {(name, None): tensor}
    return found
