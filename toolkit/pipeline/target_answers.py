"""What a model of a run writes to questions of the dev slice, greedily, token for token: kept, and never written twice.

    drafts/original/about.json
    drafts/original/00000.jsonl    {"prompt": [5, 81, …], "tokens": [17, …, 1]}, … 8 a file

The answers of an evaluation are kept as text, and of the test set, which is only reported: tokens cannot be had of it exactly,
nor may anything be chosen by it.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation import Questions, greedy
from toolkit.evaluation.decoding import as_list, generate
from toolkit.evaluation.draft_candidates import Replay, TargetAnswer
from toolkit.evaluation.generation import StopInAnswer
from toolkit.pipeline.run_models import FoundRun
from toolkit.pipeline.stage_names import MADE_BY
from toolkit.recipe.roles import Role
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import fingerprint_of, fingerprint_of_source
from toolkit.runtime.shards import make_shards, missing_shards, shard_path
from toolkit.tasks import Example, Task, chat_format, encode_prompt

ROWS = 8  # answers per file: what a kill loses at most
SHORTEST = 3  # tokens of an answer that drafting can save a pass of: one drafted, one of the target's own, and its end
SUFFIX = ".jsonl"


def questions_of(run: FoundRun, count: int) -> list[Example]:
    """The first `count` of the dev slice. Raises PollardError where there are none, and for a task whose answers are chosen, or
    may not have enough tokens for drafting."""
    task, most = Task(run.recipe.task), run.recipe.evaluation.max_new_tokens
    examples = Questions.of(task, "dev", count).examples
    if most < SHORTEST or task.preset.labels or any(example.choices for example in examples):
        why = f"evaluation.max_new_tokens is {most}" if most < SHORTEST else "they are chosen among labels or choices"
        raise PollardError(
            f"The answers of task {task.name} are too short to draft for ({why}): the first token is the model's own anyway.",
            code="drafts.short-answers",
        )
    return examples


def read_or_write_answers(
    run: FoundRun, role: Role, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> Replay:
    """Those that `model`, the run's of that role, writes; those that are there already are read. Raises PollardError for answers
    that leave nothing to draft."""
    most, stop = run.recipe.evaluation.max_new_tokens, Task(run.recipe.task).stop
    settings = greedy(model, tokenizer, most)
    prompts, ends = [encode_prompt(tokenizer, example) for example in examples], as_list(settings.eos_token_id)
    stopping = StopInAnswer(tokenizer, stop, ends, chat_format(tokenizer, examples[0].plain)) if stop else None

    def make(piece: int, path: Path) -> None:
        asked = prompts[piece * ROWS : (piece + 1) * ROWS]
        written = generate(model, asked, settings, None, stopping)
        lines = [{"prompt": prompt, "tokens": tokens} for prompt, tokens in zip(asked, written, strict=True)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    numbers = str(model.dtype), model.device.type
    about = {"fingerprint": fingerprint_of(_identity(run, role), numbers, prompts, most, ends, stop), "answers_per_file": ROWS}
    folder, files = run.directory.drafts / role, math.ceil(len(prompts) / ROWS)
    make_shards(folder, missing_shards(folder, about, files, SUFFIX), SUFFIX, make, f"answers of the {role}")
    lines = [line for number in range(files) for line in shard_path(folder, number, SUFFIX).read_text().splitlines()]
    answers = [TargetAnswer(**json.loads(line)) for line in lines]
    if (usual := statistics.median(len(answer.tokens) for answer in answers)) < SHORTEST:
        raise PollardError(
            f"The {role} model's answers are too short to draft for (half have at most {usual:.0f} tokens, the end token "
            "included): the first token is the model's own anyway.",
            code="drafts.short-answers",
        )
    return Replay(answers, most, ends)


def _identity(run: FoundRun, role: Role) -> object:
    """What tells a model of the run from another one in its place."""
    if role in MADE_BY:
        return run.directory.identity_of(MADE_BY[role])
    return fingerprint_of_source(run.recipe.model.path), run.recipe.model.revision
