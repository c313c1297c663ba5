"""From examples to tokens: one place, so that calibration, training and evaluation see the same prompts.

With a chat template the conversation is rendered by it; without one (or with `task.chat: false`) the prompt stands as it
is, followed by a new line. The completion ends with the end-of-sequence token, which is learnt like any other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from toolkit.errors import PollardError
from toolkit.tasks.example import Example


class Encoded(NamedTuple):
    """Token ids of prompt + completion; `prompt_length` says where the completion begins."""

    input_ids: list[int]
    prompt_length: int

    @property
    def completion_mask(self) -> list[int]:
        return [0] * self.prompt_length + [1] * (len(self.input_ids) - self.prompt_length)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """The tokens a model is asked to continue."""
    text = prompt_text(tokenizer, example)
    # The template writes its own special tokens
    return tokenizer(text, add_special_tokens=not _by_template(tokenizer, example))["input_ids"]


def prompt_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt as the model sees it; without a template one message a line, and an empty line behind what is answered."""
    if _by_template(tokenizer, example):
        return _render(tokenizer, example.turns, add_generation_prompt=True)
    return "".join(turn["content"] + ("\n\n" if turn["role"] == "assistant" else "\n") for turn in example.turns)


def _by_template(tokenizer: PreTrainedTokenizerBase, example: Example) -> bool:
    return bool(tokenizer.chat_template) and not example.plain


def encode(tokenizer: PreTrainedTokenizerBase, example: Example) -> Encoded:
    """Prompt and completion, tokenized apart so that generation continues exactly where training did."""
    prompt = encode_prompt(tokenizer, example)
    completion = tokenizer(_completion_text(tokenizer, example), add_special_tokens=False)["input_ids"]
    if completion[-1] != tokenizer.eos_token_id:
        completion.append(tokenizer.eos_token_id)
    return Encoded(prompt + completion, len(prompt))


def encode_all(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> tuple[list[Encoded], int]:
    """The examples of at most `max_length` tokens, and how many were longer.

    Longer ones are left out rather than cut: half a solution teaches to stop half-way. Raises PollardError if none fits.
    """
    encoded = [encode(tokenizer, example) for example in examples]
    fitting = [e for e in encoded if len(e.input_ids) <= max_length]
    if not fitting:
        shortest = min((len(e.input_ids) for e in encoded), default=0)
        raise PollardError(f"No example fits into max_length {max_length}: the shortest has {shortest} tokens. Raise max_length.")
    return fitting, len(encoded) - len(fitting)


def _completion_text(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """What the template itself would write for the assistant after the generation prompt (think tags, channels, …)."""
    if not _by_template(tokenizer, example):
        return example.completion
    prompt = prompt_text(tokenizer, example)
    answer = {"role": "assistant", "content": example.completion}
    whole = _render(tokenizer, [*example.turns, answer], add_generation_prompt=False)
    if not whole.startswith(prompt):
        return example.completion
    text, end, _ = whole[len(prompt) :].rpartition(tokenizer.eos_token)
    return text + end if end else whole[len(prompt) :].rstrip("\n")


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """What the chat template writes. Raises PollardError where it refuses (many know no system message, for one)."""
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise PollardError(f"The model's chat template refuses a conversation of {roles}: {error}") from None
    return str(text)
