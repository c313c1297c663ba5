"""Many prompts answered by a model in memory: in batches of similar length, or by transformers' continuous batching.

In batches, sorted by length, there is little padding; the longest come first, so that memory turns out too small at the
beginning, and the end is short. Results depend neither on the batch size nor on the ranks. In continuous batching, for GPUs
and greedy decoding, a row that has ended makes room for the next prompt at once.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria
from transformers.generation import ContinuousBatchingConfig

from toolkit.evaluation.answers import Answer, Request, has_stopped, read_answer
from toolkit.evaluation.decoding import Decoding, StopRows, as_list, generate, greedy, sampled
from toolkit.evaluation.shared_prefix import CommonPrefix, SharedPrefix, compute_prefix
from toolkit.moe import is_partitioned
from toolkit.runtime.distributed import say, shard, shard_in_step
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import batch_sizes, progress
from toolkit.tasks import ChatFormat, chat_format


def generate_shard(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    settings: GenerationConfig,
    numbers: Callable[[int], random.Random] | None = None,
    stop: StopRows | None = None,
    common: CommonPrefix | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Yields index and generated tokens of this rank's part of the prompts, which is dealt out by whole batches.

    A batch that does not fit into memory is halved, and so are all after it. `numbers` gives the random numbers of a prompt, by
    its index. What the prompts have in `common` is computed once where the model allows it. Raises PollardError where a single
    prompt does not fit.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    in_step = is_partitioned(model)
    # In parts on all ranks, every rank must take part in every forward pass: one without a batch helps with any prompt
    mine = shard_in_step(batches, []) if in_step else shard(batches)

    prefix = _computed(model, common, in_step) if mine and common else None
    room = batch_size
    for batch in progress(mine, "answering", batch_sizes(mine), len(prompts)):
        todo = batch or order[-1:]
        while todo:
            part = todo[:room]
            drawing = [numbers(i) for i in part] if numbers else None
            try:
                answers = generate(model, [prompts[i] for i in part], settings, drawing, stop, prefix)
            except torch.OutOfMemoryError:
                room = _halved(len(part), in_step)
                continue
            if batch:
                yield from zip(part, answers, strict=True)
            todo = todo[room:]


def _computed(model: PreTrainedModel, common: CommonPrefix, in_step: bool) -> SharedPrefix | None:
    try:
        prefix = compute_prefix(model, common)
    except torch.OutOfMemoryError:
        _halved(1, in_step)
    if prefix:
        say(f"  the {len(common.tokens):,} tokens that every prompt begins with are computed once")
    return prefix


def _halved(size: int, in_step: bool) -> int:
    if size == 1 or in_step:
        raise PollardError(
            f"Not enough GPU memory to answer {size} question{'s' * (size > 1)} at a time: say a smaller evaluation.batch_size, "
            "or fewer evaluation.max_new_tokens; or hold the model over more GPUs (model.placement=spread, or zero3).",
            code="evaluation.memory",
        )
    say(f"  not enough GPU memory for {size} questions at a time: going on with {size // 2}")
    return size // 2


class StopInAnswer:
    """Which rows have just completed a stop text in their answers; one in reasoning does not count."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], ends: Sequence[int], form: ChatFormat) -> None:
        self.tokenizer, self.texts, self.ends, self.form = tokenizer, stop, ends, form
        self.written = StopStringCriteria(tokenizer, list(stop))

    def __call__(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """[B] of bool, for answers so far [B, S] without their prompts."""
        stopped_B = self.written(ids_BS, None)  # type: ignore[arg-type]
        for row in stopped_B.nonzero().flatten().tolist():
            stopped_B[row] = has_stopped(self.tokenizer, ids_BS[row].tolist(), self.ends, self.texts, self.form)
        return stopped_B


class BatchWriter:
    """Writes answers in batches, greedily or drawn at a temperature.

    `common`: what all prompts of the evaluation begin with, those of other ranks and calls too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        batch_size: int,
        common: CommonPrefix | None = None,
    ) -> None:
        self.model, self.tokenizer, self.decoding, self.batch_size, self.common = model, tokenizer, decoding, batch_size, common

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        decoding, tokenizer = self.decoding, self.tokenizer
        if decoding.temperature:
            settings = sampled(self.model, tokenizer, decoding.max_new_tokens, decoding.temperature)
        else:
            settings = greedy(self.model, tokenizer, decoding.max_new_tokens)
        ends = as_list(settings.eos_token_id)
        forms = {request.plain: chat_format(tokenizer, request.plain) for request in requests}
        # Where some prompts have a template and some do not, none is stopped early; each answer is cut all the same
        stop = StopInAnswer(tokenizer, decoding.stop, ends, *forms.values()) if decoding.stop and len(forms) == 1 else None

        def numbers(i: int) -> random.Random:
            return decoding.random_numbers(requests[i].index, requests[i].sample)

        prompts, drawing = [request.prompt for request in requests], numbers if decoding.temperature else None
        for i, tokens in generate_shard(self.model, prompts, self.batch_size, settings, drawing, stop, self.common):
            form = forms[requests[i].plain]
            yield requests[i], read_answer(tokenizer, tokens, ends, decoding.stop, decoding.max_new_tokens, form)


# On a GPU the cache takes the memory that is free; elsewhere transformers does not look
_CPU_CACHE = ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=256, use_cuda_graph=False)


class ContinuousWriter:
    """Writes answers by continuous batching. Raises PollardError for a model that is in parts on all ranks."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        if is_partitioned(model):
            raise PollardError(
                "Continuous batching needs a model that is whole: say evaluation.backend=transformers, or "
                "model.placement=spread.",
                code="evaluation.continuous-partitioned",
            )
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        decoding, tokenizer, model = self.decoding, self.tokenizer, cast(Any, self.model)
        settings = greedy(self.model, tokenizer, decoding.max_new_tokens)
        ends, most = as_list(settings.eos_token_id), decoding.max_new_tokens
        config = ContinuousBatchingConfig() if self.model.device.type == "cuda" else _CPU_CACHE
        todo = {f"{r.index}/{r.sample}": r for r in shard(sorted(requests, key=lambda r: (-len(r.prompt), r.index)))}
        streaming = bool(decoding.stop)  # transformers stops at end tokens here, and not at strings
        with model.continuous_batching_context_manager(settings, continuous_batching_config=config) as manager:
            for name, request in todo.items():
                manager.add_request(request.prompt, name, max_new_tokens=most, streaming=streaming)
            while todo:
                output = manager.get_result(timeout=1)
                if output is None:
                    if not manager.is_running():
                        raise PollardError(
                            "Continuous batching ended before all questions were answered (transformers' log says more): say "
                            "evaluation.backend=transformers. What is answered is kept.",
                            code="evaluation.continuous-ended",
                        )
                    continue
                if output.request_id not in todo:  # what was generated after a stop string
                    continue
                if output.error is not None:
                    raise PollardError(
                        f"Continuous batching failed on item {todo[output.request_id].index}: {output.error}",
                        code="evaluation.continuous-failed",
                    )
                stop = self._stop_at(todo[output.request_id], output.generated_tokens, ends) if streaming else None
                if stop is not None and not output.is_finished():
                    manager.cancel_request(output.request_id)
                if stop is not None or output.is_finished():
                    tokens = list(output.generated_tokens[:stop])
                    request = todo.pop(output.request_id)
                    form = chat_format(tokenizer, request.plain)
                    yield request, read_answer(tokenizer, tokens, ends, decoding.stop, most, form)

    def _stop_at(self, request: Request, tokens: list[int], ends: list[int]) -> int | None:
        """The number of tokens up to the end of the first stop string in the answer; None where there is none."""
        longest, form = max(map(len, self.decoding.stop)), chat_format(self.tokenizer, request.plain)

        def stopped(count: int) -> bool:
            return has_stopped(self.tokenizer, tokens[:count], ends, self.decoding.stop, form)

        if not tokens or not stopped(len(tokens)):
            return None
        return next(count for count in range(max(1, len(tokens) - longest), len(tokens) + 1) if stopped(count))
