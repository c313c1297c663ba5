"""From a model and a task to scores: every question answered by a writer, then judged on rank 0."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from rich.markup import escape
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation.answers import AnswerLog, AnswersByKey, Request, Writer
from toolkit.evaluation.decoding import Decoding
from toolkit.evaluation.generation import BatchWriter, ContinuousWriter
from toolkit.evaluation.judging import judge_samples, mean_score
from toolkit.evaluation.likelihood import with_likeliest
from toolkit.evaluation.memory import batch_size_for, peak_memory, reset_peak_memory
from toolkit.evaluation.scores import EvaluationFacts, Scores
from toolkit.evaluation.shared_prefix import CommonPrefix
from toolkit.moe import SkipCount, counting_skips, find_blocks, is_partitioned, load_model, load_tokenizer
from toolkit.moe.expert_skipping import is_skipping
from toolkit.moe.tokenizer import ContextLength, context_length
from toolkit.runtime.distributed import barrier, device, gather, on_all_ranks, on_main, say, world_size
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Example, Split, Task, encode_prompt, gold_of
from toolkit.tasks.token_checks import context_fit


def evaluate(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task,
    split: Split = "test",
    examples: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    backend: Literal["transformers", "continuous"] = "transformers",
    log: AnswerLog | None = None,
    scorer: Callable[..., float] | None = None,
) -> Scores:
    """Answers the first `examples` items of `split` (all unless given) and scores them with the task's scorer, or `scorer`: a
    function of (prediction, gold) or (prediction, gold, row) that returns True, False or a degree in 0…1 (docs/tasks.md).

    Prompts are sorted by length, batched, padded on the left, and dealt out to the ranks by whole batches; every rank
    returns the scores of all. `model` may be a path; its own tokenizer is used unless one is given. With a `log`,
    answers that it holds are not generated again. For a model that skips experts, `Scores.facts` says how many were
    skipped in the answers generated now. Where the scorer raises, or returns anything else, the item is kept with the error
    and its line of data, which is told (`Scores.check` raises it). Raises PollardError for an empty split, and for a
    `scorer` that takes other arguments.
    """
    task = task if scorer is None else task.with_scorer(scorer)
    if isinstance(model, str | os.PathLike):
        tokenizer = tokenizer or load_tokenizer(os.fspath(model))
        model = load_model(os.fspath(model), device=device())
    if tokenizer is None:
        raise PollardError("evaluate() needs the tokenizer of a model that is already loaded.", code="evaluation.no-tokenizer")
    decoding = Decoding(max_new_tokens, temperature, samples, tuple(task.stop), seed)
    questions = Questions.of(task, split, examples)
    reset_peak_memory(model.device)
    prompts = [encode_prompt(tokenizer, example) for example in questions.examples]
    size = batch_size_for(batch_size, model, prompts, max_new_tokens)
    writer: Writer
    if backend == "continuous":
        writer = ContinuousWriter(model, tokenizer, decoding)
    else:
        if batch_size == "auto":
            say(f"  {size}")
        # What is skipped is counted token by token, so a model that skips experts computes every prompt as a whole
        common = None if is_skipping(model) else CommonPrefix.of(prompts)
        writer = BatchWriter(model, tokenizer, decoding, size.number, common)
    with measured_skipping(model) as skipping:
        context = context_length(model.config, tokenizer)
        scores = evaluate_with(writer, tokenizer, questions, decoding, log, is_partitioned(model), context)
    scores.items = with_likeliest(scores.items, model, tokenizer, questions.examples, size.number)
    scores.add_facts(
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
        backend=backend,
        batch_size=size.number if backend == "transformers" else None,
        skip_rate=skipping.rate,
        experts_skipped=skipping.skipped,
        skipped_per_token=skipping.per_token,
        peak_memory_bytes=max(gather(peak_memory(model.device))),
    )
    if failed := scores.failed:
        say(f"  [yellow]{len(failed):,} of {scores.n:,} answers were not judged:[/] {escape(failed[0].error or '')}")
    return scores


@dataclass(frozen=True)
class Questions:
    """The examples of a task's split that are answered and judged."""

    task: Task
    split: Split
    examples: list[Example]

    @classmethod
    def of(cls, task: Task, split: Split, count: int | None = None) -> "Questions":
        """The first `count` examples (all unless given). Raises PollardError where there are none."""
        examples = task.examples(split)[:count]
        if not examples:
            raise PollardError(f"Task {task.name} has no {split} examples.", code="evaluation.no-examples")
        return cls(task, split, examples)

    @property
    def chance(self) -> float | None:
        """The share of them that guessing among their choices, or the task's labels, gets right; None where answers are free."""
        counts = [len(example.choices) or len(self.task.preset.labels or ()) for example in self.examples]
        return math.fsum(1 / count for count in counts) / len(counts) if all(counts) else None


def evaluate_with(
    writer: Writer,
    tokenizer: PreTrainedTokenizerBase,
    questions: Questions,
    decoding: Decoding,
    log: AnswerLog | None = None,
    in_step: bool = False,
    context: ContextLength | None = None,
) -> Scores:
    """As `evaluate`, with answers by `writer`. `in_step`: the writer waits for the other ranks while it writes. `context`: the
    model's context length; prompts that do not fit into it are counted in `Scores.facts`."""
    task = questions.task
    examples = [replace(example, gold=gold_of(tokenizer, example)) for example in questions.examples]
    requests = requests_of(tokenizer, examples, decoding)
    logged = log.resume(asdict(decoding), [request.prompt for request in requests]) if log else {}
    if logged:
        say(f"  {len(logged):,} of {len(requests):,} answers are there already")
    todo = [request for request in requests if (request.index, request.sample) not in logged]

    def write() -> AnswersByKey:
        own: AnswersByKey = {}
        for request, answer in writer(todo):
            own[request.index, request.sample] = answer
            if log:
                log.append(request, answer)
        return own

    barrier()
    started = time.monotonic()
    own = write() if in_step else on_all_ranks(write)
    by_rank = gather((own, time.monotonic() - started))
    written = {key: answer for answers, _ in by_rank for key, answer in answers.items()}
    seconds, by_key = max(seconds for _, seconds in by_rank), logged | written
    answers = [[by_key[index, sample] for sample in range(decoding.samples)] for index in range(len(examples))]
    items = on_main(lambda: judge_samples(task, examples, answers))
    facts = EvaluationFacts(
        task=task.name,
        split=questions.split,
        seconds=round(seconds, 2),
        logged=len(logged) or None,
        # Of the answers generated now: how long the logged ones took is not known
        tokens_per_second=round(sum(answer.tokens for answer in written.values()) / seconds, 1) if written else None,
        max_new_tokens=decoding.max_new_tokens,
        ranks=world_size(),
        temperature=decoding.temperature or None,
        samples=decoding.samples if decoding.temperature else None,
        mean_score=mean_score(items) if decoding.samples > 1 else None,
        chance=questions.chance,
    )
    if context:
        prompts = [len(request.prompt) for request in requests if request.sample == 0]
        fit = context_fit(prompts, context.tokens, decoding.max_new_tokens)
        facts.context_length = context.tokens
        facts.prompts_beyond_context, facts.prompts_without_room = fit.beyond, fit.without_room
    return Scores(items, facts)


def requests_of(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], decoding: Decoding) -> list[Request]:
    return [
        Request(index, sample, prompt, tuple(example.turns), example.tools, example.plain)
        for index, example in enumerate(examples)
        for prompt in [encode_prompt(tokenizer, example)]
        for sample in range(decoding.samples)
    ]


@dataclass
class SkippingFacts:
    """How many experts a model skipped, of all ranks together; None where it skips none, or no token passed."""

    rate: float | None = None  # of the experts after a token's first
    skipped: float | None = None  # of all
    per_token: dict[str, float] | None = None  # by block


@contextmanager
def measured_skipping(model: PreTrainedModel) -> Iterator[SkippingFacts]:
    """Counts what the model skips inside; the yielded facts are filled in at the end."""
    facts = SkippingFacts()
    if not is_skipping(model):
        yield facts
        return
    with counting_skips(model) as counter:
        yield facts
    count = SkipCount.merged(gather(counter.take()))
    if not any(count.tokens):
        return
    names = [block.name for block in find_blocks(model)]
    facts.rate, facts.skipped = count.rate, count.saved
    facts.per_token = {
        name: skipped / max(1, tokens) for name, tokens, skipped in zip(names, count.tokens, count.skipped, strict=True)
    }
    say(f"  {count.rate:.1%} of the experts after a token's first skipped, {count.saved:.1%} of all")
