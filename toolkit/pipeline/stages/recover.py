"""Pruned checkpoint and training examples -> recovered/: the pruned model, fine-tuned."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from transformers import PreTrainedModel

from toolkit.cuts.plan import Plan
from toolkit.estimate import DataSize, FineTuning, Machine, StageEstimate, cannot_fit, estimate_finetuning
from toolkit.evaluation import evaluate
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.fingerprints import role_before_recovery
from toolkit.pipeline.outlook import training_outlook
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Relief, smaller_models
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.pipeline.stage_names import MADE_BY, student_stage
from toolkit.pipeline.stages.teacher import TEACHING
from toolkit.pipeline.training_changes import LighterTraining, smaller_training
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import say, world_size
from toolkit.runtime.files import fingerprint_of


@dataclass(frozen=True)
class TrainingFacts(Facts):
    """As `toolkit.recovery.recover` returns them."""

    steps: int
    selected_step: int
    examples: int
    left_out: int
    beyond_context: int
    overlapping: int
    repeating: int
    bad_lines: int
    first_loss: float | None
    last_loss: float | None


class Recover(Stage):
    kind = MADE_BY[Role.RECOVERED]
    sections = DECIDING[Role.RECOVERED]
    result = "unique"
    output = "recovered"
    checkpoints = ("recovered", "adapter")
    scratch = "checkpoints/recovered"
    resumes = ("checkpoints",)
    last_screen = Shown(1, "the pruned model, fine-tuned: a stock transformers checkpoint")

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.start = role_before_recovery(context.recipe)
        self.needs = (*needs_of_training(context.recipe, context.recipe.finetuning.student_rounds), *TEACHING)

    def is_asked_for(self) -> bool:
        return Role.RECOVERED in self.context.recipe.evaluation.models

    def purpose(self) -> str:
        rounds = self.context.recipe.finetuning.student_rounds
        start = f"model that round {rounds - 1} has left" if rounds > 1 else f"{self.start} model"
        return f"fine-tune the {start} {self._training()}"

    def _training(self) -> str:
        settings = self.context.recipe.finetuning
        return f"({settings.method}, ZeRO {settings.zero}, {world_size()} rank{'s' * (world_size() > 1)})"

    def fingerprint(self) -> str:
        return self.context.fingerprints.models[Role.RECOVERED]

    def estimate(self, machine: Machine) -> StageEstimate:
        return estimate_finetuning(self.name, self._finetuning(machine), machine, self._size)

    def cannot_fit(self, machine: Machine) -> bool:
        return cannot_fit(self._finetuning(machine), machine)

    def outlook(self) -> str:
        return training_outlook(self.context, self._size)

    @property
    def _size(self) -> DataSize:
        return self.context.data_sizes.training

    def relief(self, machine: Machine) -> Relief:
        recipe = self.context.recipe
        lighter = LighterTraining(recipe, machine)
        smaller = lighter.with_smaller_models(smaller_models(self.context.asked, self.context.budget.keep))
        return Relief(chain(lighter.changes(), smaller))

    def smaller(self) -> str:
        return smaller_training(self.context.recipe)

    def _finetuning(self, machine: Machine) -> FineTuning:
        sizes = RecipeOnMachine(self.context, machine)
        return sizes.finetuning(sizes.pruned(sizes.trainer.dtype))

    def run(self) -> TrainingFacts:
        plan = Plan.load(self.context.directory.plan)
        balanced = self.context.recipe.finetuning.trainer.get("router_aux_loss_coef")
        dense = self.context.recipe.pruning.form == "dense"
        if plan.experts_per_token == plan.keep and not balanced and not dense:
            say("  every kept expert serves every token: a load-balancing loss would be constant, and is off")
        return self._train("recovered", self.context.recipe.finetuning.student_rounds or None)

    def _train(self, role: Literal["recovered", "control"], student_round: int | None = None) -> TrainingFacts:
        """`student_round`: which training on what the student writes it is, where it writes anything."""
        from toolkit.recovery.recover import recover  # takes seconds; a run that is done needs none of it

        context, fingerprint = self.context, self.fingerprint()
        root, accuracy = str(context.directory.path.parent), dev_accuracy(context)
        if student_round:  # the very answers: checkpoints of a training on others are none to go on from
            fingerprint = fingerprint_of(fingerprint, context.directory.identity_of(student_stage(student_round, "teacher")))
        return TrainingFacts(**recover(context.recipe, root, role, fingerprint, accuracy, context.data, student_round))


def needs_of_training(recipe: Recipe, number: int) -> tuple[str, ...]:
    """The stages that a training of the pruned model is made from, without those that other trainings share: `number` says
    which on what the student writes (0: it writes nothing)."""
    start = MADE_BY[role_before_recovery(recipe)] if number <= 1 else student_stage(number - 1, "recover")
    return (start, student_stage(number, "teacher")) if number else (start,)


def dev_accuracy(context: RunContext) -> Callable[[PreTrainedModel], float] | None:
    """Measures a model while it trains: the share of the dev slice that it answers rightly, on every rank. None where the
    recipe does not select by it."""
    if context.recipe.finetuning.select_by != "dev_accuracy":
        return None
    task, tokenizer, settings = context.task, context.tokenizer, context.recipe.evaluation

    def measure(model: PreTrainedModel) -> float:
        scores = evaluate(model, tokenizer, task, "dev", None, settings.batch_size, settings.max_new_tokens)
        scores.check()
        return scores.score

    return measure
