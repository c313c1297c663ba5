"""The stages that tell what a score does not: how like the original each model still is, and what else it can do.

fidelity/original   keeps what the original says of the completion tokens of a few gold answers
fidelity/<role>     compares another model with that                        -> evaluation/<role>.fidelity.json
harness/<role>      asks a model the questions of lm-evaluation-harness     -> evaluation/<role>.harness.json
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from toolkit.evaluation import measure_fidelity, write_reference
from toolkit.evaluation.fidelity import FORMAT
from toolkit.evaluation.harness import run_harness
from toolkit.moe import load_tokenizer
from toolkit.moe.placement import with_model
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import is_main, say
from toolkit.runtime.files import fingerprint_of, fingerprint_of_source, write_text
from toolkit.runtime.formatting import loss, percent
from toolkit.tasks import Task, encode_all, padded_batches

AT_ONCE = 16  # of the harness's questions, where the recipe says no number
Do = Callable[[Recipe, RunDirectory, str], dict[str, Any]]


def fidelity_fingerprint(recipe: Recipe, model: str, split: Any) -> str:
    """Of what the original says; `split`: the fingerprint of the file that the evaluated split is from."""
    settings = recipe.evaluation.model_dump(include={"fidelity", "split"})
    watched = recipe.calibration.model_dump(include={"batch_size", "max_length"})
    return fingerprint_of(FORMAT, model, recipe.task.model_dump(), split, settings, watched, recipe.model.dtype)


def _gold(recipe: Recipe) -> tuple[list[dict[str, torch.Tensor]], int]:
    """The first examples of the evaluated split with their gold completions, and how many were too long."""
    tokenizer = load_tokenizer(recipe.model.path, recipe.model.revision)
    examples = Task(recipe.task).examples(recipe.evaluation.split)[: recipe.evaluation.fidelity]
    encoded, left_out = encode_all(tokenizer, examples, recipe.calibration.max_length, "calibration.max_length")
    return padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id or 0)), left_out


def fidelity_original_stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
    """Gold answers -> what the original says of every token of theirs."""
    batches, left_out = _gold(recipe)

    def keep(model: PreTrainedModel) -> dict[str, Any]:
        return write_reference(model, batches, run.fidelity, fingerprint)

    facts = with_model(recipe, recipe.model.path, recipe.model.revision, keep)
    say(f"  {facts['tokens']:,} tokens in {run.fidelity}: {facts['bytes'] / 2**20:,.1f} MiB")
    return facts | {"left_out": left_out}


def fidelity_stage(role: str, original: str) -> Do:
    """The stage that compares a model with what the original said; `original`: the fingerprint of the stage that kept it."""

    def stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
        batches, left_out = _gold(recipe)

        def measure(model: PreTrainedModel) -> dict[str, Any]:
            found = measure_fidelity(model, batches, run.fidelity, original).facts()
            about = {"split": recipe.evaluation.split, "left_out": left_out}
            _write(run, f"{role}.fidelity.json", found | about)
            told = f"KL {loss(found['kl'])} nats per token, acceptance {percent(found['acceptance'])}"
            say(f"  {told}, over {found['tokens']:,} tokens of {found['examples']:,} answers")
            return {key: found[key] for key in ("kl", "acceptance")}

        return with_model(recipe, str(run.path / role), None, measure)

    return stage


def harness_fingerprint(recipe: Recipe) -> str:
    """Of the questions."""
    settings = recipe.evaluation
    return fingerprint_of(
        settings.harness, settings.harness_tasks and fingerprint_of_source(settings.harness_tasks), recipe.model.dtype
    )


def harness_stage(role: str) -> Do:
    """The stage that asks a model what it can do beside its task."""

    def stage(recipe: Recipe, run: RunDirectory, fingerprint: str) -> dict[str, Any]:
        path, revision = (recipe.model.path, recipe.model.revision) if role == "original" else (str(run.path / role), None)
        settings, tokenizer = recipe.evaluation, load_tokenizer(path, revision)

        def measure(model: PreTrainedModel) -> dict[str, Any]:
            found = run_harness(model, tokenizer, settings.harness or [], settings.harness_tasks, _batch_size(recipe))
            _write(run, f"{role}.harness.json", found)
            for task, about in found.items():
                say(f"  {task}: " + ", ".join(f"{metric} {each['value']:.4f}" for metric, each in about["metrics"].items()))
            return {"tasks": len(found)}

        return with_model(recipe, path, revision, measure, "lm-evaluation-harness asks every rank questions of its own")

    return stage


def _batch_size(recipe: Recipe) -> int:
    """lm-eval's own search for one would let ranks disagree."""
    return AT_ONCE if recipe.evaluation.batch_size == "auto" else recipe.evaluation.batch_size


def _write(run: RunDirectory, name: str, found: dict[str, Any]) -> None:
    if is_main():
        run.evaluation.mkdir(parents=True, exist_ok=True)
        write_text(run.evaluation / name, json.dumps(found, indent=1) + "\n")
