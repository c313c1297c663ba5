"""What is asked and what comes back, whoever writes it: transformers in batches, continuous batching, or a server."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from toolkit.evaluation.judging import Answer


@dataclass(frozen=True)
class Request:
    """One answer to be written: the `sample`-th to item `index`. `messages` are what `prompt` was rendered from."""

    index: int
    sample: int
    prompt: list[int]
    messages: tuple[dict[str, str], ...]


class Writer(Protocol):
    """Writes this rank's share of the requests, one after the other, as they are finished."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]: ...


def read_answer(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: Sequence[int], stop: Sequence[str], most: int
) -> Answer:
    """The text before the first stop string; an answer of fewer than `most` tokens has ended by itself."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    before = before_stop(text, stop)
    ended = len(tokens) < most or bool(tokens and tokens[-1] in ends) or before != text
    return Answer(before, len(tokens), ended)


def before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]
