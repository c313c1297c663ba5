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

from toolkit.runtime.errors import PollardError
from toolkit.tasks.example import Message

# Around reasoning where no template says otherwise: models write these on their own, too
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
# One field, as different templates call it
REASONING = "reasoning_content"
REASONING_NAMES = (REASONING, "reasoning", "thinking")
QUESTION, THOUGHT, ANSWER = "Question?", "zqThoughtqz", "zqAnswerqz"


@dataclass(frozen=True)
class ChatFormat:
    """The texts around an answer; all of them empty where there is no template."""

    prefix: str = ""  # between the generation prompt and the answer
    suffix: str = ""  # behind the answer
    end: str = ""  # the mark of an answer's end; more may follow it (Phi's end of a turn, a line break, the end of the text)
    reasoning: tuple[tuple[str, str], ...] = REASONING_TAGS  # the tags that open and close a block of reasoning
    shows_reasoning: bool = False  # the template renders a message's reasoning_content
    opened: str = ""  # the block of reasoning that the generation prompt opens, as a tag
    unshared: str = ""  # the end of the generation prompt that a rendered answer does not continue
    special: tuple[str, ...] = ()  # special tokens, which are no part of an answer

    @property
    def closing(self) -> str:
        """The tag that ends a block of reasoning which the generation prompt has opened."""
        return dict(REASONING_TAGS)[self.opened] if self.opened else ""

    @property
    def before_answer(self) -> str:
        """The text between the generation prompt and an answer without reasoning."""
        return self.prefix or (f"\n{self.closing}\n\n" if self.opened else "")

    def behind_opening(self, text: str) -> str:
        """A text without the opening tag of reasoning that stands in the generation prompt already."""
        return text.lstrip()[len(self.opened) :] if self.opened and _starts(text, self.opened) else text

    @property
    def frame(self) -> str:
        """The prefix, or what of it follows the end of reasoning that the generation prompt has opened."""
        _, closed, frame = self.prefix.partition(self.closing) if self.opened else ("", "", "")
        return frame.lstrip("\n") if closed else self.prefix

    def answer_in(self, written: str) -> str:
        """The answer in a text as a model wrote it (special tokens included, its end token not): without the template's
        prefix and suffix, blocks of reasoning before it and special tokens. Empty where the text ends before the answer."""
        if len(written.strip()) > 1 and self.prefix.strip().startswith(written.strip()):  # half a prefix
            return ""
        frame = self.frame
        rest: str | None = _behind(written, self.closing) if self.opened else self._behind_unopened(written)
        while rest is not None:
            closing = next((close for open_, close in self.reasoning if _starts(rest, open_)), None)
            if closing is not None:
                ends = [closing, closing.removesuffix(self.prefix)]  # instead of an answer, a tool may be called
                rest = next((behind for end in ends if end and (behind := _behind(rest, end)) is not None), None)
            elif frame.strip() and _starts(rest, frame):
                rest = rest.lstrip()[len(frame.strip()) :].removeprefix(frame[len(frame.rstrip()) :])
            else:
                break
        if rest is None:
            return ""
        rest = rest.removeprefix(frame)
        if self.end:
            gap = self.suffix.partition(self.end)[0]
            rest = rest.partition(self.end)[0].removesuffix(gap)
        return self.without_special(rest)

    def _behind_unopened(self, text: str) -> str:
        """The text behind reasoning whose opening tag is missing (a server has removed it); the whole text without any."""
        for opening, closing in self.reasoning:
            before, _, rest = text.partition(closing.strip())
            ends_message = self.prefix.strip() and closing.endswith(self.prefix)
            if opening.strip() not in before and rest and (ends_message or rest.startswith("\n")):
                return rest.lstrip("\n")
        return text

    @property
    def marks(self) -> str:
        """All texts that may stand before an answer, joined: to look for special tokens in."""
        return self.prefix + "".join(opening + closing for opening, closing in self.reasoning)

    def without_special(self, text: str) -> str:
        for token in self.special:
            text = text.replace(token, "")
        return text


def _starts(text: str, opening: str) -> bool:
    return text.lstrip().startswith(opening.strip())


def _behind(text: str, closing: str) -> str | None:
    """The text behind the first `closing`, without the line breaks that follow it; None where it never comes."""
    _, closed, rest = text.partition(closing.strip())
    return rest.lstrip("\n") if closed else None


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning at the beginning of a text, without its tags, and the text behind it. The opening tag may be missing where
    the closing one ends a line: then it was in the prompt."""
    for opening, closing in REASONING_TAGS:
        before, closed, rest = text.partition(closing)
        if closed and (_starts(text, opening) or (opening not in before and rest.startswith("\n"))):
            return before.lstrip().removeprefix(opening).strip(), rest.lstrip("\n")
    return "", text


def unclosed_reasoning(text: str) -> str | None:
    """The tag of reasoning that a text begins and never ends; None without any."""
    return next((opening for opening, closing in REASONING_TAGS if _starts(text, opening) and closing not in text), None)


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
    opened = next((tag for tag, closing in REASONING_TAGS if prompt.rstrip().endswith(tag)), "")
    if opened and shared != prompt:  # <think> and </think> begin alike
        shared = shared[: prompt.rindex(opened)]
    unshared = prompt[len(shared) :]
    if unshared and not unshared.strip().startswith(opened or "\0"):  # the two have nothing to do with each other
        suffix = answered.partition(ANSWER)[2]
        end = _end_in(suffix, tokenizer)
        return ChatFormat(suffix=suffix, end=end, opened=opened, unshared=unshared, special=special)
    prefix, _, suffix = answered[len(shared) :].partition(ANSWER)
    if opened and _starts(prefix, opened):
        prefix = prefix.lstrip()[len(opened) :]
    shows = THOUGHT in reasoned and ANSWER in reasoned.partition(THOUGHT)[2]
    pairs: tuple[tuple[str, str], ...] = REASONING_TAGS
    before, _, behind = reasoned[len(shared) :].partition(THOUGHT)
    if shows and not opened and before.strip():
        pairs = ((before, behind.partition(ANSWER)[0]), *(pair for pair in pairs if pair[0] != before.strip()))
    return ChatFormat(prefix, suffix, _end_in(suffix, tokenizer), pairs, shows, opened, unshared, special)


def _end_in(suffix: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The first mark in a suffix: its first line, up to the end token."""
    first = suffix.strip().partition("\n")[0]
    return first.partition(str(tokenizer.eos_token))[0].strip() or first


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
    """The conversation as the chat template writes it. Raises PollardError where the template fails."""
    named = [_with_every_name(message) for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                named, tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as error:  # the template is a program of the model's makers: it may raise anything
        templates = tokenizer.chat_template
        if isinstance(templates, dict) and "default" not in templates:
            raise PollardError(
                f"The tokenizer has several chat templates ({', '.join(templates)}), none of them called `default`: write "
                "the one to use into chat_template.jinja in the model's folder, and remove the others from "
                "tokenizer_config.json.",
                code="chat-template.several",
            ) from None
        roles = ", ".join(str(message["role"]) for message in messages)
        what = str(error) if type(error).__module__.startswith("jinja2") else f"{type(error).__name__}: {error}"
        raise PollardError(
            f"The model's chat template refuses a conversation of {roles}: {what}", code="chat-template.refuses"
        ) from None


def _with_every_name(message: Message) -> Message:
    """Templates look for reasoning under different names."""
    return message | dict.fromkeys(REASONING_NAMES, message[REASONING]) if message.get(REASONING) else message
