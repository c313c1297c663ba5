"""The section of docs/scaling.md about a fit: how many shapes there are within a limit, and what it takes to find the best."""

from pathlib import Path

from toolkit.cli.estimate_table import gib
from toolkit.cuts.fit_result import FitShape
from toolkit.estimate import GIB, Machine, StageEstimate
from toolkit.estimate.masked_losses import times_read
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.fit_evidence import layers_recipe
from toolkit.pipeline.layer_search import LayerSearch
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.stages.fit_measure import FitMeasure
from toolkit.pipeline.stages.fit_scores import FitScores
from toolkit.recipe.file import load_recipe
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import MISSING, amount

ROOT = Path(__file__).parents[1]
MODELS = {
    "mixtral-8x7b": "Mixtral-8x7B",
    "qwen3-30b-a3b": "Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen3-235B-A22B",
    "gpt-oss-120b": "gpt-oss-120b",
    "deepseek-v3": "DeepSeek-V3",
}
LIMITS = ("24G", "80G", "640G")
SEARCHED_LIMIT = "24G"  # of the second table: what the search takes hardly depends on it
HEAD = """## Fit: shapes within a limit

Where a recipe gives a limit instead of a shape ([recipes/math.yaml](../recipes/math.yaml) with
`pruning: {fit: {bytes: 24G}}`), the shapes within it are listed from the configuration alone: layers × experts per block ×
channels per expert, at most 16 values of the first two, every multiple of 128 channels (64 of gpt-oss), as many experts per
token as before, and only shapes that no other contains. For DeepSeek-V3 that takes 3 seconds on a CPU core, for
Mixtral-8x7B 1: models without weights are built. Limits are GiB of bfloat16 weights; gpt-oss-120b is published in MXFP4, and
its bfloat16 copy is counted. The largest shape is what an estimate counts until one is chosen; the others are the largest that
cut one thing only. A dash: no such shape is within the limit.

| model | GiB | limit | shapes | largest | experts only | width only | layers only |
|---|---:|---:|---:|---:|---:|---:|---:|
"""
SEARCH = """What the search takes on 8 H100 (2 TiB of RAM) before anything is fine-tuned, with 512 calibration examples and 500
dev examples of 1,024 tokens: one calibration; the order of the layers, by `layer_criterion: influence` (similarities, one pass)
or `dev_loss` (one pass for every layer that is left, in every turn); a pass for every value of every axis; and the loss and
the answers of at most 11 shapes and the original (`fit/measure`). Passes over the dev examples are those of turns, axes and
shapes. Bytes read: calibration and axes read the checkpoint once each, layer by layer (axes more often where the hidden states
of all passes do not fit into half of the RAM); so do similarities, and `dev_loss` and `fit/measure` load the model once. Hours
are of the clock, and upper bounds: a shape that is masked counts as the whole model. Bold: does not fit, for `dev_loss` and
`fit/measure` need the model in one piece.

| model | passes | TB read | scores: GPU GiB | hours | measure: GPU GiB | hours | dev_loss: passes | scores: GPU GiB | hours |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|
"""


def context_for(estimator: Estimator, name: str, limit: str, criterion: str = "influence") -> RunContext:
    """Raises PollardError where the limit is none, or too small."""
    overrides = [f"model={ROOT / 'benchmarks' / 'scaling' / name}", "pruning.keep=null", f"pruning.fit={{bytes: {limit}}}"]
    overrides += [f"pruning.layer_criterion={criterion}", "model.placement=spread"]
    return estimator.context(load_recipe(ROOT / "recipes" / "math.yaml", overrides))


def shapes_rows(name: str, machine: Machine) -> str:
    """A row for each limit."""
    estimator, rows = Estimator(machine), ""
    for limit in LIMITS:
        try:
            space = context_for(estimator, name, limit).fit_space
            candidates = space.candidates()
        except PollardError as error:
            assert error.code == "fit.nothing-to-cut", error
            rows += f"| {MODELS[name]} | | {limit[:-1]} | all of it fits | | | | |\n"
            continue
        single = {each.single_cut: _shape(each.shape, each.size.parameters) for each in candidates if each.single_cut}
        cells = [single.get(cut, MISSING) for cut in ("experts", "width", "layers")]
        whole, largest = space.size(space.original).bytes / GIB, space.largest
        cells = [f"{len(candidates):,}", _shape(largest.shape, largest.size.parameters), *cells]
        rows += f"| {MODELS[name]} | {whole:,.0f} | {limit[:-1]} | {' | '.join(cells)} |\n"
    return rows


def search_row(name: str, machine: Machine) -> str:
    estimator = Estimator(machine)
    influence, dev_loss = (context_for(estimator, name, SEARCHED_LIMIT, criterion) for criterion in ("influence", "dev_loss"))
    scores, measure, by_loss = FitScores(influence), FitMeasure(influence), FitScores(dev_loss)
    space, sizes = influence.fit_space, RecipeOnMachine(influence, machine)
    passes = scores.passes + 1 + measure.shapes
    turns = LayerSearch(dev_loss.variant(layers_recipe(dev_loss.asked, space))).measurements
    reads = 3 + times_read(machine, sizes.original(), sizes.dev(scores.fit.examples), scores.passes)
    terabytes = reads * space.size(space.original).bytes / 1e12
    memory, hours = zip(
        *(_memory_and_hours(stage.estimate(machine), machine) for stage in (scores, measure, by_loss)), strict=True
    )
    cells = [passes, f"{terabytes:.2g}", memory[0], hours[0], memory[1], hours[1], f"{turns + passes:,}", memory[2], hours[2]]
    return f"| {MODELS[name]} | {' | '.join(map(str, cells))} |\n"


def section(machine: Machine) -> str:
    shapes = "".join(shapes_rows(name, machine) for name in MODELS)
    return HEAD + shapes + "\n" + SEARCH + "".join(search_row(name, machine) for name in MODELS)


def _shape(shape: FitShape, parameters: int) -> str:
    return f"{shape.layers} × {shape.experts} × {shape.width:,} ({amount(parameters)})"


def _memory_and_hours(stage: StageEstimate, machine: Machine) -> tuple[str, str]:
    memory = gib(stage.gpu_bytes)
    return f"**{memory}**" if stage.lacks(machine) else memory, f"{(stage.seconds or 0.0) / 3600:,.1f}"
