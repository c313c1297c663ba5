"""The cells of `recovery_ideas_study.py`: a variant with a seed, through the pipeline, and what it measured."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from recovery_ideas_variants import FEW, FEW_FILE, FIRST_MODEL, SUBJECTS, TASKS, Variant
from study import PipelineCell

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.runner import plan_stages
from toolkit.recipe.file import load_recipe
from toolkit.runtime.files import fingerprint_of, write_text

RECIPE = "recipes/study/recovery-ideas.yaml"
DATA_OF_FEW = Path("runs", "few-examples")


class IdeaResult(TypedDict):
    """What a cell measured. `models`: by role and task, a text with a 1 for every question answered rightly."""

    seconds: Mapping[str, float]  # by stage
    steps: int  # of all trainings
    examples: int  # of the last training
    models: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class IdeaCell(PipelineCell):
    variant: Variant
    seed: int
    recipe = RECIPE
    what = ("toolkit/train.py",)

    @property
    def name(self) -> str:
        return f"{self.variant.name}-seed{self.seed}"

    @property
    def home(self) -> str:
        """The letter of the part whose run directory it shares: from a refitted start, that of the same variant without."""
        variant = self.variant
        return variant.against[0] if variant.part == "f" and variant.against else variant.part

    def run(self, study: str) -> str:
        return f"{study}-{self.home}-{self.variant.place}-seed{self.seed}"

    def overrides(self) -> list[str]:
        return [
            f"seed={self.seed}", *self.variant.keys, f"finetuning.trainer.learning_rate={self.variant.rate:g}",
            f"evaluation.models=[{','.join(self.variant.models)}]",
        ]  # fmt: skip

    def arguments(self, study: str, overrides: Sequence[str]) -> list[str]:
        first = Path("runs", f"{study}-d-first-seed{self.seed}", "recovered")
        stand_for = {FEW_FILE: few_examples(self.seed), FIRST_MODEL: first}
        arguments = super().arguments(study, overrides)
        for name, path in stand_for.items():
            arguments = [argument.replace(name, str(path)) for argument in arguments]
        return arguments

    def asked(self, arguments: Sequence[str]) -> str:
        """Of what the recipe says, without defaults: keys that the toolkit learns later leave finished cells alone."""
        return fingerprint_of(load_recipe(self.recipe, arguments).model_dump(mode="json", exclude_unset=True))

    def result(self, study: str) -> IdeaResult | None:
        found: IdeaResult | None = self.stored(study)
        return found

    def measured(self, run: RunDirectory) -> IdeaResult:
        # Other cells' stages lie in the directory, too
        planned, done = plan_stages(load_recipe(run.path / "recipe.yaml")), run.done()
        entries = {stage.name: done[stage.name] for stage in planned}
        return {
            "seconds": {stage: entry["seconds"] for stage, entry in entries.items() if not stage.startswith("evaluate")},
            "steps": sum(entry["steps"] for stage, entry in entries.items() if stage.endswith("recover")),
            "examples": entries["recover"]["examples"],
            "models": {role: _right_by_task(run.evaluation / f"{role}.predictions.jsonl") for role in self.variant.models},
        }


def _right_by_task(predictions: Path) -> dict[str, str]:
    """Part d asks the questions of two tasks in one test set."""
    found = dict.fromkeys(SUBJECTS, "")
    for line in predictions.read_text().splitlines():
        asked = json.loads(line)
        found[SUBJECTS[asked["prompt"].startswith("Sort these words")]] += str(int(asked["correct"]))
    return {subject: right for subject, right in found.items() if right}


def few_examples(seed: int) -> Path:
    """A file with FEW training examples of `arithmetic` and one for a dev slice, which nothing is chosen by. All that part b
    knows of the task: calibration, training and questions read nothing else."""
    path = DATA_OF_FEW / f"seed{seed}.jsonl"
    if not path.exists():
        lines = (TASKS / "arithmetic" / "train.jsonl").read_text().splitlines()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(random.Random(seed).sample(lines, FEW + 1)) + "\n")
    return path
