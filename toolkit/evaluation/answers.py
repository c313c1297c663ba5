"""What is asked and what comes back, whoever writes it: transformers in batches, continuous batching, or a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.judging import Answer
from toolkit.tasks import ChatFormat, Example, Message, chat_format, format_of


@dataclass(frozen=True)
class Request:
    """One answer to be written: the `sample`-th to item `index`. `messages` and `tools` are what `prompt` was rendered from, by
    the chat template unless it is `plain`."""

    index: int
    sample: int
    prompt: list[int]
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    plain: bool = False


class Writer(Protocol):
    """Writes this rank's share of the requests, one after the other, as they are finished."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]: ...


def read_answer(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    ends: Sequence[int],
    stop: Sequence[str],
    most: int,
    form: ChatFormat | None = None,
) -> Answer:
    """The answer in generated tokens, to a prompt by the chat template unless `form` says otherwise; one of fewer than `most`
    tokens has ended by itself."""
    ended = len(tokens) < most or bool(tokens and tokens[-1] in ends)
    return answer_of(written_text(tokenizer, tokens, ends), len(tokens), ended, stop, form or chat_format(tokenizer))


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: Sequence[int], example: Example) -> str:
    """What is judged of the tokens that a model wrote to an example."""
    return format_of(tokenizer, example).answer_in(written_text(tokenizer, tokens, ends))


def written_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: Sequence[int]) -> str:
    """All that was written but its end: special tokens may frame the answer."""
    count = len(tokens)
    while count and tokens[count - 1] in ends:
        count -= 1
    return str(tokenizer.decode(list(tokens[:count]), skip_special_tokens=False))


def answer_of(written: str, tokens: int, ended: bool, stop: Sequence[str], form: ChatFormat) -> Answer:
    """The answer in a text: without what the chat template writes around it, without reasoning, and before the first stop text,
    which ends an answer and nothing before it."""
    text = form.answer_in(written)
    answer = before_stop(text, stop)
    return Answer(answer, tokens, ended or answer != text, None if written == answer else written)


def has_stopped(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: Sequence[int], stop: Sequence[str], form: ChatFormat
) -> bool:
    """Whether there is a stop text in the answer so far: one in reasoning, or in what the template writes before it, is none."""
    answer = form.answer_in(written_text(tokenizer, tokens, ends))
    return before_stop(answer, stop) != answer


def before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]
