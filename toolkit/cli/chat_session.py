"""The same questions to several models, their answers side by side: what pruning took, and what recovery brought back.

Answers are greedy, as in the evaluation; every model sees its own earlier answers.
"""

import string
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

WIDE = 100  # columns from which on answers stand side by side
HELP = "/new begins a new conversation, /quit (or Ctrl-D) ends; Ctrl-C stops an answer"


class Answer(NamedTuple):
    text: str
    tokens: int
    seconds: float
    ended: bool


class Speaker:
    """A model, and what it and its user have said to each other."""

    def __init__(self, role: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.role, self.model, self.tokenizer = role, model, tokenizer
        self.said: list[Message] = []

    def answer(self, question: str, max_new_tokens: int) -> Answer:
        """Raises PollardError where the chat template refuses the conversation; it is as before, then."""
        asked = [*self.said, {"role": "user", "content": question}]
        prompt = encode_prompt(self.tokenizer, Example(tuple(asked), "", ""))
        settings = greedy(self.model, self.tokenizer, max_new_tokens)
        started = time.monotonic()
        tokens = generate(self.model, [prompt], settings)[0]
        ends, form = as_list(settings.eos_token_id), chat_format(self.tokenizer)
        ended = bool(tokens) and tokens[-1] in ends
        found = read_answer(self.tokenizer, tokens, ends, (), max_new_tokens, form)
        text = found.text.strip() or form.without_special(found.written or "").strip()  # reasoning that came to no answer
        self.said = [*asked, {"role": "assistant", "content": found.text.strip()}]
        return Answer(text, len(tokens), time.monotonic() - started, ended)


def load_speakers(models: Sequence[NamedModel]) -> list[Speaker]:
    """Says first how much memory they need. On GPUs whose memory does not hold them all, their layers are spread."""
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
    """Asks all of them what is typed, or what comes through a pipe, one question a line."""
    template, system = (None, []) if raw else (question_template(run), system_prompt(run))
    for speaker in speakers:
        speaker.said = list(system)
    if template:
        say(f"[dim]the task's prompt: {escape(repr(template))}; --raw asks what you type as it stands[/]")
    for line in _lines():
        if line in ("/quit", "/exit"):
            return
        if line == "/new":
            for speaker in speakers:
                speaker.said = list(system)
            say("[dim]a new conversation[/]")
        elif line.startswith("/"):
            say(f"[dim]{HELP}[/]")
        elif line:
            first = speakers[0].said == system
            _ask(speakers, _filled(template, line) if template and first else line, max_new_tokens)


def question_template(run: FoundRun) -> str | None:
    """The task's prompt, where it takes one column, which a question can stand for; None where it adds nothing."""
    template = Task(run.recipe.task).preset.prompt or ""
    columns = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    return template if len(columns) == 1 and template != f"{{{next(iter(columns))}}}" else None


def system_prompt(run: FoundRun) -> list[Message]:
    """The task's system message, where it is the same for every question."""
    system = Task(run.recipe.task).preset.system
    if not system or any(name for _, name, _, _ in string.Formatter().parse(system)):
        return []
    return [{"role": "system", "content": system.format()}]


def _filled(template: str, question: str) -> str:
    (column,) = {name for _, name, _, _ in string.Formatter().parse(template) if name}
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
    """A conversation that stops half-way is as before for everybody: they go on from the same question."""
    before = [speaker.said for speaker in speakers]
    answers: list[Answer] = []
    try:
        for speaker in speakers:
            with console.status(f"{speaker.role} is answering"):
                answers.append(speaker.answer(question, max_new_tokens))
    except (KeyboardInterrupt, PollardError) as stopped:
        for speaker, said in zip(speakers, before, strict=True):
            speaker.said = said
        say(f"[yellow]{escape(str(stopped) or 'stopped')}[/]")
        return
    show_answers([speaker.role for speaker in speakers], answers, max_new_tokens)


def show_answers(names: Sequence[str], answers: Sequence[Answer], max_new_tokens: int) -> None:
    """In columns where there is room, else below each other."""
    told = [_told(answer, max_new_tokens) for answer in answers]
    if console.is_terminal and console.width >= WIDE and len(answers) > 1:
        table = Table.grid(padding=(0, 3), expand=True)
        for _ in names:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*(Text(name, "bold") for name in names))
        table.add_row(*(Text(answer.text) for answer in answers))
        table.add_row(*(Text(facts, "dim") for facts in told))
        console.print(table)
    else:
        for name, answer, facts in zip(names, answers, told, strict=True):
            say(f"[bold]{name}[/] [dim]({facts})[/]")
            console.print(answer.text, markup=False)
    say()


def _told(answer: Answer, max_new_tokens: int) -> str:
    speed = f"{answer.tokens:,} tokens, {answer.tokens / max(answer.seconds, 1e-9):,.0f}/s"
    return speed if answer.ended else f"{speed}; cut off after {max_new_tokens:,} tokens: --max-new-tokens"
