"""From prompts to tokens: greedy, or drawn at a temperature. Shape legend: B rows, S positions, V vocabulary.

An answer never depends on what else is in its batch. Greedily that is so by itself; drawing, every row has random numbers of
its own, so that batches, ranks and a kill in between change nothing of what is drawn.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation.shared_prefix import SharedPrefix, rows_can_be_taken
from toolkit.moe import is_partitioned

StopRows = Callable[[torch.Tensor], torch.Tensor]  # answers so far [B, S] -> which have just come to an end [B]


@dataclass(frozen=True)
class Decoding:
    """How answers are generated. `temperature` 0 is greedy; `samples` answers are drawn per prompt."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    samples: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0

    def random_numbers(self, index: int, sample: int) -> random.Random:
        """The source of random numbers for one answer: the same in any batch, on any rank, after any restart."""
        return random.Random(f"{self.seed}/{index}/{sample}")


def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> GenerationConfig:
    """Greedy decoding whatever the checkpoint's generation config says, but with its own end tokens."""
    ends = (
        {*as_list(model.generation_config.eos_token_id), tokenizer.eos_token_id}
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


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    numbers: Sequence[random.Random] | None = None,
    stop: StopRows | None = None,
    prefix: SharedPrefix | None = None,
) -> list[list[int]]:
    """The generated tokens of each prompt, up to and including the end token, or the token that completes a stop string.

    With `numbers`, one source per prompt, tokens are drawn at the settings' temperature. Rows that have ended leave the batch,
    so that the memory of many short answers is not held by one long answer. Every prompt must begin with the `prefix`, if there
    is one, and be longer.
    """
    length = max(map(len, prompts))
    pad: Any = settings.pad_token_id
    ids_BS = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=model.device)
    mask_BS = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    # Positions too: models of text and images would count on from those of their last batch
    begun = (
        {
            "past_key_values": prefix.cache_for([length - len(p) for p in prompts]),
            "position_ids": (mask_BS.cumsum(-1) - 1).clamp(min=0),
        }
        if prefix
        else {}
    )
    rows = _Rows(settings, numbers, stop)
    # transformers fills gaps in the settings with the checkpoint's own
    checkpoints_own, model.generation_config = model.generation_config, settings
    try:
        cast(Any, model).generate(
            input_ids=ids_BS, attention_mask=mask_BS, generation_config=settings, custom_generate=rows.write, **begun
        )
    finally:
        model.generation_config = checkpoints_own
    return rows.answers


class _Rows:
    """The decoding loop of one batch, as transformers calls it once it has prepared the inputs."""

    def __init__(self, settings: GenerationConfig, numbers: Sequence[random.Random] | None, stop: StopRows | None) -> None:
        self.temperature = settings.temperature if settings.do_sample else None
        self.ends, self.most = as_list(settings.eos_token_id), cast(int, settings.max_new_tokens)
        self.numbers, self.stop = numbers, stop
        self.answers: list[list[int]] = []

    def write(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> torch.Tensor:
        """Generates until every row has ended; with a model in parts on all ranks, until the rows of every rank have."""
        # transformers does not pass this to a custom loop
        synced_gpus = is_partitioned(model) and torch.distributed.get_world_size() > 1
        prompt, count = input_ids.shape[1], input_ids.shape[0]
        self.answers = [[] for _ in range(count)]
        answer_of_row = list(range(count))
        lengths_B = torch.zeros(count, dtype=torch.long, device=input_ids.device)  # of answers that have ended; else 0
        ends = torch.tensor(self.ends, device=input_ids.device)
        check_every = 1 if synced_gpus else steps_between_checks(input_ids.device)
        finished, written = False, 0
        outputs = model._prefill(input_ids, generation_config, inputs)
        while True:
            inputs = model._update_model_kwargs_for_generation(outputs, inputs)
            logits_BV = outputs.logits[:, -1].to(device=input_ids.device, dtype=torch.float32)
            del outputs  # those of the prompt are large
            tokens_B = self._next(logits_BV, answer_of_row)
            input_ids = torch.cat([input_ids, tokens_B[:, None]], dim=-1)
            written += 1
            ended_B = torch.isin(tokens_B, ends)
            if self.stop is not None:  # it must not see the prompt: the string has to be the answer's own
                ended_B = ended_B | self.stop(input_ids[:, prompt:])
            lengths_B = torch.where((lengths_B == 0) & ended_B, written, lengths_B)
            if not finished and (written % check_every == 0 or written >= self.most):
                lengths = [length or (written if written >= self.most else 0) for length in lengths_B.tolist()]
                finished = all(lengths)
                for row, length in enumerate(lengths):
                    if length:
                        self.answers[answer_of_row[row]] = input_ids[row, prompt : prompt + length].tolist()
                staying = [row for row, length in enumerate(lengths) if not length]
                if staying and 4 * len(staying) <= 3 * len(lengths) and rows_can_be_taken(inputs.get("past_key_values")):
                    rows = torch.tensor(staying, device=input_ids.device)
                    inputs = _selected(inputs, rows, len(lengths))
                    answer_of_row = [answer_of_row[row] for row in staying]
                    input_ids, lengths_B = input_ids[rows], lengths_B[rows]
            if not model._has_unfinished_sequences(finished, synced_gpus, device=input_ids.device):
                return input_ids
            step = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **inputs)
            outputs = model(**step, return_dict=True)

    def _next(self, logits_BV: torch.Tensor, answer_of_row: list[int]) -> torch.Tensor:
        """The likeliest token of every row, or the one that its next random number falls on: [B]."""
        if self.temperature is None:
            return logits_BV.argmax(dim=-1)
        chances_BV = torch.softmax(logits_BV.double() / self.temperature, dim=-1)
        if self.numbers is None:
            return torch.multinomial(chances_BV, 1).squeeze(1)
        drawn = torch.tensor([[self.numbers[i].random()] for i in answer_of_row], device=logits_BV.device, dtype=torch.float64)
        upto_BV = chances_BV.cumsum(dim=-1)
        return torch.searchsorted(upto_BV, drawn * upto_BV[:, -1:], right=True).squeeze(1).clamp(max=logits_BV.shape[1] - 1)


def steps_between_checks(where: torch.device) -> int:
    """How often to ask whether rows have ended: on a GPU asking waits until it has caught up."""
    return 8 if where.type == "cuda" else 1


def _selected(inputs: dict[str, Any], rows: torch.Tensor, count: int) -> dict[str, Any]:
    """The inputs of the next step for some rows only: keys and values, the padding mask, positions."""
    inputs["past_key_values"].batch_select_indices(rows)

    def part(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[-2] != count:
            return value
        return value.index_select(-2, rows)  # [B, S]; some families' positions have an axis before it

    return {name: part(value) for name, value in inputs.items()}


def as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
