"""The stages that answer the task's questions: a model, or a server that has it -> scores and one line per item."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from toolkit.evaluation import AnswerLog, Decoding, Scores, evaluate, evaluate_with
from toolkit.moe import active_expert_parameters, checkpoint_bytes, load_config, load_tokenizer, meta_model, sizes
from toolkit.moe.placement import with_model
from toolkit.moe.tokenizer import context_length
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.evaluation import ServerRecipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import is_main, on_all_ranks, say
from toolkit.tasks import Task


def evaluate_stage(
    role: str, identity: str | None, skipping_of: str = ""
) -> Callable[[Recipe, RunDirectory, str], dict[str, Any]]:
    """The stage that evaluates the original, pruned or recovered model, or the control; or, as a role of its own, the one
    that it names (`skipping_of`) once more, skipping experts.

    `identity` is the model's fingerprint, under which answers are kept until the stage is done; without one none are (how much
    is skipped is counted while all of them are written).
    """

    def stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
        folder = str(run.path / (skipping_of or role))
        path, revision = (recipe.model.path, recipe.model.revision) if role == "original" else (folder, None)
        settings, task = recipe.evaluation, Task(recipe.task)
        tokenizer = load_tokenizer(path, revision)
        nothing_loaded = meta_model(load_config(path, revision))
        total, active = sizes(nothing_loaded)
        facts = {
            "model": path,
            "parameters": total,
            "active_parameters": active,
            "checkpoint_bytes": checkpoint_bytes(path, revision),
        }
        server = getattr(settings.servers, role, None) if settings.backend == "server" else None
        # What is written depends on neither the scorer nor the batches: a mended scorer judges the same answers
        writer = [settings.backend, server and [server.model_dump(), settings.servers.prompt]]
        log = AnswerLog(run.answer_log(role), [identity, recipe.model.dtype, writer]) if identity else None
        asked = task, settings.split, settings.examples

        def measure(model: PreTrainedModel) -> dict[str, Any]:
            scores = evaluate(
                model, tokenizer, *asked, settings.batch_size, settings.max_new_tokens, settings.temperature,
                settings.samples, recipe.seed, "continuous" if settings.backend == "continuous" else "transformers", log,
            )  # fmt: skip
            skipped = scores.about.get("experts_skipped", 0) * active_expert_parameters(nothing_loaded)
            return done(scores, {"active_parameters": active - round(skipped)})  # of a token, on average

        def ask(server: ServerRecipe) -> dict[str, Any]:
            from toolkit.evaluation.server import ServerWriter  # asks for a package that few need

            decoding = Decoding(settings.max_new_tokens, settings.temperature, settings.samples, tuple(task.stop), recipe.seed)
            asking = on_all_ranks(lambda: ServerWriter(server, settings.servers, tokenizer, decoding))
            say(f"  asking {asking.model} at {asking.url}")
            context = context_length(nothing_loaded.config, tokenizer)
            return done(evaluate_with(asking, tokenizer, *asked, decoding, log, context=context), {"backend": "server"})

        def done(scores: Scores, more: dict[str, Any]) -> dict[str, Any]:
            scores.about |= facts | more
            if is_main():
                scores.save(run.evaluation, role)
            scores.check()
            low, high = scores.interval
            say(
                f"  {scores.score:.1%} of {scores.n:,} right (95 % interval {low:.1%} to {high:.1%}), "
                f"{scores.flexible_score:.1%} by flexible extraction{scores.told_beside}"
            )
            if (mean := scores.about.get("mean_score")) is not None:
                say(f"  by the vote of {settings.samples} answers each; a single one is right {mean:.1%} of the time")
            return {"score": scores.score, "n": scores.n, "bad_lines": task.bad_lines(settings.split)}

        return ask(server) if server else with_model(recipe, path, revision, measure, skipping=bool(skipping_of))

    return stage
