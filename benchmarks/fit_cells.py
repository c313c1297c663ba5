"""The cells of `fit_study.py`, for every task, size and seed: a run whose shape is searched; the same search with every shape
measured; and, in the shapes that these found, experts only, width only, layers only, the dense form, and the best of all."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from study import Answers, PipelineCell, answers_of

from toolkit.cuts.fit_result import FitResult, FitShape, ShapeRecord
from toolkit.moe import checkpoint_bytes
from toolkit.pipeline.fit_trials import name_of
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import load_recipe
from toolkit.runtime.files import fingerprint_of, write_text

RECIPE = "recipes/study/fit.yaml"
MODEL = Path("data/playground/model")
SUBJECTS = ("arithmetic", "sorting")
SIZES = {"half": 2, "third": 3, "quarter": 4}
CUTS = ("experts", "width", "layers", "dense")
BEST = "best"
OF_SEARCHES = ("pruning.fit.", "pruning.width_multiple=")
"""Overrides that do not concern a run whose shape is given."""
ALL_SHAPES = 64  # more than there are within a limit


class Found(TypedDict):
    """A shape as the search measured it: refit, on the dev slice. `loss` is above the original's, in nats per completion token
    (None: not finite)."""

    shape: list[int | str]
    bytes: int
    loss: float | None
    score: float
    n: int
    seconds: float
    single_cut: str | None
    trial: NotRequired[float]  # dev accuracy after a tenth of the steps


class SearchResult(TypedDict):
    """`shapes`: those that were measured; `chosen`: one of them; `seconds` by stage."""

    original: list[int | str]  # its shape
    original_score: float
    shapes: list[Found]
    chosen: list[int | str]
    kept_layers: dict[str, list[int]]
    seconds: dict[str, float]
    models: dict[str, Answers]


class CutResult(TypedDict):
    """`shape`: None where no such shape is within the limit."""

    shape: list[int | str] | None
    seconds: dict[str, float]
    models: dict[str, Answers]


@dataclass(frozen=True)
class SearchCell(PipelineCell):
    """A run with a limit instead of a shape. `every_shape`: as far as shapes are measured, all of them, in the same folder."""

    subject: str
    size: str
    seed: int
    every_shape: bool = False
    recipe = RECIPE

    @property
    def what(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("--module", "toolkit.cli", "fit") if self.every_shape else ("toolkit/train.py",)

    @property
    def place(self) -> str:
        return f"{self.subject}-{self.size}-seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.place}-{'every-shape' if self.every_shape else 'fit'}"

    def run(self, study: str) -> str:
        """Shared by both, one after the other: a shape is measured once."""
        return f"{study}-{self.place}"

    @property
    def roles(self) -> list[str]:
        if self.every_shape:
            return []
        reference = (self.size, self.seed) == ("half", 0)  # the original, once per subject
        return [*(["original"] if reference else []), "refitted", "recovered"]

    def overrides(self) -> list[str]:
        every = [f"pruning.fit.measured={ALL_SHAPES}"] if self.every_shape else []
        models = [f"evaluation.models=[{','.join(self.roles)}]"] if self.roles else []
        return [
            f"task=playground/{self.subject}", f"seed={self.seed}",
            f"pruning.fit.bytes={checkpoint_bytes(MODEL) // SIZES[self.size]}", *every, *models,
        ]  # fmt: skip

    def asked(self, arguments: Sequence[str]) -> str:
        return _asked(arguments)

    def result(self, study: str) -> SearchResult | None:
        found: SearchResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> SearchResult:
        result = FitResult.load(run.fit_result)
        assert result.original.measured and result.original.measured.score is not None, "the original is measured"
        return {
            "original": list(result.original.shape), "original_score": result.original.measured.score,
            "shapes": [_found(record) for record in result.shapes if record.measured and record.refused is None],
            "chosen": list(result.choice.shape),
            "kept_layers": {str(number): kept for number, kept in result.kept_layers.items()},
            "seconds": {stage: entry["seconds"] for stage, entry in run.done().items() if stage != "report"},
            "models": {role: answers_of(run, role) for role in self.roles},
        }  # fmt: skip


@dataclass(frozen=True)
class CutCell(PipelineCell):
    """A shape that a search found, in a run of its own. `cut`: what it cuts, or the best of all that were measured."""

    subject: str
    size: str
    seed: int
    cut: str
    shape: FitShape | None = None
    numbers: tuple[str, ...] = ()
    """Of the shape, as overrides; both are known when the search has ended."""
    recipe = RECIPE
    what = ("toolkit/train.py",)
    roles = ("refitted", "recovered")

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.size}-seed{self.seed}-{self.cut}"

    @property
    def searches(self) -> tuple[SearchCell, SearchCell]:
        """The fit, and that with every shape."""
        fit, every = (SearchCell(self.subject, self.size, self.seed, every) for every in (False, True))
        return fit, every

    def run(self, study: str) -> str:
        """By its shape: the best may be one that cuts one thing only."""
        assert self.shape, "found"
        return f"{study}-{self.subject}-{self.size}-seed{self.seed}-{name_of(self.shape)}"

    def overrides(self) -> list[str]:
        roles = ",".join(self.roles)
        return [f"task=playground/{self.subject}", f"seed={self.seed}", *self.numbers, f"evaluation.models=[{roles}]"]

    def do(self, study: str, overrides: Sequence[str]) -> str | None:
        fit, every = (search.result(study) for search in self.searches)
        overrides = [override for override in overrides if not override.startswith(OF_SEARCHES)]
        if not fit or not every:
            return f"{self.name}: its search is not finished"
        shape = shape_of(every, self.cut)
        if shape is None:
            self._keep(study, {"shape": None, "seconds": {}, "models": {}}, _asked([f"seed={self.seed}", *overrides]))
            return None
        cell = CutCell(self.subject, self.size, self.seed, self.cut, shape, numbers_of(shape, every))
        if list(shape) == fit["chosen"]:  # the fit's run went on with just this recipe
            models = {role: fit["models"][role] for role in self.roles}
            asked = _asked([f"name={cell.run(study)}", *cell.overrides(), *overrides])
            self._keep(study, {"shape": list(shape), "seconds": fit["seconds"], "models": models}, asked)
            return None
        return super(CutCell, cell).do(study, overrides)

    def _keep(self, study: str, result: CutResult, asked: str) -> None:
        write_text(self.path(study), json.dumps({"asked": asked, **result}) + "\n")

    def asked(self, arguments: Sequence[str]) -> str:
        return _asked(arguments)

    def result(self, study: str) -> CutResult | None:
        found: CutResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> CutResult:
        assert self.shape, "found"
        seconds = {stage: entry["seconds"] for stage, entry in run.done().items() if stage != "report"}
        return {"shape": list(self.shape), "seconds": seconds, "models": {role: answers_of(run, role) for role in self.roles}}


def shape_of(result: SearchResult, cut: str) -> FitShape | None:
    """The shape that cuts this only; of the dense form the one that was measured; of all the one with the smallest loss."""
    shapes = [(each, FitShape(*each["shape"])) for each in result["shapes"]]  # type: ignore[arg-type]
    if cut == BEST:
        return min(shapes, key=lambda pair: (_loss(pair[0]), pair[0]["bytes"]))[1]
    if cut == "dense":
        shapes = [pair for pair in shapes if pair[1].form == "dense"]
        return min(shapes, key=lambda pair: _loss(pair[0]))[1] if shapes else None
    return next((shape for each, shape in shapes if each["single_cut"] == cut), None)


def numbers_of(shape: FitShape, result: SearchResult) -> tuple[str, ...]:
    """As overrides of a recipe without a fit: what differs from the original."""
    layers, experts, width, active = result["original"][:4]
    kept = ",".join(map(str, result["kept_layers"][str(shape.layers)]))
    return (
        "pruning.fit=null",
        f"pruning.keep={'null' if shape.experts == experts else shape.experts}",
        f"pruning.width={'null' if shape.width == width else shape.width}",
        f"pruning.layers={'null' if shape.layers == layers else f'[{kept}]'}",
        f"pruning.form={shape.form}",
        *(["pruning.width_multiple=null"] if shape.width == width else []),
        *([] if shape.experts_per_token == min(int(active), shape.experts) else [f"pruning.experts_per_token={shape[3]}"]),
    )


def _loss(found: Found) -> float:
    return float("inf") if found["loss"] is None else found["loss"]


def _found(record: ShapeRecord) -> Found:
    measured = record.measured
    assert measured and measured.score is not None, "a task's dev slice is answered"
    found: Found = {
        "shape": list(record.shape), "bytes": record.bytes, "loss": measured.loss, "score": measured.score, "n": measured.n,
        "seconds": measured.seconds, "single_cut": record.single_cut,
    }  # fmt: skip
    if record.trial and record.trial.score is not None:
        found["trial"] = record.trial.score
    return found


def _asked(arguments: Sequence[str]) -> str:
    """Of what the recipe says, without defaults: keys that the toolkit learns later leave finished cells alone."""
    return fingerprint_of(load_recipe(RECIPE, arguments).model_dump(mode="json", exclude_unset=True))
