"""From examples to tokens: one place, so that calibration, training and evaluation see the same prompts.

With a chat template the conversation is rendered by it; without one (or with `task.chat: false`) the prompt stands as it
is, followed by a new line. The completion ends with the end-of-sequence token, which is learnt like any other.

From token lists to padded tensors. Shape legend: B sequences, S positions.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError
from toolkit.tasks.chat_format import REASONING, ChatFormat, chat_format, render, split_reasoning
from toolkit.tasks.conversation import text_of_reply
from toolkit.tasks.example import Example, Message

ANCHORS = ("\n", ".", "a")  # put before a text that is tokenized as the continuation of another


class Encoded(NamedTuple):
    """Token ids of prompt + completion; `prompt_length` says where the completion begins."""

    input_ids: list[int]
    prompt_length: int

    @property
    def completion_mask(self) -> list[int]:
        return [0] * self.prompt_length + [1] * (len(self.input_ids) - self.prompt_length)


def uses_chat_template(tokenizer: PreTrainedTokenizerBase, example: Example) -> bool:
    """Whether the chat template renders this example's prompt."""
    return bool(tokenizer.chat_template) and not example.plain


def format_of(tokenizer: PreTrainedTokenizerBase, example: Example) -> ChatFormat:
    """The texts around the answer to this example."""
    return chat_format(tokenizer, example.plain)


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt as the model sees it; without a template one message a line, and an empty line behind what is answered.

    Raises PollardError, with the example's line, for a conversation that the template refuses.
    """
    if uses_chat_template(tokenizer, example):
        return _rendered(tokenizer, example, add_generation_prompt=True)
    return "".join((turn["content"] or "") + ("\n\n" if turn["role"] == "assistant" else "\n") for turn in example.turns)


def completion_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The text that the template itself writes for the assistant after the generation prompt (think tags, channels, …), up to
    the end-of-sequence token where it writes one."""
    form, example = format_of(tokenizer, example), without_end_texts(tokenizer, example)
    if not uses_chat_template(tokenizer, example):
        return example.completion
    answer = example.answer
    if form.opened or form.shows_reasoning:  # or it would stand inside the answer, or be dropped
        thought, text = split_reasoning(answer["content"])
        if text != answer["content"] or any(closing.strip() in text for _, closing in form.reasoning):
            thoughts = filter(None, [answer.get(REASONING), thought])
            # Without any it is empty, and not left out: some templates look for it in the text then
            answer = answer | {REASONING: "\n".join(dict.fromkeys(thoughts)), "content": text}
    prompt, whole = prompt_text(tokenizer, example), _rendered(tokenizer, example, answer)
    if whole.startswith(prompt) and (form.shows_reasoning or not form.opened):
        return _up_to_end(tokenizer, whole[len(prompt) :])
    shared = prompt.removesuffix(form.unshared)
    if not form.opened or not whole.startswith(shared):  # the template does not continue the generation prompt
        rest = f"{answer['content']}{form.suffix.strip()}"
    else:
        rest = form.behind_opening(_up_to_end(tokenizer, whole[len(shared) :]))
    thought = answer.get(REASONING, "")
    if not form.opened or (form.shows_reasoning and thought and thought in rest):
        return rest
    # The template begins reasoning, and then drops it
    return thought + (rest if rest.lstrip().startswith(form.closing) else f"\n{form.closing}\n\n{rest}")


def _up_to_end(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    before, end, _ = text.rpartition(str(tokenizer.eos_token))
    return before + end if end else text.rstrip("\n")


def _rendered(
    tokenizer: PreTrainedTokenizerBase, example: Example, answer: Message | None = None, add_generation_prompt: bool = False
) -> str:
    turns = [*example.turns, answer] if answer else example.turns
    try:
        return render(tokenizer, turns, example.tools, add_generation_prompt)
    except PollardError as error:
        raise PollardError(f"{example.where}: {error}" if example.where else str(error), code=error.code) from None


def without_end_texts(tokenizer: PreTrainedTokenizerBase, example: Example) -> Example:
    """The example without the text of an end token in its completion: a model would end there."""
    ends = {str(tokenizer.eos_token), format_of(tokenizer, example).end} - {"", "None"}
    if not any(end in example.completion for end in ends):
        return example
    completion = example.completion
    for end in ends:
        completion = completion.replace(end, "")
    return replace(example, completion=completion)


def gold_of(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The text that an answer of this model is compared with: the example's gold without special tokens, which are no part
    of an answer. Of a reply with tool calls, the text and the calls as the template writes them."""
    form = format_of(tokenizer, example)
    if example.reply.get("tool_calls") and example.gold == text_of_reply(example.completion, example.reply):
        return form.answer_in(completion_text(tokenizer, example)).strip()
    gold = form.without_special(example.gold)
    return gold.replace(form.end, "") if form.end else gold


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """The tokens a model is asked to continue."""
    return tokens_of(tokenizer, prompt_text(tokenizer, example), not uses_chat_template(tokenizer, example))


def encode_cloze(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    """The prompt of an example without its choices, and the text of its completion alone: without an end token, and what the
    template writes before every answer counts as prompt."""
    prompt = prompt_text(tokenizer, example) + format_of(tokenizer, example).before_answer
    return _split(tokenizer, example, prompt, example.completion)


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    """Prompt and completion, so that generation continues exactly where training did."""
    encoded = _split(tokenizer, example, prompt_text(tokenizer, example), completion_text(tokenizer, example))
    if encoded.input_ids[-1] != tokenizer.eos_token_id or len(encoded.input_ids) == encoded.prompt_length:
        encoded.input_ids.append(int(tokenizer.eos_token_id))  # type: ignore[arg-type]
    return encoded


def _split(tokenizer: PreTrainedTokenizerBase, example: Example, prompt: str, completion: str) -> Encoded:
    """The tokens of the whole text, split at the prompt's end; where a token would reach over it, the two are tokenized apart,
    for a model that answers is given the prompt's own tokens."""
    special = not uses_chat_template(tokenizer, example)  # the template writes its own special tokens
    before = tokens_of(tokenizer, prompt, special)
    whole = tokens_of(tokenizer, prompt + completion, special)
    if whole[: len(before)] != before:
        whole = before + _tokens_behind(tokenizer, completion)
    return Encoded(whole, len(before))


def tokens_of(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = True) -> list[int]:
    """The tokens of a text with the `special` ones that the tokenizer adds, but without an end token that it may append to every
    text: nothing has ended there."""
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    while special and ids and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def _tokens_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that continues another: without the mark of a word's beginning that some tokenizers put first."""
    for anchor in ANCHORS:
        before, both = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (anchor, anchor + text))
        if both[: len(before)] == before:
            return list(both[len(before) :])
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_all(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int, setting: str = "max_length"
) -> tuple[list[Encoded], int]:
    """The examples of at most `max_length` tokens, and how many were longer. `setting`: the recipe's key, for messages.

    Longer ones are left out rather than cut: half a solution teaches to stop half-way. Raises PollardError if none fits.
    """
    encoded = [encode(tokenizer, example) for example in examples]
    fitting = [e for e in encoded if len(e.input_ids) <= max_length]
    if not fitting:
        shortest = min((len(e.input_ids) for e in encoded), default=0)
        raise PollardError(
            f"No example fits into max_length {max_length}: the shortest has {shortest} tokens. Raise {setting}.",
            code="task.too-long",
        )
    return fitting, len(encoded) - len(fitting)


def padded_batches(encoded: Sequence[Encoded], batch_size: int, pad_token_id: int) -> list[dict[str, torch.Tensor]]:
    """Right-padded batches of `input_ids`, `attention_mask` and `completion_mask`, each [B, S], in the given order."""
    batches = []
    for start in range(0, len(encoded), batch_size):
        chunk = encoded[start : start + batch_size]
        length = max(len(e.input_ids) for e in chunk)
        rows = [[*e.input_ids, *[pad_token_id] * (length - len(e.input_ids))] for e in chunk]
        real = [[1] * len(e.input_ids) + [0] * (length - len(e.input_ids)) for e in chunk]
        completion = [e.completion_mask + [0] * (length - len(e.input_ids)) for e in chunk]
        names = ("input_ids", "attention_mask", "completion_mask")
        batches.append({name: torch.tensor(values) for name, values in zip(names, (rows, real, completion), strict=True)})
    return batches


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """The texts in pieces of at most `max_length` tokens, every token completion.

    Text may be cut where an answer may not: no piece of it is half a solution.
    """
    pieces = []
    for text in texts:
        ids = tokens_of(tokenizer, text)
        pieces += [Encoded(ids[start : start + max_length], 0) for start in range(0, len(ids), max_length)]
    return pieces
