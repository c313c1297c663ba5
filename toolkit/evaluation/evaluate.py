"""Greedy generation over a split, shared by all ranks. Shape legend: B prompts, S positions."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.distributed import barrier, device, gather, on_main, share, share_in_step, world_size
from toolkit.errors import PollardError
from toolkit.evaluation.choices import with_likeliest
from toolkit.evaluation.judging import Answer, judge
from toolkit.evaluation.scores import Scores
from toolkit.moe import is_partitioned, load_model, load_tokenizer
from toolkit.progress import counted, progress
from toolkit.tasks import Split, Task, encode_prompt


def evaluate(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task,
    split: Split = "test",
    examples: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 512,
) -> Scores:
    """Answers the first `examples` items of `split` (all unless given) and scores them with the task's scorer.

    Prompts are sorted by length, batched, padded on the left, and dealt out to the ranks by whole batches; every rank
    returns the scores of all. `model` may be a path (its own tokenizer serves unless one is given). Where the
    scorer raises, the item is kept with what it said (`Scores.check` raises it). Raises PollardError for an empty split.
    """
    if isinstance(model, str | os.PathLike):
        tokenizer = tokenizer or load_tokenizer(os.fspath(model))
        model = load_model(os.fspath(model), device=device())
    if tokenizer is None:
        raise PollardError("evaluate() needs the tokenizer of a model that is already loaded.")
    chosen = task.examples(split)[:examples]
    if not chosen:
        raise PollardError(f"Task {task.name} has no {split} examples.")
    prompts = [encode_prompt(tokenizer, example) for example in chosen]
    settings = greedy(model, tokenizer, max_new_tokens)
    reset_peak_memory(model.device)
    barrier()
    started = time.monotonic()
    mine = {}
    for i, answer in share_of_answers(model, prompts, batch_size, settings):
        text = str(tokenizer.decode(answer, skip_special_tokens=True))
        mine[i] = Answer(text, len(answer), bool(answer) and answer[-1] in _as_list(settings.eos_token_id))
    everyone = gather((mine, time.monotonic() - started, peak_memory(model.device)))
    found = {i: answer for of_one, _, _ in everyone for i, answer in of_one.items()}
    answers = [found[i] for i in range(len(chosen))]
    seconds = max(seconds for _, seconds, _ in everyone)
    items = on_main(lambda: judge(task, chosen, answers))
    items = with_likeliest(items, model, tokenizer, chosen, batch_size)
    about = {
        "task": task.name,
        "split": split,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / seconds, 1),
        "peak_memory_bytes": max(peak for _, _, peak in everyone),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "ranks": world_size(),
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return Scores(items, about)


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding whatever the checkpoint's generation config says, but with its own end tokens."""
    ends = (
        {*_as_list(model.generation_config.eos_token_id), tokenizer.eos_token_id}
        if model.generation_config
        else {tokenizer.eos_token_id}
    )
    return GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(end for end in ends if end is not None),
    )  # fmt: skip


def sampled(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Sampling from the model's whole distribution at `temperature`, ending as `greedy` does."""
    settings = greedy(model, tokenizer, max_new_tokens)
    settings.update(do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    return settings


def share_of_answers(
    model: PreTrainedModel, prompts: list[list[int]], batch_size: int, settings: GenerationConfig
) -> Iterator[tuple[int, list[int]]]:
    """This rank's part of the prompts, sorted by length and dealt out by whole batches: index and generated tokens."""
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    # In parts on all ranks, every rank must take part in every forward pass: one without a batch helps with any prompt
    mine = share_in_step(batches, []) if is_partitioned(model) else share(batches)
    for batch in progress(mine, "answering", counted(mine), len(prompts)):
        answers = generate(model, [prompts[i] for i in batch or order[:1]], settings)
        yield from zip(batch, answers, strict=bool(batch))


@torch.no_grad()
def generate(model: PreTrainedModel, prompts: list[list[int]], settings: GenerationConfig) -> list[list[int]]:
    """The generated tokens of each prompt, up to and including its end token."""
    length = max(map(len, prompts))
    pad: Any = settings.pad_token_id
    ids_BS = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=model.device)
    mask_BS = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    theirs, model.generation_config = model.generation_config, settings  # transformers fills ours up with the checkpoint's
    try:
        out = cast(Any, model).generate(input_ids=ids_BS, attention_mask=mask_BS, generation_config=settings)
    finally:
        model.generation_config = theirs
    ends = set(_as_list(settings.eos_token_id))
    answers = []
    for row in out[:, length:].tolist():
        stop = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:stop])
    return answers


def reset_peak_memory(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        return
    with suppress(OSError):  # where it may not be written, the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(where: torch.device) -> int:
    """Bytes, since the reset: the most GPU memory allocated, or the most the whole process held (libraries and all)."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
