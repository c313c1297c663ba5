"""The tables that `fit.py` compares searches on: shapes of the playground's model, each measured as a whole on the dev slice,
masked; and what each kind of cut costs alone.

For every limit, every number of layers and of experts, with the greatest width that meets the limit: whatever a shape with these
numbers can do, this one can, too. What is measured lies in runs/<name>-<task>-seed<seed>/fit/ and is never measured again; whole
tables are kept in a file of the repository.
"""

import json
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from toolkit.cuts.fit_result import Axis, FitResult, FitShape, MeasuredShape, ShapeRecord
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import fit_fingerprints
from toolkit.pipeline.fit_evidence import FitEvidence
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.pipeline.fit_space import FitSpace
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import run_context
from toolkit.pipeline.stage_names import FIT_SCORES
from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say
from toolkit.runtime.files import fingerprint_of, write_text

RECIPE = "recipes/study/fit.yaml"
MASKED = (
    "pruning.refit=false", "pruning.fit.refit=false", "pruning.fit.cuts=[experts,width,layers]", "evaluation.models=[pruned]",
)  # fmt: skip
PARTS = (2, 3, 4)
"""The limits: a half, a third and a quarter of the original's bytes."""


class LimitTable(BaseModel):
    """One limit. `candidates`: the shapes that a fit looks at, with their predicted deltas, as in its fit.json."""

    part: int
    bytes: int
    candidates: list[ShapeRecord]


class ScoreTable(BaseModel):
    """One task and seed. `shapes`: those of all limits, measured; losses as they are, not relative to the original's."""

    asked: str  # a fingerprint of the recipe
    original: FitShape
    original_bytes: int
    measured: MeasuredShape  # of the original
    axes: list[Axis]
    limits: list[LimitTable]
    shapes: list[ShapeRecord]
    seconds: float  # of all measurements of shapes, other work on the cores included


class ScoreTables(BaseModel):
    """By "<task>-seed<seed>"."""

    tables: dict[str, ScoreTable] = {}

    @classmethod
    def load(cls, file: Path) -> Self:
        return cls(tables=json.loads(file.read_text())) if file.exists() else cls()

    def save(self, file: Path) -> None:
        lines = ",\n".join(f"{json.dumps(name)}: {self.tables[name].model_dump_json()}" for name in sorted(self.tables))
        write_text(file, f"{{\n{lines}\n}}\n")


def measure_table(name: str, subject: str, seed: int, overrides: Sequence[str], known: ScoreTable | None) -> ScoreTable:
    """Through the pipeline's own stages and classes, in this process. `known` is returned where it answers the same recipe."""
    recipe = recipe_of(name, subject, seed, overrides)
    asked = asked_of(recipe)
    if known and known.asked == asked:
        return known
    whole = RunContext(recipe).fit_space
    original_bytes = whole.size(whole.original).bytes
    limits, axes, wanted = [], list[Axis](), dict[FitShape, None]()
    for part in PARTS:
        most = original_bytes // part
        fit = recipe.pruning.fit
        assert fit
        pruning = recipe.pruning.model_copy(update={"fit": fit.model_copy(update={"bytes": most})})
        context = _context(recipe.model_copy(update={"pruning": pruning}))
        run_context(context, until=FIT_SCORES)
        result = FitResult.load(context.directory.fit_result)
        axes = result.axes
        limits.append(LimitTable(part=part, bytes=most, candidates=[shape for shape in result.shapes if shape.refused is None]))
        wanted |= dict.fromkeys(widest_shapes(context.fit_space, result.kept_layers, most))
    evidence, started = FitEvidence(context), time.monotonic()
    measurements = ShapeMeasurements(evidence, fit_fingerprints(context.asked, context.data).asked)
    say(f"{subject}, seed {seed}: {len(wanted)} shapes are measured")
    found = measurements.measure(list(wanted), needed=0)  # masked: no weights are written
    kept = evidence.plans.kept_layers
    shapes = [
        ShapeRecord.model_validate(
            shape._asdict() | whole.size(shape, kept)._asdict() | {"measured": _without_answers(found[shape])}
        )
        for shape in wanted
    ]
    return ScoreTable(
        asked=asked, original=whole.original, original_bytes=original_bytes, measured=_without_answers(found[None]), axes=axes,
        limits=limits, shapes=shapes, seconds=round(time.monotonic() - started, 1),
    )  # fmt: skip


def recipe_of(name: str, subject: str, seed: int, overrides: Sequence[str] = ()) -> Recipe:
    named = [f"name={name}-{subject}-seed{seed}", f"task=playground/{subject}", f"seed={seed}"]
    return load_recipe(RECIPE, [*named, *MASKED, *overrides])


def asked_of(recipe: Recipe) -> str:
    """Of what the recipe says, without defaults: keys that the toolkit learns later leave finished tables alone. Shapes are
    measured on the task alone."""
    return fingerprint_of(recipe.model_dump(mode="json", exclude_unset=True, exclude={"evaluation": {"off_task"}}))


def widest_shapes(space: FitSpace, kept_layers: dict[int, list[int]], most: int) -> Iterator[FitShape]:
    """For every number of layers and of experts, the greatest width with at most so many bytes."""
    values = space.values
    active = values.experts_per_token[-1]
    for layers, experts in product(values.layers, values.experts):
        shapes = (FitShape(layers, experts, width, min(active, experts)) for width in reversed(values.width))
        widest = next((shape for shape in shapes if space.size(shape, kept_layers).bytes <= most), None)
        if widest and layers in kept_layers:
            yield widest


def _context(recipe: Recipe) -> RunContext:
    return RunContext(recipe, RunDirectory(recipe.name), run_stages=lambda context, until: run_context(context, until=until))


def _without_answers(found: MeasuredShape) -> MeasuredShape:
    """A table compares scores, not answers."""
    return found.model_copy(update={"right": ""})
