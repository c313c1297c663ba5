"""The cells of `refit_study.py`: shapes of about a half, a third and a quarter of the bytes, and for each of them, with and
without refit, a launch per number of steps."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from study import Answers, PipelineCell, answers_of

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import load_recipe
from toolkit.runtime.files import fingerprint_of

RECIPE = "recipes/study/refit.yaml"
SUBJECTS = ("arithmetic", "sorting")
STEPS = {10: 30, 30: 90, 100: 300}
"""Of fine-tuning, by percent of the whole of it."""
REFIT = ("pruning.refit=true", "finetuning.trainer.learning_rate=1e-4")
"""What is good already wants a smaller rate: on the dev slice, 90 steps at 8 -> 4 end at 99.0 % with 1e-4, at 98.0 with 3e-4."""
WIDTH_MULTIPLE = 8  # of 256 channels: fine enough to meet a size
ON_COMPLETIONS = (("arithmetic", "experts"), ("arithmetic", "dense"))
"""Where experts and channels are chosen on completion tokens alone; elsewhere on all tokens. The better on the dev slice."""


@dataclass(frozen=True)
class Shape:
    """What stays of the playground's model (4 layers, 8 experts of 256 channels). None: all."""

    size: str
    cut: str
    keep: int | None = None
    width: int | None = None
    layers: int | None = None
    dense: bool = False

    @property
    def slug(self) -> str:
        return f"{self.size}-{self.cut.replace(' + ', '-')}"

    @property
    def what_stays(self) -> str:
        """ "6 experts × 152 channels"."""
        layers = [f"{self.layers} layer{'s' * (self.layers > 1)}"] if self.layers else []
        experts = [f"{self.keep} expert{'s' * (self.keep > 1)}"] if self.keep else []
        return " × ".join([*layers, *experts, *([f"{self.width} channels"] if self.width else [])])

    def overrides(self) -> list[str]:
        width = [f"pruning.width={self.width}", f"pruning.width_multiple={WIDTH_MULTIPLE}"] if self.width else []
        layers = [f"pruning.layers={self.layers}"] if self.layers else []
        dense = ["pruning.form=dense"] if self.dense else []
        return [f"pruning.keep={self.keep or 'null'}", *width, *layers, *dense]


EXPERTS = "experts"
SHAPES = (
    Shape("half", EXPERTS, keep=4),
    Shape("half", "width", width=112),
    Shape("half", "layers", layers=2),
    Shape("half", "experts + width", keep=6, width=152),
    Shape("half", "width + layers", width=160, layers=3),
    Shape("half", "dense", keep=4, width=224, dense=True),
    Shape("quarter", EXPERTS, keep=1),
    Shape("quarter", "width", width=40),
    Shape("quarter", "layers", layers=1),
    Shape("quarter", "experts + width", keep=6, width=56),
    Shape("quarter", "width + layers", width=64, layers=3),
    Shape("quarter", "dense", keep=2, width=160, dense=True),
    Shape("third", EXPERTS, keep=2),
    Shape("third", "width", width=64),
    Shape("third", "experts + width", keep=6, width=88),
    Shape("third", "width + layers", width=96, layers=3),
    Shape("third", "dense", keep=2, dense=True),
)
"""Of every cut, and of combinations, the shape whose bytes are nearest to the size, with the most telling sizes first. No number
of layers comes near a third."""


class Measured(Answers):
    parameters: int
    active_parameters: int
    bytes: int  # of the checkpoint


class RefitResult(TypedDict):
    """`models` by role; `seconds` by stage."""

    seconds: dict[str, float]
    models: dict[str, Measured]


@dataclass(frozen=True)
class RefitCell(PipelineCell):
    """Cut, with or without refit, and fine-tuned. That of the fewest steps also measures the model before fine-tuning."""

    subject: str
    seed: int
    shape: Shape
    refit: bool
    percent: int
    recipe = RECIPE
    what = ("toolkit/train.py",)

    @property
    def name(self) -> str:
        refit = "-refit" if self.refit else ""
        return f"{self.subject}-{self.shape.slug}{refit}-steps{STEPS[self.percent]}-seed{self.seed}"

    def run(self, study: str) -> str:
        """Shared by the cells of one shape, one after the other, so that calibration and cut are done once."""
        return f"{study}-{self.subject}-{self.shape.slug}-seed{self.seed}"

    @property
    def start(self) -> str:
        """The role of the model before fine-tuning."""
        return "refitted" if self.refit else "pruned"

    @property
    def roles(self) -> list[str]:
        first = self.percent == min(STEPS)
        reference = first and not self.refit and (self.shape, self.seed) == (SHAPES[0], 0)  # the original, once per subject
        return [*(["original"] if reference else []), *([self.start] if first else []), "recovered"]

    def overrides(self) -> list[str]:
        tokens = "completion" if (self.subject, self.shape.cut) in ON_COMPLETIONS else "all"
        return [
            f"task=playground/{self.subject}", f"seed={self.seed}", f"pruning.tokens={tokens}", *self.shape.overrides(),
            *(REFIT if self.refit else []),
            f"finetuning.trainer.max_steps={STEPS[self.percent]}", f"evaluation.models=[{','.join(self.roles)}]",
        ]  # fmt: skip

    def asked(self, arguments: Sequence[str]) -> str:
        """Of what the recipe says, without defaults: keys that the toolkit learns later leave finished cells alone."""
        return fingerprint_of(load_recipe(self.recipe, arguments).model_dump(mode="json", exclude_unset=True))

    def result(self, study: str) -> RefitResult | None:
        found: RefitResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> RefitResult:
        models: dict[str, Measured] = {}
        reported = json.loads((run.path / "report.json").read_text())["models"]
        for role in self.roles:
            size = reported[role]
            models[role] = {
                **answers_of(run, role), "parameters": size["parameters"],
                "active_parameters": size["active_parameters"], "bytes": size["checkpoint_bytes"],
            }  # fmt: skip
        stages = ("layers", "calibrate", "prune", "refit", "recover")
        seconds = {stage: entry["seconds"] for stage, entry in run.done().items() if stage in stages}
        return {"seconds": seconds, "models": models}
