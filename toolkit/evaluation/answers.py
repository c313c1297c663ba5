"""Requests and answers, whoever writes them: transformers in batches, continuous batching, or a server.

Answers are logged as they come, so that a killed evaluation continues instead of beginning again.

    {"fingerprint": "3f0c5d1be2a94c77"}                                              the first line of every file
    {"index": 7, "sample": 0, "text": "… #### 72", "tokens": 41, "ended": true}      one answer
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
    """A model's answer. `tokens` counts what was generated; `ended`: the model stopped by itself. `written` is the whole text
    where it is more than the answer: the chat template's frame, reasoning, what follows a stop text."""

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
    tools: tuple[Message, ...] = ()
    plain: bool = False


class Writer(Protocol):
    """Writes this rank's share of the requests, and yields each as soon as it is finished."""

    def __call__(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]: ...


def read_answer(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    ends: Sequence[int],
    stop: Sequence[str],
    max_new_tokens: int,
    form: ChatFormat | None = None,
) -> Answer:
    """The answer in generated tokens; one of fewer than `max_new_tokens`, or whose last token is one of `ends`, has ended by
    itself. `form` is what stands around the answer: the chat template's unless given."""
    ended = len(tokens) < max_new_tokens or bool(tokens and tokens[-1] in ends)
    return answer_of(written_text(tokenizer, tokens, ends), len(tokens), ended, stop, form or chat_format(tokenizer))


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: Sequence[int], example: Example) -> str:
    """The text that is judged, of the tokens that a model generated for an example."""
    return format_of(tokenizer, example).answer_in(written_text(tokenizer, tokens, ends))


def written_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: Sequence[int]) -> str:
    """The whole generated text without its end tokens. Special tokens stay: they may frame the answer."""
    count = len(tokens)
    while count and tokens[count - 1] in ends:
        count -= 1
    return str(tokenizer.decode(list(tokens[:count]), skip_special_tokens=False))


def answer_of(written: str, tokens: int, ended: bool, stop: Sequence[str], form: ChatFormat) -> Answer:
    """The answer in a text: without what the chat template writes around it, without reasoning, and cut before the first stop
    text in the answer itself."""
    text = form.answer_in(written)
    answer = before_stop(text, stop)
    return Answer(answer, tokens, ended or answer != text, None if written == answer else written)


def has_stopped(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: Sequence[int], stop: Sequence[str], form: ChatFormat
) -> bool:
    """Whether the answer so far holds a stop text; one in reasoning, or in what the template writes before it, does not count."""
    answer = form.answer_in(written_text(tokenizer, tokens, ends))
    return before_stop(answer, stop) != answer


def before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))]


FORMAT = 2  # of the log's lines, and of how an answer is taken out of what was written
AnswersByKey = dict[tuple[int, int], Answer]  # by item and sample


class AnswerLog:
    """The folder of one evaluation's answers; `identity` is that of the model and of the writer.

    Every rank appends to a file of its own and reads the files of all, whatever number of ranks wrote them. A line that a kill
    left half-written counts as not written, and files of other settings are removed. Judging is no part of it: after a scorer
    is mended, the same answers are judged. `resume` must be called before `append`.
    """

    def __init__(self, folder: Path, identity: object) -> None:
        self.folder, self.identity = folder, identity
        self.fingerprint = ""

    def resume(self, *settings: object) -> AnswersByKey:
        """The answers that were logged under the same `settings` (decoding, prompts), the same on every rank; call it on all."""
        self.fingerprint = fingerprint_of(FORMAT, self.identity, settings)
        return on_main(self._read)

    def append(self, request: Request, answer: Answer) -> None:
        line = {"index": request.index, "sample": request.sample, **answer._asdict()}
        path = self.folder / f"{rank()}.jsonl"
        is_new = not path.exists()
        with path.open("a", encoding="utf-8") as file:  # closed each time, so that a kill loses nothing that was appended
            if is_new:
                file.write(self._first_line())
            file.write(json.dumps(line) + "\n")

    def _first_line(self) -> str:
        return json.dumps({"fingerprint": self.fingerprint}) + "\n"

    def _read(self) -> AnswersByKey:
        self.folder.mkdir(parents=True, exist_ok=True)
        answers: AnswersByKey = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            if not lines or lines[0].decode(errors="replace") != self._first_line():
                path.unlink()
                continue
            whole = lines if lines[-1].endswith(b"\n") else lines[:-1]
            with path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
            for line in whole[1:]:
                entry: dict[str, Any] = json.loads(line)
                key = entry.pop("index"), entry.pop("sample")
                answers[key] = Answer(**entry)
        return answers
