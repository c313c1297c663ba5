"""From a model and a task to scores: every question answered, whoever writes the answers, then judged on rank 0.

How many experts were skipped while a model answered, where it skips any.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation.answers import AnswerLog, AnswersByKey, Request, Writer
from toolkit.evaluation.decoding import Decoding
from toolkit.evaluation.generation import BatchWriter
from toolkit.evaluation.judging import judge_samples, mean_score
from toolkit.evaluation.likelihood import with_likeliest
from toolkit.evaluation.memory import batch_size_for, peak_memory, reset_peak_memory
from toolkit.evaluation.scores import Scores
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
) -> Scores:
    """Answers the first `examples` items of `split` (all unless given) and scores them with the task's scorer.

    Prompts are sorted by length, batched, padded on the left, and dealt out to the ranks by whole batches; every rank
    returns the scores of all. `model` may be a path (its own tokenizer serves unless one is given). With a `log`,
    answers that it holds are not written again. Of a model that skips experts, `Scores.about` tells how many it
    skipped in those written now. Where the scorer raises, the item is kept with what it said (`Scores.check` raises
    it). Raises PollardError for an empty split.
    """
    if isinstance(model, str | os.PathLike):
        tokenizer = tokenizer or load_tokenizer(os.fspath(model))
        model = load_model(os.fspath(model), device=device())
    if tokenizer is None:
        raise PollardError("evaluate() needs the tokenizer of a model that is already loaded.")
    decoding = Decoding(max_new_tokens, temperature, samples, tuple(task.stop), seed)
    chosen = task.examples(split)[:examples]
    if not chosen:
        raise PollardError(f"Task {task.name} has no {split} examples.")
    reset_peak_memory(model.device)
    size = batch_size_for(batch_size, model, [encode_prompt(tokenizer, example) for example in chosen], max_new_tokens)
    about: dict[str, Any] = {
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
        "backend": backend,
    }
    writer: Writer
    if backend == "continuous":
        from toolkit.evaluation.generation import ContinuousWriter  # asks transformers for what few need

        writer = ContinuousWriter(model, tokenizer, decoding)
    else:
        if batch_size == "auto":
            say(f"  {size}")
        writer, about["batch_size"] = BatchWriter(model, tokenizer, decoding, size.number), size.number
    with measured_skipping(model) as skipped:
        context = context_length(model.config, tokenizer)
        scores = evaluate_with(writer, tokenizer, task, split, examples, decoding, log, is_partitioned(model), context)
    scores.items = with_likeliest(scores.items, model, tokenizer, chosen, size.number)
    scores.about |= about | skipped | {"peak_memory_bytes": max(gather(peak_memory(model.device)))}
    return scores


def evaluate_with(
    writer: Writer,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: Split,
    examples: int | None,
    decoding: Decoding,
    log: AnswerLog | None = None,
    in_step: bool = False,
    context: ContextLength | None = None,
) -> Scores:
    """As `evaluate`, with answers by `writer`; `in_step`: it waits for the other ranks while it writes. `context`: the
    model's, against which prompts are counted in `Scores.about`."""
    chosen = task.examples(split)[:examples]
    if not chosen:
        raise PollardError(f"Task {task.name} has no {split} examples.")
    chosen = [replace(example, gold=gold_of(tokenizer, example)) for example in chosen]
    requests = requests_of(tokenizer, chosen, decoding)
    done = log.begin(asdict(decoding), [request.prompt for request in requests]) if log else {}
    if done:
        say(f"  {len(done):,} of {len(requests):,} answers are there already")
    todo = [request for request in requests if (request.index, request.sample) not in done]

    def write() -> AnswersByKey:
        mine: AnswersByKey = {}
        for request, answer in writer(todo):
            mine[request.index, request.sample] = answer
            if log:
                log.append(request, answer)
        return mine

    barrier()
    started = time.monotonic()
    mine = write() if in_step else on_all_ranks(write)
    everyone = gather((mine, time.monotonic() - started))
    written = {key: answer for found, _ in everyone for key, answer in found.items()}
    seconds, found = max(seconds for _, seconds in everyone), done | written
    answers = [[found[index, sample] for sample in range(decoding.samples)] for index in range(len(chosen))]
    items = on_main(lambda: judge_samples(task, chosen, answers))
    about: dict[str, Any] = {
        "task": task.name,
        "split": split,
        "seconds": round(seconds, 2),
        # Of what was written now: how long the answers took that were there is not known
        "tokens_per_second": round(sum(answer.tokens for answer in written.values()) / seconds, 1) if written else None,
        "max_new_tokens": decoding.max_new_tokens,
        "ranks": world_size(),
    }
    if context:
        prompts = [len(request.prompt) for request in requests if request.sample == 0]
        fit = context_fit(prompts, context.tokens, decoding.max_new_tokens)
        about |= {
            "context_length": context.tokens,
            "prompts_beyond_context": fit.beyond,
            "prompts_without_room": fit.without_room,
        }
    if decoding.temperature:
        about |= {"temperature": decoding.temperature, "samples": decoding.samples}
    if decoding.samples > 1:
        about["mean_score"] = mean_score(items)
    return Scores(items, about)


def requests_of(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], decoding: Decoding) -> list[Request]:
    return [
        Request(index, sample, prompt, tuple(example.turns), example.tools, example.plain)
        for index, example in enumerate(examples)
        for prompt in [encode_prompt(tokenizer, example)]
        for sample in range(decoding.samples)
    ]


@contextmanager
def measured_skipping(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Yields what is known of it after the context, of all ranks together: nothing where the model does not skip, or no token
    passed (all answers were there already)."""
    facts: dict[str, Any] = {}
    if not is_skipping(model):
        yield facts
        return
    with counting_skips(model) as counter:
        yield facts
    count = SkipCount.merged(gather(counter.take()))
    if not any(count.tokens):
        return
    names = [block.name for block in find_blocks(model)]
    by_block = zip(names, count.tokens, count.skipped, strict=True)
    facts |= {
        "skip_rate": count.rate, "experts_skipped": count.saved,
        "skipped_per_token": {name: skipped / max(1, tokens) for name, tokens, skipped in by_block},
    }  # fmt: skip
    say(f"  {count.rate:.1%} of the experts after a token's first skipped, {count.saved:.1%} of all")
