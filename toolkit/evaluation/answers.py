"""What is asked and what comes back, whoever writes it: transformers in batches, continuous batching, or a server.

Answers as they come, so that a killed evaluation goes on instead of beginning again.

    {"fingerprint": "3f0c5d1be2a94c77"}                                              the first line of every file
    {"index": 7, "sample": 0, "text": "… #### 72", "tokens": 41, "ended": true}      one answer

Every rank appends to a file of its own; who reads, reads all of them, whatever number of ranks wrote them. A line that a kill
left half-written counts as not written, and files of other settings are removed. Judging is no part of it: after a scorer is
mended, the same answers are judged.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.distributed import on_main, rank
from toolkit.runtime.files import fingerprint_of
from toolkit.tasks import ChatFormat, Example, Message, chat_format, format_of


class Answer(NamedTuple):
    """What a model answered: `tokens` counts what was generated, `ended` says that the model stopped by itself. `written` is all
    that it wrote where that is more than the answer: the chat template's frame, reasoning, what follows a stop text."""

    text: str
    tokens: int
    ended: bool
    written: str | None = None


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


FORMAT = 2  # of the lines, and of how an answer is taken out of what was written
AnswersByKey = dict[tuple[int, int], Answer]  # by item and sample


class AnswerLog:
    """The folder of one evaluation; `identity` is that of the model and of who writes. `begin` comes first."""

    def __init__(self, folder: Path, identity: Any) -> None:
        self.folder, self.identity = folder, identity
        self.fingerprint = ""

    def begin(self, *asked: Any) -> AnswersByKey:
        """What is answered already of what is `asked`, on every rank; call it on all of them."""
        self.fingerprint = fingerprint_of(FORMAT, self.identity, asked)
        return on_main(self._read)

    def append(self, request: Request, answer: Answer) -> None:
        line = {"index": request.index, "sample": request.sample, **answer._asdict()}
        path = self.folder / f"{rank()}.jsonl"
        begun = path.exists()
        with path.open("a", encoding="utf-8") as file:  # closed, so a kill takes nothing that was appended
            if not begun:
                file.write(self._head())
            file.write(json.dumps(line) + "\n")

    def _head(self) -> str:
        return json.dumps({"fingerprint": self.fingerprint}) + "\n"

    def _read(self) -> AnswersByKey:
        self.folder.mkdir(parents=True, exist_ok=True)
        found: AnswersByKey = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            if not lines or lines[0].decode(errors="replace") != self._head():
                path.unlink()
                continue
            whole = lines if lines[-1].endswith(b"\n") else lines[:-1]
            with path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
            for line in whole[1:]:
                entry: dict[str, Any] = json.loads(line)
                key = entry.pop("index"), entry.pop("sample")
                found[key] = Answer(**entry)
        return found
