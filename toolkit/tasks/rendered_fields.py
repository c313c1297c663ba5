"""Which fields of a conversation the chat template shows. Every field is tried: rendered without it, or with another text in
its place, the conversation must read differently.

Templates drop much without a word: tool calls, names, reasoning, system messages. What carries the content of an example is
refused where it would be lost, all else is counted.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError, first_of
from toolkit.tasks.chat_format import REASONING, split_reasoning
from toolkit.tasks.example import Example, Message
from toolkit.tasks.prompts import completion_text, format_of, prompt_text, without_end_texts
from toolkit.tasks.scorer import quoted

OTHER_TEXT = "zqOtherqz"
CONTENT = ("content", "tool_calls")  # of any message; tools and the reasoning of the answer are content, too


Shape = tuple[object, ...]  # of a conversation: its roles and fields


class LostField(NamedTuple):
    name: str
    is_content: bool


def check_rendering(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[str]:
    """Counted lines, for people, about fields that the model does not see, or sees changed.

    Raises PollardError, with their lines, for conversations that the chat template refuses, and for those whose content it
    leaves out.
    """
    lost_by_shape: dict[Shape, list[LostField]] = {}
    refused, left_out, refused_code = [], [], ""
    lost, cut = Counter[str](), 0
    changed: list[tuple[str, str]] = []  # completions, and what the tokenizer makes of them
    for example in examples:
        try:
            shape = _shape(example)
            cut_texts = list(_cut_texts(tokenizer, example))
            if shape not in lost_by_shape:
                lost_by_shape[shape] = list(dict.fromkeys(_lost_fields(tokenizer, example)))
            fields = lost_by_shape[shape] or cut_texts
            cut += _loses_end_texts(tokenizer, example)
            completion = completion_text(tokenizer, example)
        except PollardError as error:
            refused.append(str(error))
            refused_code = error.code
            continue
        if content := [field.name for field in fields if field.is_content]:
            left_out.append(f"{example.where}: the model's chat template leaves out {' and '.join(content)}.")
        written = str(tokenizer.decode(tokenizer(completion, add_special_tokens=False)["input_ids"]))
        if _bare(written) != _bare(completion):
            changed.append((completion, written))
        lost.update({field.name for field in fields if not field.is_content})
    if left_out:
        left_out.append(
            "A model cannot learn from what it is not shown: say it in the text of a message, take another model, or give this "
            "one a template that shows it (chat_template.jinja in its folder)."
        )
    if refused or left_out:
        code = "chat-template.leaves-out" if left_out else refused_code
        raise PollardError(
            "\n".join([first_of(refused), first_of(left_out[:-1]), *left_out[-1:]]).strip("\n"),
            code=code,
        )
    notes = [f"{number:,} of {len(examples):,} examples: the chat template does not show {name}" for name, number in lost.items()]
    if cut:
        notes.append(f"{cut:,} of {len(examples):,} completions hold the text of an end token, where an answer ends: taken off")
    if changed:
        notes.append(
            f"{len(changed):,} of {len(examples):,} completions cannot be written by the tokenizer as they are, the first "
            f"becomes {quoted(changed[0][1])} instead of {quoted(changed[0][0])}: no answer can be the same text"
        )
    return notes


def _loses_end_texts(tokenizer: PreTrainedTokenizerBase, example: Example) -> bool:
    kept = without_end_texts(tokenizer, example)
    if not kept.completion.strip() and not kept.reply.get("tool_calls"):
        raise PollardError(
            f"{example.where}: the completion is nothing but the text of an end token, where an answer ends.",
            code="data.no-completion",
        )
    return kept != example


def _shape(example: Example) -> Shape:
    """Conversations of the same roles and fields are rendered alike."""
    turns = [*example.messages, example.answer]
    fields = [tuple(sorted((key, _several(value)) for key, value in turn.items() if value)) for turn in turns]
    return tuple(turn["role"] for turn in turns), tuple(fields), bool(example.tools), example.plain


def _several(value: Any) -> bool:
    """Whether a value is a list of several items: of some, templates write the first alone."""
    return isinstance(value, list) and len(value) > 1


def _lost_fields(tokenizer: PreTrainedTokenizerBase, example: Example) -> Iterator[LostField]:
    """Fields of the example that change neither its prompt nor its completion."""
    example = replace(example, shots=())
    before = _read(tokenizer, example)
    if example.tools and _read(tokenizer, replace(example, tools=())) == before:
        yield LostField("its tools", True)
    for number, message in enumerate(example.messages):
        for field, other in _variants(message):
            messages = (*example.messages[:number], other, *example.messages[number + 1 :])
            if _read(tokenizer, replace(example, messages=messages)) == before:
                yield LostField(f"`{field}` of the {message['role']}", field.partition("[")[0] in CONTENT)
    for field, other in _variants(example.answer):
        reply = {key: value for key, value in other.items() if key not in ("role", "content")}
        if _read(tokenizer, replace(example, completion=other["content"], reply=reply)) == before:
            yield LostField(f"`{field}` of the answer", field.partition("[")[0] in (*CONTENT, REASONING))


def _cut_texts(tokenizer: PreTrainedTokenizerBase, example: Example) -> Iterator[LostField]:
    """Texts of which a template writes only a part: some cut out what looks like reasoning, wherever it stands."""
    prompt, written = prompt_text(tokenizer, example), completion_text(tokenizer, example)
    for message in example.messages:
        written_as_json = message["role"] in ("tool", "ipython")
        if not written_as_json and _bare(message["content"]) not in _bare(prompt):
            yield LostField(f"all of the text of the {message['role']}", False)
    form = format_of(tokenizer, example)
    thought, text = split_reasoning(without_end_texts(tokenizer, example).completion)
    if _bare(thought) not in _bare(written) or _bare(form.without_special(text)) not in _bare(form.answer_in(written)):
        yield LostField("a part of the text of the answer", True)


def _bare(text: str) -> str:
    """Templates trim texts, and some tokenizers compose accents."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _variants(message: Message) -> Iterator[tuple[str, Message]]:
    """The message without one of its fields, or with another text."""
    for field, value in message.items():
        if field == "content" and value:
            yield field, message | {"content": OTHER_TEXT}
        elif field not in ("role", "content") and value:
            yield field, {key: inner for key, inner in message.items() if key != field}
            if _several(value):
                yield f"{field}[1:]", message | {field: value[:1]}


def _read(tokenizer: PreTrainedTokenizerBase, example: Example) -> str | None:
    """The whole conversation as rendered; None where the template refuses it, which it does because of what was changed."""
    try:
        return prompt_text(tokenizer, example) + completion_text(tokenizer, example)
    except PollardError:
        return None
