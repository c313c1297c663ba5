"""The first run's questions, answered by its model and by the grown and trained one -> evaluation/recovered.first_task.json: what
growing for a second task has cost the first."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from toolkit.cuts import Plan
from toolkit.estimate import Machine, StageEstimate, repeated
from toolkit.evaluation import AnswerLog, Scores, evaluate, tokens_choosing
from toolkit.moe.placement import with_model
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.data_sizes import data_sizes
from toolkit.pipeline.fingerprints import scoring_of
from toolkit.pipeline.first_run import FirstRun
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stages.measurement import Measurement
from toolkit.recipe.roles import Role
from toolkit.runtime.distributed import on_main, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import JsonObject, fingerprint_of
from toolkit.runtime.formatting import p_value, percent, points
from toolkit.runtime.intervals import Pair, pair_of
from toolkit.tasks import encode_all, padded_batches

SIGNIFICANT = 0.05  # p below it
BEFORE, AFTER = "first_task_before", "first_task_after"  # whose answers are kept while the stage is at work


@dataclass(frozen=True)
class FirstTaskScores(Facts):
    """None where the data cannot be read, which is then said."""

    before: float | None = None
    after: float | None = None
    n: int | None = None
    missing: str | None = None


class FirstTask(Measurement):
    """Of the grown and trained model."""

    kind = "first_task"
    suffix = ".first_task.json"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.scratch = f"evaluation/{AFTER}.answers"

    def is_asked_for(self) -> bool:
        return self.context.recipe.pruning.grow is not None and super().is_asked_for()

    @property
    def first(self) -> FirstRun:
        first = self.context.first_run
        assert first is not None  # or the stage would not be asked for
        return first

    def purpose(self) -> str:
        return f"answer the questions of {self.first.recipe.task.title} as {self.first.onto} and as the grown model"

    def fingerprint(self) -> str:
        return fingerprint_of(self.context.fingerprints.models[self.role], self.first.identity, self._questions())

    def _questions(self) -> str:
        """What is asked and how it is judged; else why that is not known."""
        try:
            return scoring_of(self.first.recipe, self.context.data)
        except PollardError as error:
            return str(error)

    def estimate(self, machine: Machine) -> StageEstimate | None:
        theirs, ours = self.first.recipe, self.context.recipe
        evaluation = ours.evaluation.model_copy(update={"max_new_tokens": theirs.evaluation.max_new_tokens})
        sizes = RecipeOnMachine(self.context.variant(ours.model_copy(update={"evaluation": evaluation})), machine)
        try:
            data = data_sizes(theirs, self.context.data.task).evaluation
        except PollardError:
            return None
        return repeated(sizes.generation(self.name, self.measured(sizes), data), 2)

    def outlook(self) -> str:
        return f"the {self.first.recipe.evaluation.split} questions of {self.first.recipe.task.title}, twice"

    def run(self) -> FirstTaskScores:
        first, run = self.first, self.context.directory
        about = {"task": first.recipe.task.title, "onto": first.onto}
        try:
            self.context.data.task(first.recipe.task).examples(first.recipe.evaluation.split)
        except PollardError as error:
            say(f"  [bold yellow]not measured[/]: the data of {first.recipe.task.title} cannot be read: {error}")
            self.write(about | {"missing": str(error)})
            return FirstTaskScores(missing=str(error))
        new, settings, models = Plan.load(run.plan).experts.new, self.context.recipe, self.context.fingerprints.models
        log = AnswerLog(run.answer_log(BEFORE), [first.identity, settings.model.dtype])
        before = with_model(settings, first.onto, None, self._answering(log))
        log = AnswerLog(run.answer_log(AFTER), models[self.role])
        path, revision = self.context.checkpoint(self.role)

        def measure(model: PreTrainedModel) -> tuple[Scores, JsonObject]:
            return self._answering(log)(model), tokens_choosing(model, self._texts(), new)._asdict()

        after, choice = with_model(settings, path, revision, measure)
        pair = pair_of(_marks(after), _marks(before))
        say(
            f"  {percent(before.score)} before, {percent(after.score)} now: {points(pair.difference)} points, McNemar "
            f"{p_value(pair.p)}, over {before.n:,} questions"
        )
        facts = {"split": first.recipe.evaluation.split, "before": _score(before), "after": _score(after), "pair": _pair(pair)}
        self.write(about | facts | choice)
        on_main(lambda: run.clear(f"evaluation/{BEFORE}.answers"))
        return FirstTaskScores(before.score, after.score, before.n)

    def _answering(self, log: AnswerLog) -> Callable[[PreTrainedModel], Scores]:
        """Asks a model what the first run asked, and judges its answers alike."""
        recipe, batch_size = self.first.recipe, self.context.recipe.evaluation.batch_size
        task, asked = self.context.data.task(recipe.task), recipe.evaluation

        def answer(model: PreTrainedModel) -> Scores:
            scores = evaluate(
                model, self.context.tokenizer, task, asked.split, asked.examples, batch_size, asked.max_new_tokens,
                asked.temperature, asked.samples, recipe.seed, log=log,
            )  # fmt: skip
            scores.check()
            return scores

        return answer

    def _texts(self) -> list[JsonObject]:
        """The same questions with their gold answers, in batches; those longer than the first run trained on are left out."""
        recipe, tokenizer = self.first.recipe, self.context.tokenizer
        examples = self.context.data.task(recipe.task).examples(recipe.evaluation.split)[: recipe.evaluation.examples]
        encoded, _ = encode_all(tokenizer, examples, recipe.calibration.max_length, "calibration.max_length")
        return padded_batches(encoded, self.context.recipe.calibration.batch_size, int(tokenizer.pad_token_id or 0))


def _marks(scores: Scores) -> str:
    return "".join(str(int(item.correct)) for item in scores.items)


def _score(scores: Scores) -> JsonObject:
    return {"score": scores.score, "correct": scores.correct, "n": scores.n, "interval": list(scores.interval)}


def _pair(pair: Pair) -> JsonObject:
    return {"first": "grown", "second": "before", **pair._asdict(), "n": pair.n, "significant": pair.p < SIGNIFICANT}
