"""What else a model can do: the questions of lm-evaluation-harness -> evaluation/<role>.harness.json."""

from dataclasses import asdict, dataclass

from transformers import PreTrainedModel

from toolkit.estimate import Machine, StageEstimate, memory_on
from toolkit.evaluation.harness import run_harness
from toolkit.moe import load_tokenizer
from toolkit.moe.placement import with_model
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stages.measurement import Measurement
from toolkit.runtime.distributed import say
from toolkit.runtime.files import fingerprint_of

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

    def estimate(self, machine: Machine) -> StageEstimate:
        """Only lm-eval knows how long its questions are: at most as long as the longest examples."""
        settings, longest = self.context.recipe.evaluation, self.context.recipe.finetuning.max_length
        sizes, batch = RecipeOnMachine(self.context, machine), self._batch_size()
        placement = sizes.place(self.measured(sizes), whole=True)
        gpu = placement.gpu | {
            "activations": placement.model.activations(batch, longest) or 0,
            "logits": 2 * 4 * placement.model.vocabulary * batch * longest,  # and their logarithms, in float32
        }
        on_gpu, in_ram = memory_on(machine, gpu, {"weights": placement.host})
        work = f"lm-evaluation-harness: {', '.join(settings.harness or [])}; questions of at most {longest:,} tokens"
        return StageEstimate(self.name, work, on_gpu, in_ram, flops=None, notes=placement.notes)

    def outlook(self) -> str:
        return f"lm-evaluation-harness: {', '.join(self.context.recipe.evaluation.harness or [])}"

    def _batch_size(self) -> int:
        asked = self.context.recipe.evaluation.batch_size
        return BATCH_SIZE if asked == "auto" else asked

    def run(self) -> HarnessFacts:
        settings = self.context.recipe.evaluation
        path, revision = self.context.checkpoint(self.role)
        tokenizer = load_tokenizer(path, revision)

        def measure(model: PreTrainedModel) -> HarnessFacts:
            found = run_harness(model, tokenizer, settings.harness or [], settings.harness_tasks, self._batch_size())
            self.write({task: asdict(result) for task, result in found.items()})
            for task, result in found.items():
                metrics = ", ".join(f"{name} {metric.value:.4f}" for name, metric in result.metrics.items())
                say(f"  {task}: {metrics}")
            return HarnessFacts(len(found))

        whole = "lm-evaluation-harness asks every rank questions of its own"
        return with_model(self.context.recipe, path, revision, measure, whole)
