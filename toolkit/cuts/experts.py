"""Fewer experts: of every MoE block the same number stays, renumbered 0, 1, … in the order of the original. Other numbers in each
block can be masked and measured (`allocation`); no stock reader loads them.

    model.layers.3.block_sparse_moe.experts.7.w1.weight            one expert's: stays under a new number, or goes
    model.layers.3.block_sparse_moe.experts.7.w1.weight_scale_inv  so does what belongs to it
    model.layers.3.mlp.experts.gate_up_proj_blocks [E, …]          all experts': rows stay
    model.layers.3.block_sparse_moe.gate.weight [E, H]             the router's: rows stay

A plan that grows names experts in the order in which they are written: within each of the router's groups first those that
another checkpoint has already (`onto`), in its order, then the new ones. `masked` and `apply`, which know the original alone,
take its experts for all of them.

Shape legend: E experts, H hidden size.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from toolkit.cuts.block_plan import BlockPlan, Origin, check_choice
from toolkit.cuts.cut import AffectedTensor, ConfigFile, Cut, Indices, PlanView, Shape, UnknownLayoutError
from toolkit.moe.blocks import EXPERT_KEYS, TOP_K_KEYS, MoEBlock, find_blocks, set_config_values
from toolkit.moe.completeness import EXPERT_NUMBER, Source, check_experts
from toolkit.moe.layer_counts import why_not_per_layer
from toolkit.moe.load import meta_model
from toolkit.moe.masking import check_prunable, kept_rows, restricted, slice_router, slice_tensors
from toolkit.moe.tensor_files import row_axis
from toolkit.runtime.errors import PollardError


def _counts(cut: "ExpertsCut") -> str:
    """ "5, 3, 4, 4 experts"; "5, 3 experts (2, 1 active)"."""
    active = ", ".join(map(str, cut.experts_per_token.values()))
    return ", ".join(str(len(kept)) for kept in cut.kept.values()) + " experts" + (f" ({active} active)" if active else "")


class ExpertsCut(Cut):
    """Which experts stay, per MoE block (named as in `named_modules()`), and how that was decided.

    `experts`: how many the original has, per block; may be left out of a file that has every block's scores.
    `scores`: every expert's, per block; empty where the criterion has none. `mode`, `tokens`: as in `toolkit.select`.
    With an `allocation` blocks may keep other numbers than `keep`, which is then the uniform number that it is compared with, and
    activate other numbers per token than the plan says (`experts_per_token`, per block; empty: as the plan).
    Where the plan grows: `onto` is the checkpoint's folder, `origin` says of every kept expert, per block, where it comes from.
    """

    kind: Literal["experts"] = "experts"
    mode: str | None = None
    tokens: str = "all"
    keep: int
    experts: dict[str, int]
    kept: dict[str, list[int]]
    scores: dict[str, list[float]] = Field(default_factory=dict)
    allocation: Literal["measured"] | None = Field(default=None, exclude_if=lambda value: value is None)
    experts_per_token: dict[str, int] = Field(default_factory=dict, exclude_if=lambda value: not value)
    onto: str | None = Field(default=None, exclude_if=lambda value: value is None)
    origin: dict[str, list[Origin]] = Field(default_factory=dict, exclude_if=lambda value: not value)

    @classmethod
    def of(cls, blocks: Mapping[str, BlockPlan], **settings: Any) -> "ExpertsCut":
        """From the choice in every block; `settings` are the other fields."""
        return cls(
            experts={name: block.experts for name, block in blocks.items()},
            kept={name: block.kept for name, block in blocks.items()},
            scores={name: block.scores for name, block in blocks.items() if block.scores is not None},
            origin={name: block.origin for name, block in blocks.items() if block.origin is not None},
            **settings,
        )

    @property
    def blocks(self) -> dict[str, BlockPlan]:
        """The same, block by block."""
        return {
            name: BlockPlan(experts=self.experts[name], kept=kept, scores=self.scores.get(name), origin=self.origin.get(name))
            for name, kept in self.kept.items()
        }

    @property
    def new(self) -> dict[str, list[int]]:
        """Where the plan grows: by block the places, in the grown checkpoint, of the experts that come from the original."""
        return {name: [at for at, where in enumerate(origin) if where == "model"] for name, origin in self.origin.items()}

    @property
    def before_growth(self) -> "ExpertsCut":
        """Where the plan grows: what the checkpoint holds that it grows onto."""
        there = {name: [at for at, where in enumerate(origin) if where == "onto"] for name, origin in self.origin.items()}
        kept = {name: [self.kept[name][at] for at in places] for name, places in there.items()}
        origin: dict[str, list[Origin]] = {name: ["onto"] * len(places) for name, places in there.items()}
        keep = len(next(iter(kept.values())))
        return ExpertsCut(criterion=self.criterion, keep=keep, experts=self.experts, kept=kept, onto=self.onto, origin=origin)

    @model_validator(mode="before")
    @classmethod
    def _count_scores(cls, data: Any) -> Any:
        if isinstance(data, dict) and "experts" not in data and isinstance(data.get("scores"), dict):
            data = data | {"experts": {name: len(scores) for name, scores in data["scores"].items() if isinstance(scores, list)}}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "ExpertsCut":
        if not self.kept:
            raise ValueError("a plan needs at least one block")
        odd = sorted((self.experts.keys() ^ self.kept.keys()) | (self.scores.keys() - self.kept.keys()))
        if odd:
            raise ValueError(f"experts, kept and scores must name the same blocks, not these in only some: {', '.join(odd[:3])}")
        for name, kept in self.kept.items():
            try:
                check_choice(self.experts[name], kept, self.scores.get(name), self.origin.get(name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        uneven = {name: len(kept) for name, kept in self.kept.items() if len(kept) != self.keep}
        if uneven and not self.allocation:
            raise ValueError(f"every block must keep {self.keep} experts (a checkpoint has one count for all), but: {uneven}")
        if self.experts_per_token and (not self.allocation or self.experts_per_token.keys() != self.kept.keys()):
            raise ValueError("experts_per_token of a cut belongs to an allocation, and names every block")
        self._check_growth()
        return self

    def _check_growth(self) -> None:
        if (self.onto is None) != (not self.origin):
            raise ValueError("onto and origin belong together: a folder, and where each expert comes from")
        if self.origin and self.origin.keys() != self.kept.keys():
            raise ValueError("origin must name every block")
        if len(there := {origin.count("onto") for origin in self.origin.values()}) > 1 or 0 in there:
            raise ValueError(f"origin must say onto of as many experts in every block, at least one, not of {sorted(there)}")

    @property
    def per_block(self) -> bool:
        """Whether blocks keep or activate numbers of their own."""
        counts = {len(kept) for kept in self.kept.values()} | {self.keep}
        return len(counts) > 1 or bool(self.experts_per_token)

    def active(self, block: str, plan: PlanView) -> int:
        """How many experts `block` activates per token."""
        return self.experts_per_token.get(block, plan.experts_per_token)

    def check(self, model: PreTrainedModel, plan: PlanView) -> None:
        blocks = find_blocks(model)
        other_cuts = [cut for cut in plan.cuts if cut is not self]  # which may drop blocks with their layers
        blocks = [block for block in blocks if all(cut.rename(block.name, block.name) is not None for cut in other_cuts)]
        there, named = {block.name: block for block in blocks}, self.kept.keys()
        if there.keys() != named:
            missing, unknown = sorted(there.keys() - named), sorted(named - there.keys())
            raise PollardError(
                f"The plan is for another model: blocks it does not name {missing}, blocks the model does not have, or whose "
                f"layers go, {unknown}.",
                code="plan.other-model",
            )
        for name, block in there.items():
            if self.experts[name] != block.expert_count:
                raise PollardError(
                    f"The plan says {self.experts[name]} experts in {name}; the model has {block.expert_count}.",
                    code="plan.other-expert-count",
                )
        for name, block in there.items():
            check_prunable([block], len(self.kept[name]), self.active(name, plan))
        for name, block in there.items():
            groups = block.groups or 1
            in_group = Counter(expert * groups // block.expert_count for expert in self.kept[name])
            counts = [in_group[group] for group in range(groups)]
            if len(set(counts)) > 1:
                raise PollardError(
                    f"The plan keeps {counts} experts in the {groups} groups of {name}: its router ranks groups of equal size, "
                    f"so keep {len(self.kept[name]) // groups} in each.",
                    code="plan.uneven-groups",
                )

    def apply(self, model: PreTrainedModel, plan: PlanView) -> None:
        if self.per_block:
            raise PollardError(
                f"The plan keeps {_counts(self)} in its blocks, which can be masked and measured only. "
                f"{why_not_per_layer(model.config)}. Keep {self.keep} in every block.",
                code="plan.counts-per-layer",
            )
        blocks = find_blocks(model)
        for block in blocks:
            # In a layer that another cut drops it does not matter which: until then the model stays that of its configuration
            kept = self.kept.get(block.name, list(range(self.keep)))
            for module in (block.module, block.experts):  # some blocks hold the router's correction bias
                slice_tensors(module, kept, block.expert_count, {block.expert_count})
            slice_router(block.router, kept, block.expert_count, plan.experts_per_token)
        # Counts are also kept by blocks and by the model itself (for its load-balancing loss).
        for module in model.modules():
            for keys, before, after in (
                (EXPERT_KEYS, blocks[0].expert_count, self.keep),
                (("top_k", *TOP_K_KEYS), blocks[0].experts_per_token, plan.experts_per_token),
            ):
                for key in keys:
                    if getattr(module, key, None) == before and not isinstance(getattr(type(module), key, None), property):
                        setattr(module, key, after)
        configs = [model.config, model.config.get_text_config(), *(block.experts.config for block in blocks)]
        for config in {id(config): config for config in configs}.values():
            set_config_values(config, EXPERT_KEYS, self.keep)
            set_config_values(config, TOP_K_KEYS, plan.experts_per_token)

    def masks(self, model: PreTrainedModel, plan: PlanView) -> "list[RouterMask]":
        return [
            RouterMask(b.name, b, self.kept[b.name], self.active(b.name, plan)) for b in find_blocks(model) if b.name in self.kept
        ]

    def takes(self, model: PreTrainedModel, plan: PlanView, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
        pruned = meta_model(copy.deepcopy(model.config))
        self.apply(pruned, plan)  # alone: what other cuts shorten is not taken for rows of experts
        after = {name: tuple(tensor.shape) for name, tensor in pruned.state_dict().items()}
        found = {tensor.name: self._rows_of(tensor, after[tensor.parameter]) for tensor in tensors}
        return {name: {axis: np.array(rows) for axis, rows in indices.items()} for name, indices in found.items()}

    def _rows_of(self, tensor: AffectedTensor, after: Shape) -> Mapping[int, list[int]]:
        """`after`: the parameter's shape without the experts that go."""
        block, axis = self._block_of(tensor.parameter), row_axis(tensor.before)
        if block is None or not tensor.before or tensor.before[axis] == after[axis]:
            return {}
        if EXPERT_NUMBER.search(tensor.name) or tensor.shape in ((), (1,)):  # one expert's, or one scale for all
            return {}
        stored_axis = row_axis(tensor.shape)
        if tensor.shape[stored_axis] != tensor.before[axis]:
            raise UnknownLayoutError(f"{tensor.name} {list(tensor.shape)} has no row per expert of {list(tensor.before)}")
        return {stored_axis: kept_rows(tensor.before[axis], self.kept[block], self.experts[block])}

    def rename(self, name: str, parameter: str) -> str | None:
        number, block = EXPERT_NUMBER.search(name), self._block_of(parameter)
        if number is None or block is None:
            return name
        if int(number[0]) not in self.kept[block]:
            return None
        return EXPERT_NUMBER.sub(str(self.kept[block].index(int(number[0]))), name, count=1)

    def refuses(self, name: str) -> str | None:
        return f"{name} is of one expert, and no parameter of the model comes from it" if EXPERT_NUMBER.search(name) else None

    def check_stored(self, sources: Mapping[str, Sequence[Source]], affected: Mapping[str, Shape]) -> None:
        check_experts(sources, {name: shape[0] for name, shape in affected.items() if self._block_of(name)})

    @classmethod
    def config(cls, config: Any) -> ConfigFile:
        # An alias in attribute_map is an attribute, too
        values = {key: getattr(config, key, None) for key in EXPERT_KEYS + TOP_K_KEYS}
        return {key: value for key, value in values.items() if isinstance(value, int | list)}

    def choice(self) -> Any:
        if self.onto:
            return {"kept": self.kept, "onto": self.onto, "origin": self.origin}
        return {"kept": self.kept, "experts_per_token": self.experts_per_token} if self.experts_per_token else self.kept

    def summary(self) -> dict[str, object]:
        return self.model_dump(include={"kind", "criterion", "keep", "onto"}) | {"experts": max(self.experts.values())}

    def in_words(self) -> str:
        kept = f"about {self.keep}" if self.per_block else str(self.keep)
        return f"{kept} of {max(self.experts.values())} experts by {self.criterion}"

    def _block_of(self, parameter: str) -> str | None:
        return next((name for name in self.kept if parameter.startswith(f"{name}.")), None)


class RouterMask(NamedTuple):
    """A block whose router chooses among kept experts only."""

    name: str  # of the block
    block: MoEBlock
    kept: list[int]
    experts_per_token: int

    def applied(self) -> AbstractContextManager[None]:
        return restricted(self.block, self.kept, self.experts_per_token)
