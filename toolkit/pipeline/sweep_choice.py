"""What one cell of a sweep keeps, its file, and its row in the table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from toolkit.cuts import LayersCut, Plan, WidthCut, shape_of, shaped_meta_model
from toolkit.cuts.compression import CompressedSizes, Compression, compressed_sizes, compression_of
from toolkit.moe import sizes
from toolkit.moe.layer_counts import why_not_per_layer
from toolkit.moe.load import resolve_dtype
from toolkit.pipeline.allocation import allocation_facts
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.sweep_grid import Cell
from toolkit.recipe.step import COUNTED
from toolkit.report.measurements import SweepRow
from toolkit.runtime.files import JsonObject
from toolkit.runtime.intervals import pair_of


class UniformCell(NamedTuple):
    """What a cell with a measured allocation is compared with, and what chooses its experts. `losses`: the file of what its
    search measures, which serves cells that keep other numbers as well."""

    file: str
    statistics: Path
    losses: str


@dataclass(frozen=True)
class SweepChoice:
    """What one cell keeps (no cell: the original), and the file that says how good it is."""

    cell: Cell | None
    plan: Plan
    unobserved: int
    file: str
    uniform: "UniformCell | None" = None
    """Of a cell with a measured allocation, whose `plan` is the uniform one until it is searched."""

    @property
    def label(self) -> str:
        return self.cell.label if self.cell else "original"

    @property
    def compression(self) -> Compression | None:
        return compression_of(self.cell.compression) if self.cell and self.cell.compression else None

    @property
    def name(self) -> str:
        """For people."""
        drawn = f", seed {self.cell.seed}" if self.cell and "random" in self.cell.recipe.pruning.criteria else ""
        return f"{self.label}, keep {self.plan.keep}{drawn}"

    def facts(self) -> JsonObject:
        """What its file says of the plan; of channels and layers only where they are cut."""
        width, layers = self.plan.cut(WidthCut), self.plan.cut(LayersCut)
        facts = {"keep": self.plan.keep, "experts_per_token": self.plan.experts_per_token, "kept": self.plan.choice()}
        facts |= ({"width": width.keep} if width else {}) | ({"layers": layers.kept} if layers else {})
        facts |= {"allocated": allocation_facts(self.plan)} if self.uniform else {}
        return facts | ({"compression": str(self.compression)} if self.compression else {})

    def row(self, context: RunContext, found: JsonObject, with_sizes: bool, with_bytes: bool = False) -> SweepRow:
        """From what its file holds. `with_sizes`: in a table of cells that cut more than experts; `with_bytes`: where some are
        compressed."""
        pruning = self.cell.recipe.pruning.model_dump(exclude={*COUNTED, "skipping"}) if self.cell else {}
        values: dict[str, Any] = {"label": self.label, "keep": found["keep"]}
        values |= _sizes(context, self.plan) if with_sizes else {}
        values |= self._bytes(context) if with_bytes else {}
        values |= {**pruning, "seed": self.cell.seed if self.cell else None, "kept_unobserved": self.unobserved}
        for key in ("task", "off_task"):
            values[key] = found[key] and {k: v for k, v in found[key].items() if k != "right"}
        values |= self._allocation(context, found)
        return SweepRow.model_validate(values | {"fidelity": found["fidelity"], "file": self.file})

    def _allocation(self, context: RunContext, found: JsonObject) -> JsonObject:
        """Of a cell with a measured allocation: it, and how it compares with the uniform cell, question by question."""
        if not self.uniform:
            return {}
        uniform = json.loads((context.directory.sweep / self.uniform.file).read_text())["task"]
        compared = pair_of(found["task"]["right"], uniform["right"])
        allocation = {
            **found["allocated"], "measurements": found["measurements"], "uniform_loss": uniform["loss"],
            "difference": compared.difference, "interval": list(compared.interval), "p": compared.p,
        }  # fmt: skip
        reason = context.once(("why not per layer", context.recipe.model), lambda: why_not_per_layer(context.config))
        return {"allocation": allocation, "not_written": reason}

    def _bytes(self, context: RunContext) -> dict[str, Any]:
        """Of the pruned model in the checkpoint's dtype, as it is compressed; and how many numbers that are."""
        compression, shape = self.compression, shape_of(self.plan)
        model = context.once(("shaped", context.recipe.model, shape), lambda: shaped_meta_model(context.config, shape))
        whole, dtype = sizes(model), resolve_dtype("checkpoint", context.config) or torch.float32
        found = CompressedSizes(*whole, whole.parameters * dtype.itemsize)
        if compression:
            found = compressed_sizes(model, whole, compression, dtype)
        reason = {"compression": str(compression), "not_written": compression.not_written} if compression else {}
        return {**found._asdict(), **reason}


def _sizes(context: RunContext, plan: Plan) -> dict[str, int | None]:
    """Of the pruned model."""
    shape = shape_of(plan)
    found = context.once(("sizes", context.recipe.model, shape), lambda: sizes(shaped_meta_model(context.config, shape)))
    return {
        "width": shape.width,
        "layers": None if shape.layers is None else len(shape.layers),
        "parameters": found.parameters,
        "active_parameters": found.active_parameters,
    }
