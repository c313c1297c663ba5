"""What stays: the file that selection leaves and pruning needs.

    {"format": 2, "model": "mistralai/Mixtral-8x7B-v0.1", "seed": 0, "experts_per_token": 2,
     "cuts": [{"kind": "experts", "criterion": "reap", "mode": null, "tokens": "all", "keep": 4,
               "experts": {"model.layers.0.mlp": 8, …},
               "kept": {"model.layers.0.mlp": [0, 2, 5, 7], …},
               "scores": {"model.layers.0.mlp": [… 8 …], …}},
              {"kind": "width", "criterion": "energy", "keep": 7168, "file": "plan.safetensors", "checksum": "…"},
              {"kind": "layers", "criterion": "dev_loss", "layers": 32, "kept": [0, 1, 3, …], "scores": [… 32 …]}],
     "calibration": {"task": "gsm8k", "examples": 512, "tokens": 131072, "fingerprint": "…"}}

A plan that is only measured may keep other numbers of experts in each block, and activate other numbers ("keep" is then the
uniform number that it is compared with):

    {"kind": "experts", "allocation": "measured", "keep": 4, "kept": {"model.layers.0.mlp": [0, 2, 5], …},
     "experts_per_token": {"model.layers.0.mlp": 1, …}, …}

A plan that grows (toolkit/cuts/grow.py) names the experts in the order in which they are written, the checkpoint that some of
them are in already, and of each where it comes from:

    {"kind": "experts", "keep": 6, "kept": {"model.layers.0.mlp": [0, 2, 5, 7, 1, 4], …}, "onto": "runs/sorting/recovered",
     "origin": {"model.layers.0.mlp": ["onto", "onto", "onto", "onto", "model", "model"], …}, …}

A plan that is written in the dense form (toolkit/cuts/dense.py) says so, and how much every kept expert counts:

     "form": "dense", "dense": {"model.layers.0.mlp": {"coefficients": [… 4 …], "shared": 1.0, …}, …}

Any tool may write one; `load` checks it. Format 1, which knew experts only, still loads:

    {"format": 1, "model": "…", "criterion": "reap", "mode": null, "tokens": "all", "seed": 0, "keep": 4, "experts_per_token": 2,
     "blocks": {"model.layers.0.mlp": {"experts": 8, "kept": [0, 2, 5, 7], "scores": [… 8 …]}}, "calibration": {…}}
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema
from safetensors.torch import save_file

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.cut import Cut
from toolkit.cuts.dense import DenseBlock
from toolkit.cuts.experts import ExpertsCut
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.width import WidthCut, checksum, read_channels
from toolkit.runtime.display import Displayed, Overview
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.runtime.formatting import ranges

# In the order in which a plan's cuts are applied. They commute: experts come first because channels are chosen per kept expert
KINDS: list[type[Cut]] = [ExpertsCut, WidthCut, LayersCut]

KindOfCut = TypeVar("KindOfCut", bound=Cut)


class _OneOfKinds:
    """pydantic's schema of a cut: that of the kind which `kind` names."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schemas = {kind.model_fields["kind"].default: handler.generate_schema(kind) for kind in KINDS}
        return core_schema.tagged_union_schema(schemas, discriminator="kind")


class Plan(Displayed, BaseModel):
    """What stays of a model, and how that was decided. `cuts`: one of each kind at most."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[2] = 2
    model: str
    seed: int = 0
    experts_per_token: int
    cuts: list[Annotated[Cut, _OneOfKinds()]]
    calibration: dict[str, Any] = {}
    form: Literal["dense"] | None = None
    """How what stays is written: as a mixture of experts, or as a dense model, every block's kept experts in one layer."""
    dense: dict[str, DenseBlock] | None = None
    """For the dense form: how much each kept expert counts, by block."""

    @classmethod
    def of_experts(
        cls,
        *,
        model: str,
        criterion: str,
        keep: int,
        experts_per_token: int,
        blocks: Mapping[str, BlockPlan],
        mode: str | None = None,
        tokens: str = "all",
        seed: int = 0,
        calibration: Mapping[str, Any] | None = None,
    ) -> "Plan":
        """A plan that cuts experts only. `blocks`: the choice in every MoE block, by its name in `named_modules()`."""
        cut = ExpertsCut.of(blocks, criterion=criterion, mode=mode, tokens=tokens, keep=keep)
        return cls(model=model, seed=seed, experts_per_token=experts_per_token, cuts=[cut], calibration=dict(calibration or {}))

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        kinds = [cut.kind for cut in self.cuts]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"a plan needs cuts, of each kind one at most, not {kinds}")
        if cut := self.cut(ExpertsCut):
            if not 1 <= self.experts_per_token <= cut.keep:
                raise ValueError(f"experts_per_token must be in 1…{cut.keep} (the experts kept), not {self.experts_per_token}")
            for name, kept in cut.kept.items() if cut.allocation else ():
                if not 1 <= cut.active(name, self) <= len(kept):
                    raise ValueError(f"{name} keeps {len(kept)} experts, and cannot activate {cut.active(name, self)} per token")
        return self

    @model_validator(mode="after")
    def _dense_form_is_whole(self) -> "Plan":
        if (self.form is None) != (self.dense is None):
            raise ValueError('"form": "dense" and the coefficients under "dense" belong together')
        if self.dense is not None and (cut := self.cut(ExpertsCut)):
            if cut.per_block:
                raise ValueError("the dense form has one width for all layers, and this plan other numbers of experts in each")
            needed, given = {n: len(k) for n, k in cut.kept.items()}, {n: len(b.coefficients) for n, b in self.dense.items()}
            if wrong := sorted(name for name in needed.keys() | given.keys() if needed.get(name) != given.get(name)):
                raise ValueError(
                    f"{wrong[0]} keeps {needed.get(wrong[0], 0)} experts, and has {given.get(wrong[0], 0)} coefficients for the "
                    "dense form"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_the_usual_form(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Plans of mixtures of experts are older than the other form."""
        values: dict[str, object] = dump(self)
        return values if self.form else {key: value for key, value in values.items() if key not in ("form", "dense")}

    @property
    def without_form(self) -> "Plan":
        """The same cuts, written as a mixture of experts."""
        return self.model_copy(update={"form": None, "dense": None})

    def cut(self, kind: type[KindOfCut]) -> KindOfCut | None:
        """The plan's cut of that kind, None where it has none."""
        return next((cut for cut in self.cuts if isinstance(cut, kind)), None)

    @property
    def experts(self) -> ExpertsCut:
        """The cut of experts. Raises PollardError where the plan has none."""
        if cut := self.cut(ExpertsCut):
            return cut
        raise PollardError(f"The plan for {self.model} keeps all experts.", code="plan.no-experts-cut")

    @property
    def onto(self) -> str | None:
        """The checkpoint that it grows; None where it only cuts."""
        cut = self.cut(ExpertsCut)
        return cut.onto if cut else None

    # Of the cut of experts, for those who need no more of it

    @property
    def criterion(self) -> str:
        return self.experts.criterion

    @property
    def mode(self) -> str | None:
        return self.experts.mode

    @property
    def tokens(self) -> str:
        return self.experts.tokens

    @property
    def keep(self) -> int:
        return self.experts.keep

    @property
    def blocks(self) -> dict[str, BlockPlan]:
        return self.experts.blocks

    def with_experts(self, blocks: Mapping[str, BlockPlan], model: str | None = None) -> "Plan":
        """The same plan, of `model`, with another choice of experts (and no scores but those given)."""
        cuts = [
            ExpertsCut.of(blocks, criterion=cut.criterion, mode=cut.mode, tokens=cut.tokens, keep=cut.keep)
            if isinstance(cut, ExpertsCut)
            else cut
            for cut in self.cuts
        ]
        return self.model_copy(update={"model": model or self.model, "cuts": cuts})

    def summary(self) -> dict[str, object]:
        """What is written into a pruned checkpoint's folder about the plan that it was made by."""
        if self.form:
            return {"form": self.form} | self.without_form.summary()
        if [cut.kind for cut in self.cuts] == ["experts"]:
            onto = {"onto": self.experts.onto} if self.experts.onto else {}
            return {key: getattr(self, key) for key in ("model", "criterion", "keep", "experts_per_token", "seed")} | onto
        cuts = [cut.summary() for cut in self.cuts]
        return {"model": self.model, "experts_per_token": self.experts_per_token, "seed": self.seed, "cuts": cuts}

    def overview(self) -> Overview:
        facts = [self.model, *(cut.in_words() for cut in self.cuts), f"{self.experts_per_token} active per token"]
        experts, layers = self.cut(ExpertsCut), self.cut(LayersCut)
        rows = [(name, ranges(sorted(kept))) for name, kept in experts.kept.items()] if experts else []
        note = f"layers kept: {ranges(layers.kept)}" if layers else ""
        return Overview([*facts, *(["written in the dense form"] if self.form else [])], ("block", "experts kept"), rows, note)

    def choice(self) -> Any:
        """What decides the pruned weights besides `experts_per_token`, as JSON: for fingerprints. The same for a plan in both
        formats."""
        if self.dense is not None:
            return {"dense": {n: b.model_dump() for n, b in self.dense.items()}, "cuts": self.without_form.choice()}
        if [cut.kind for cut in self.cuts] == ["experts"]:
            return self.experts.choice()
        return {cut.kind: cut.choice() for cut in self.cuts}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all, and before it that of the channels, where there are any."""
        if width := self.cut(WidthCut):
            file = Path(path).with_name(width.file)
            partial = file.with_name(f"{file.name}.tmp")
            save_file({name: kept.int().contiguous() for name, kept in width.channels.items()}, partial)
            partial.replace(file)
            width.checksum = checksum(width.channels)
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Reads and checks a plan file of either format; raises PollardError naming the file and every fault."""
        try:
            content = Path(path).read_bytes()
            if _is_format_1(content):
                return PlanFormat1.model_validate_json(content).upgraded()
            plan = cls.model_validate_json(content)
        except OSError as error:
            raise PollardError(f"No plan at {path}: {error.strerror}.", code="plan.missing") from None
        except ValidationError as error:
            faults = "\n".join(
                f"  {'.'.join(map(str, e['loc'])) or 'as a whole'}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            )
            raise PollardError(f"{path} is not a valid plan:\n{faults}", code="plan.invalid") from None
        if width := plan.cut(WidthCut):
            width.channels = read_channels(Path(path).with_name(width.file), width.checksum)
        return plan


class PlanFormat1(BaseModel):
    """A plan as it was written when experts were the only kind of cut."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    model: str
    criterion: str
    mode: str | None = None
    tokens: str = "all"
    seed: int = 0
    keep: int
    experts_per_token: int
    blocks: dict[str, BlockPlan]
    calibration: dict[str, Any] = {}

    @model_validator(mode="after")
    def _valid_when_upgraded(self) -> "PlanFormat1":
        try:
            self.upgraded()
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self

    def upgraded(self) -> Plan:
        return Plan.of_experts(**{name: getattr(self, name) for name in PlanFormat1.model_fields if name != "format"})


def _is_format_1(content: bytes) -> bool:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format", 1) == 1 and "cuts" not in data
