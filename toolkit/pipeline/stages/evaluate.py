"""The task's questions, answered by a model or a server that has it -> evaluation/<role>.json, and one line per question."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.estimate import Machine, StageEstimate, estimate_served
from toolkit.evaluation import AnswerLog, Decoding, Questions, Scores, evaluate, evaluate_with
from toolkit.moe import active_expert_parameters, checkpoint_bytes, load_config, load_tokenizer, meta_model, sizes
from toolkit.moe.placement import with_model
from toolkit.moe.tokenizer import context_length
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.outlook import batches, examples_or_all
from toolkit.pipeline.recipe_on_machine import RecipeOnMachine
from toolkit.pipeline.relief import Change, Relief, change
from toolkit.pipeline.stage import Facts
from toolkit.pipeline.stage_names import EVALUATE
from toolkit.pipeline.stages.measurement import Measurement
from toolkit.recipe.evaluation import ServerRecipe
from toolkit.recipe.roles import Role
from toolkit.report.cautions import doubt_of_original
from toolkit.runtime.distributed import is_main, on_all_ranks, say


@dataclass(frozen=True)
class ScoreFacts(Facts):
    score: float
    n: int
    bad_lines: int


class Evaluate(Measurement):
    kind = EVALUATE
    suffix = ".json"

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        super().__init__(context, role)
        self.scratch = f"evaluation/{role}.answers"

    def purpose(self) -> str:
        recipe = self.context.recipe
        return f"answer the {recipe.evaluation.split} questions of {recipe.task.title} with the {self.role} model"

    def fingerprint(self) -> str:
        return self.context.fingerprints.scores_of(self.role)

    def estimate(self, machine: Machine) -> StageEstimate:
        sizes, questions, server = RecipeOnMachine(self.context, machine), self.context.data_sizes.evaluation, self._server()
        if server:
            return estimate_served(self.name, questions, self.context.recipe.evaluation.max_new_tokens, server.url)
        return sizes.generation(self.name, self.measured(sizes), questions)

    def relief(self, machine: Machine) -> Relief:
        """Last of all, servers that answer instead: on any machine that has the memory."""
        recipe, found = self.context.recipe, super().relief(machine)
        roles = [*recipe.evaluation.models, *([Role.CONTROL] if recipe.control else [])]
        servers = {f"evaluation.servers.{role}": "http://SERVER:8000/v1" for role in roles}
        return replace(found, placements=[*found.placements, Change({"evaluation.backend": "server", **servers})])

    def outlook(self) -> str:
        settings, questions = self.context.recipe.evaluation, self.context.data_sizes.evaluation.examples
        drawn = f" × {settings.samples} answers" if settings.samples > 1 else ""
        new = f"at most {settings.max_new_tokens:,} new tokens each"
        return f"{examples_or_all(questions)} questions{drawn}, {batches(questions, settings.batch_size)}; {new}"

    def omission(self) -> Change | None:
        others = [str(role) for role in self.context.recipe.evaluation.models if role != Role.ORIGINAL]
        return change("evaluation.models", others) if self.role is Role.ORIGINAL and others else None

    def run(self) -> ScoreFacts:
        server = self._server()
        _ = self._unloaded  # before a model in parts is there: ZeRO-3 would partition this one as well
        if server:
            return self._ask(server)
        path, revision = self.context.checkpoint(self.role)
        return with_model(self.context.recipe, path, revision, self._measure, skipping=self.role is Role.SKIPPING)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own, which a stock loader would take."""
        return load_tokenizer(*self.context.checkpoint(self.role))

    @cached_property
    def _unloaded(self) -> PreTrainedModel:
        """The model without its weights."""
        return meta_model(load_config(*self.context.checkpoint(self.role)))

    def _server(self) -> ServerRecipe | None:
        settings = self.context.recipe.evaluation
        return getattr(settings.servers, self.role, None) if settings.backend == "server" else None

    def _log(self) -> AnswerLog | None:
        """Where answers are kept until the stage is done. They depend on neither the scorer nor the batches: a mended scorer
        judges the same answers."""
        settings, server = self.context.recipe.evaluation, self._server()
        writer = [settings.backend, server and [server.model_dump(), settings.servers.prompt]]
        model = self.context.fingerprints.models[self.role]
        return AnswerLog(self.context.directory.answer_log(self.role), [model, self.context.recipe.model.dtype, writer])

    def _measure(self, model: PreTrainedModel) -> ScoreFacts:
        recipe, settings = self.context.recipe, self.context.recipe.evaluation
        scores = evaluate(
            model, self._tokenizer, self.context.task, settings.split, settings.examples, settings.batch_size,
            settings.max_new_tokens, settings.temperature, settings.samples, recipe.seed,
            "continuous" if settings.backend == "continuous" else "transformers", self._log(),
        )  # fmt: skip
        skipped = (scores.facts.experts_skipped or 0.0) * active_expert_parameters(self._unloaded)
        return self._save(
            scores, {"active_parameters": sizes(self._unloaded).active_parameters - round(skipped)}
        )  # of a token, on average

    def _ask(self, server: ServerRecipe) -> ScoreFacts:
        from toolkit.evaluation.server import ServerWriter  # asks for a package that few need

        recipe, settings, task = self.context.recipe, self.context.recipe.evaluation, self.context.task
        decoding = Decoding(settings.max_new_tokens, settings.temperature, settings.samples, tuple(task.stop), recipe.seed)
        asking = on_all_ranks(lambda: ServerWriter(server, settings.servers, self._tokenizer, decoding))
        say(f"  asking {asking.model} at {asking.url}")
        context = context_length(self._unloaded.config, self._tokenizer)
        scores = evaluate_with(
            asking, self._tokenizer, Questions.of(task, settings.split, settings.examples), decoding, self._log(), context=context
        )
        return self._save(scores, {"backend": "server"})

    def _save(self, scores: Scores, more: dict[str, Any]) -> ScoreFacts:
        """Writes the scores and what they are of. Raises ItemsFailed where some answers could not be judged."""
        path, revision = self.context.checkpoint(self.role)
        total, active = sizes(self._unloaded)
        facts = {"model": path, "parameters": total, "active_parameters": active}
        scores.add_facts(**(facts | {"checkpoint_bytes": checkpoint_bytes(path, revision)} | more))
        if is_main():
            scores.save(self.context.directory.evaluation, self.role)
        scores.check()
        low, high = scores.interval
        say(
            f"  {scores.score:.1%} of {scores.n:,} right (95 % interval {low:.1%} to {high:.1%}), "
            f"{scores.flexible_score:.1%} by flexible extraction{scores.other_measures}"
        )
        doubt = doubt_of_original(scores, self.context.recipe.control) if self.role is Role.ORIGINAL else None
        if doubt:
            say(f"  [yellow]warning:[/] {escape(doubt)}")
        settings = self.context.recipe.evaluation
        if (mean := scores.facts.mean_score) is not None:
            say(f"  by the vote of {settings.samples} answers each; a single one is right {mean:.1%} of the time")
        return ScoreFacts(scores.score, scores.n, self.context.task.bad_lines(settings.split))
