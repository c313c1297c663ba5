"""What else a model can do: the questions of lm-evaluation-harness -> evaluation/<role>.harness.json."""

import json
from dataclasses import asdict, dataclass

from transformers import PreTrainedModel

from toolkit.evaluation.harness import run_harness
from toolkit.moe import load_tokenizer
from toolkit.moe.placement import with_model
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stages.measurement import Measurement
from toolkit.runtime.distributed import is_main, say
from toolkit.runtime.files import fingerprint_of, write_text

BATCH_SIZE = 16  # where the recipe says no number: lm-eval's own search for one would let ranks disagree


@dataclass(frozen=True)
class HarnessFacts(Facts):
    tasks: int


class Harness(Measurement):
    kind = "harness"
    suffix = ".harness.json"

    def is_asked_for(self) -> bool:
        return bool(self.context.recipe.evaluation.harness) and super().is_asked_for()

    def purpose(self) -> str:
        return f"ask the {self.role} model about other tasks"

    def fingerprint(self) -> str:
        fingerprints = self.context.fingerprints
        return fingerprint_of(fingerprints.models[self.role], fingerprints.harness)

    def run(self) -> HarnessFacts:
        settings, run = self.context.recipe.evaluation, self.context.directory
        path, revision = self.context.checkpoint(self.role)
        tokenizer = load_tokenizer(path, revision)
        batch_size = BATCH_SIZE if settings.batch_size == "auto" else settings.batch_size

        def measure(model: PreTrainedModel) -> HarnessFacts:
            found = run_harness(model, tokenizer, settings.harness or [], settings.harness_tasks, batch_size)
            if is_main():
                run.evaluation.mkdir(parents=True, exist_ok=True)
                write_text(
                    run.path / self.output, json.dumps({task: asdict(result) for task, result in found.items()}, indent=1) + "\n"
                )
            for task, result in found.items():
                metrics = ", ".join(f"{name} {metric.value:.4f}" for name, metric in result.metrics.items())
                say(f"  {task}: {metrics}")
            return HarnessFacts(len(found))

        whole = "lm-evaluation-harness asks every rank questions of its own"
        return with_model(self.context.recipe, path, revision, measure, whole)
