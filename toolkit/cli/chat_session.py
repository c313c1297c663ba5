"""A chat with several models at once, which shows what pruning took and what recovery restored.

Decoding is greedy, as in the evaluation. Every model sees its own earlier answers.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from toolkit.evaluation import generate, greedy
from toolkit.evaluation.answers import read_answer
from toolkit.evaluation.decoding import as_list
from toolkit.moe import load_config, load_model, load_tokenizer, weight_bytes
from toolkit.moe.placement import HEADROOM
from toolkit.pipeline.run_models import FoundRun, NamedModel
from toolkit.runtime.distributed import console, device, say
from toolkit.runtime.errors import PollardError
from toolkit.runtime.formatting import size
from toolkit.tasks import Example, Message, Task, chat_format, encode_prompt
from toolkit.tasks.templates import fields_of

SIDE_BY_SIDE_WIDTH = 100  # columns of a terminal from which on answers are shown side by side
HELP = "/new begins a new conversation, /quit (or Ctrl-D) ends; Ctrl-C stops an answer"


class Answer(NamedTuple):
    text: str
    tokens: int
    seconds: float
    ended: bool
    """False: cut off after the maximum number of tokens."""


class Speaker:
    """A model and its conversation with the user."""

    def __init__(self, role: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.role, self.model, self.tokenizer = role, model, tokenizer
        self.messages: list[Message] = []

    def answer(self, question: str, max_new_tokens: int) -> Answer:
        """Raises PollardError if the chat template refuses the conversation, which then stays as it was."""
        messages = [*self.messages, {"role": "user", "content": question}]
        prompt = encode_prompt(self.tokenizer, Example(tuple(messages), "", ""))
        settings = greedy(self.model, self.tokenizer, max_new_tokens)
        started = time.monotonic()
        tokens = generate(self.model, [prompt], settings)[0]
        ends, form = as_list(settings.eos_token_id), chat_format(self.tokenizer)
        ended = bool(tokens) and tokens[-1] in ends
        answer = read_answer(self.tokenizer, tokens, ends, (), max_new_tokens, form)
        text = answer.text.strip() or form.without_special(answer.written or "").strip()  # reasoning without an answer
        self.messages = [*messages, {"role": "assistant", "content": answer.text.strip()}]
        return Answer(text, len(tokens), time.monotonic() - started, ended)


def load_speakers(models: Sequence[NamedModel]) -> list[Speaker]:
    """Reports the memory that they need, and loads them. If one GPU cannot hold them all, their layers are spread."""
    needed = {model.name: weight_bytes(load_config(model.path, model.revision), model.dtype) for model in models}
    total, where = sum(needed.values()), device()
    spread = where.type == "cuda" and HEADROOM * total > torch.cuda.mem_get_info()[0]
    parts = " + ".join(f"{role} {size(count)}" for role, count in needed.items())
    say(f"[dim]memory: {parts} = {size(total)} of weights on {'all GPUs' if spread else where}[/]")
    speakers = []
    for model in models:
        loaded = load_model(model.path, model.revision, model.dtype, where, spread=spread)
        speakers.append(Speaker(model.name, loaded, load_tokenizer(model.path, model.revision)))
    return speakers


def chat(speakers: Sequence[Speaker], run: FoundRun, raw: bool, max_new_tokens: int) -> None:
    """Asks all of them what is typed, or what comes through a pipe, one question per line. `raw`: without the task's prompt."""
    template, system = (None, []) if raw else (question_template(run), system_prompt(run))
    for speaker in speakers:
        speaker.messages = list(system)
    if template:
        say(f"[dim]the task's prompt: {escape(repr(template))}; --raw asks what you type as it stands[/]")
    for line in _lines():
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            for speaker in speakers:
                speaker.messages = list(system)
            say("[dim]a new conversation[/]")
        elif line.startswith("/"):
            say(f"[dim]{HELP}[/]")
        elif line:
            is_first = speakers[0].messages == system
            _ask(speakers, _filled(template, line) if template and is_first else line, max_new_tokens)


def question_template(run: FoundRun) -> str | None:
    """The task's prompt template if it has exactly one column, for which the question stands; None if it adds nothing."""
    template = Task(run.recipe.task).preset.prompt or ""
    columns = fields_of(template)
    return template if len(columns) == 1 and template != f"{{{columns[0]}}}" else None


def system_prompt(run: FoundRun) -> list[Message]:
    """The task's system message if it is the same for every question."""
    system = Task(run.recipe.task).preset.system
    if not system or fields_of(system):
        return []
    return [{"role": "system", "content": system.format()}]


def _filled(template: str, question: str) -> str:
    (column,) = fields_of(template)
    return template.format(**{column: question})


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        for line in sys.stdin:
            console.print(f"> {line.strip()}", markup=False)
            yield line.strip()
        return
    import readline  # noqa: F401 - arrows and history in `input`

    say(f"[dim]{HELP}[/]")
    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            say()
            return


def _ask(speakers: Sequence[Speaker], question: str, max_new_tokens: int) -> None:
    """If one model fails or is interrupted, every conversation stays as it was, so that they continue from the same question."""
    previous = [speaker.messages for speaker in speakers]
    answers: list[Answer] = []
    try:
        for speaker in speakers:
            with console.status(f"{speaker.role} is answering"):
                answers.append(speaker.answer(question, max_new_tokens))
    except (KeyboardInterrupt, PollardError) as stopped:
        for speaker, messages in zip(speakers, previous, strict=True):
            speaker.messages = messages
        say(f"[yellow]{escape(str(stopped) or 'stopped')}[/]")
        return
    show_answers([speaker.role for speaker in speakers], answers, max_new_tokens)


def show_answers(names: Sequence[str], answers: Sequence[Answer], max_new_tokens: int) -> None:
    """In columns if the terminal is wide enough, else below each other."""
    facts = [_facts(answer, max_new_tokens) for answer in answers]
    if console.is_terminal and console.width >= SIDE_BY_SIDE_WIDTH and len(answers) > 1:
        table = Table.grid(padding=(0, 3), expand=True)
        for _ in names:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(name, "bold") for name in names))
        table.add_row(*(Text(answer.text) for answer in answers))
        table.add_row(*(Text(text, "dim") for text in facts))
        console.print(table)
    else:
        for name, answer, text in zip(names, answers, facts, strict=True):
            say(f"[bold]{name}[/] [dim]({text})[/]")
            console.print(answer.text, markup=False)
    say()


def _facts(answer: Answer, max_new_tokens: int) -> str:
    speed = f"{answer.tokens:,} tokens, {answer.tokens / max(answer.seconds, 1e-9):,.0f}/s"
    return speed if answer.ended else f"{speed}; cut off after {max_new_tokens:,} tokens: --max-new-tokens"
