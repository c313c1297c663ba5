"""What a model's chat template writes around an assistant's answer, and the way back: the answer in what a model wrote.

    generation prompt                written by the model (trained, and judged)                             answer
    <|im_start|>assistant\\n          <think>\\n\\n</think>\\n\\nbilling<|im_end|>                                billing
    <|start|>assistant               <|channel|>analysis<|message|>…<|channel|>final<|message|>billing      billing
    <｜Assistant｜><think>\\n          Charged twice: money.\\n</think>\\n\\nbilling<｜end▁of▁sentence｜>         billing

No template is known by name: a conversation with marked texts is rendered, and what stands between the marks is read off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from toolkit.errors import PollardError
from toolkit.tasks.example import Message

# Around reasoning where no template says otherwise: models write these on their own, too
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
# One field, as different templates call it
REASONING = "reasoning_content"
REASONING_NAMES = (REASONING, "reasoning", "thinking")
QUESTION, THOUGHT, ANSWER = "Question?", "zqThoughtqz", "zqAnswerqz"


@dataclass(frozen=True)
class ChatFormat:
    """What stands around an answer; all of it empty where there is no template."""

    prefix: str = ""  # between the generation prompt and the answer
    suffix: str = ""  # behind the answer
    reasoning: tuple[tuple[str, str], ...] = REASONING_TAGS  # what opens and what closes a block of reasoning
    shows_reasoning: bool = False  # the template renders a message's reasoning_content
    opened: str = ""  # the block of reasoning that the generation prompt opens, as a tag
    unshared: str = ""  # the end of the generation prompt that a rendered answer does not continue
    special: tuple[str, ...] = ()  # special tokens, which are no part of an answer

    @property
    def closing(self) -> str:
        """What ends a block of reasoning that the generation prompt has opened."""
        return dict(REASONING_TAGS)[self.opened] if self.opened else ""

    @property
    def end(self) -> str:
        """What marks the end of an answer; more may follow it (Phi's end of a turn, a line break, the end of the text)."""
        return self.suffix.strip().partition("\n")[0]

    @property
    def before_answer(self) -> str:
        """What a model writes between the generation prompt and an answer without reasoning."""
        return self.prefix or (f"\n{self.closing}\n\n" if self.opened else "")

    def answer_in(self, written: str) -> str:
        """The answer in a text as a model wrote it (special tokens included, its end token not): without the template's
        prefix and suffix, blocks of reasoning before it and special tokens. Empty where the text ends before the answer."""
        if len(written.strip()) > 1 and self.prefix.strip().startswith(written.strip()):  # half a prefix
            return ""
        rest: str | None = _behind(written, self.closing) if self.opened else written
        while rest is not None:
            closing = next((close for open_, close in self.reasoning if _starts(rest, open_)), None)
            if closing is not None:
                rest = _behind(rest, closing)
            elif self.prefix.strip() and _starts(rest, self.prefix):
                rest = rest.lstrip()[len(self.prefix.strip()) :].removeprefix(self.prefix[len(self.prefix.rstrip()) :])
            else:
                break
        if rest is None:
            return ""
        rest = rest.removeprefix(self.prefix)
        if self.end:
            rest = rest.partition(self.end)[0]
        return self.without_special(rest)

    def without_special(self, text: str) -> str:
        for token in self.special:
            text = text.replace(token, "")
        return text


def _starts(text: str, opening: str) -> bool:
    return text.lstrip().startswith(opening.strip())


def _behind(text: str, closing: str) -> str | None:
    """What follows the first `closing`, without the empty lines that set it off; None where it never comes."""
    _, found, rest = text.partition(closing.strip())
    return rest.lstrip("\n") if found else None


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning at the beginning of a text, without its tags, and the text behind it."""
    for opening, closing in REASONING_TAGS:
        if _starts(text, opening) and (answer := _behind(text, closing)) is not None:
            return text.partition(closing)[0].lstrip()[len(opening) :].strip(), answer
    return "", text


_formats: WeakKeyDictionary[Any, tuple[str, ChatFormat]] = WeakKeyDictionary()


def chat_format(tokenizer: PreTrainedTokenizerBase, plain: bool = False) -> ChatFormat:
    """Derived once per tokenizer and template. `plain`: of prompts that stand without a template."""
    if plain or not tokenizer.chat_template:
        return ChatFormat(special=_special(tokenizer))
    template = str(tokenizer.chat_template)
    if tokenizer not in _formats or _formats[tokenizer][0] != template:
        _formats[tokenizer] = template, _derived(tokenizer)
    return _formats[tokenizer][1]


def _special(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(token for token in tokenizer.all_special_tokens if token.strip())


def _derived(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    question, special = [{"role": "user", "content": QUESTION}], _special(tokenizer)
    reply = {"role": "assistant", "content": ANSWER}
    try:
        prompt = render(tokenizer, question, add_generation_prompt=True)
        answered = render(tokenizer, [*question, reply])
    except PollardError:  # a template of another kind of conversation: its own examples are checked one by one
        return ChatFormat(special=special)
    try:
        reasoned = render(tokenizer, [*question, reply | {REASONING: THOUGHT}])
    except PollardError:
        reasoned = answered
    shared = _common_beginning(prompt, answered, reasoned)
    unshared = prompt[len(shared) :]
    opened = next((tag for tag, closing in REASONING_TAGS if prompt.rstrip().endswith(tag)), "")
    if unshared and not unshared.strip().startswith(opened or "\0"):  # the two have nothing to do with each other
        return ChatFormat(suffix=answered.partition(ANSWER)[2], opened=opened, unshared=unshared, special=special)
    prefix, _, suffix = answered[len(shared) :].partition(ANSWER)
    shows = THOUGHT in reasoned and ANSWER in reasoned.partition(THOUGHT)[2]
    pairs: tuple[tuple[str, str], ...] = REASONING_TAGS
    before, _, behind = reasoned[len(shared) :].partition(THOUGHT)
    if shows and not opened and before.strip():
        pairs = ((before, behind.partition(ANSWER)[0]), *(pair for pair in pairs if pair[0] != before.strip()))
    return ChatFormat(prefix, suffix, pairs, shows, opened, unshared, special)


def _common_beginning(*texts: str) -> str:
    for at, signs in enumerate(zip(*texts, strict=False)):
        if len(set(signs)) > 1:
            return texts[0][:at]
    return min(texts, key=len)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Any] = (),
    add_generation_prompt: bool = False,
) -> str:
    """What the chat template writes. Raises PollardError where it refuses, or cannot."""
    known = [_with_every_name(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                known, tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as error:  # the template is a program of the model's makers: it may raise anything
        templates = tokenizer.chat_template
        if isinstance(templates, dict) and "default" not in templates:
            raise PollardError(
                f"The tokenizer has several chat templates ({', '.join(templates)}), none of them called `default`: write "
                "the one to use into chat_template.jinja in the model's folder, and remove the others from tokenizer_config.json."
            ) from None
        roles = ", ".join(str(message["role"]) for message in messages)
        what = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
        raise PollardError(f"The model's chat template refuses a conversation of {roles}: {what}") from None


def _with_every_name(message: Message) -> Message:
    """Templates look for reasoning under different names."""
    return message | dict.fromkeys(REASONING_NAMES, message[REASONING]) if message.get(REASONING) else message
