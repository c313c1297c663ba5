import pytest
from conftest import PLAYGROUND
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.errors import PollardError
from toolkit.tasks import Example, encode, encode_all, encode_prompt

EXAMPLE = Example(({"role": "user", "content": "Reverse: a b"},), "#### b a", "#### b a")
LONGER = Example(EXAMPLE.messages, "b comes first, then a. " * 5 + "#### b a", "#### b a")
# The two things chat templates do that ours does not: a turn that ends otherwise than the text, and white space after it
IM_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system messages, please') }}{% endif %}"
UNRELATED = "{% if add_generation_prompt %}Question{% else %}Conversation{% endif %}"


def tokenizer_with(template: str | None = "own") -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(PLAYGROUND / "model")
    if template != "own":
        tokenizer.chat_template = template
    return tokenizer


def text_of(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def test_the_chat_template_renders_the_prompt_where_there_is_one() -> None:
    tokenizer = tokenizer_with()
    assert text_of(tokenizer, encode_prompt(tokenizer, EXAMPLE)) == "<|user|>Reverse: a b<|assistant|>"
    assert text_of(tokenizer, encode(tokenizer, EXAMPLE).input_ids) == "<|user|>Reverse: a b<|assistant|>#### b a<|end|>"


def test_without_a_chat_template_the_prompt_stands_as_it_is() -> None:
    tokenizer = tokenizer_with(None)
    assert text_of(tokenizer, encode_prompt(tokenizer, EXAMPLE)) == "Reverse: a b\n"
    assert text_of(tokenizer, encode(tokenizer, EXAMPLE).input_ids) == "Reverse: a b\n#### b a<|end|>"


# What is trained must be what generation continues, token by token, however the text at the seam would merge.
@pytest.mark.parametrize("template", ["own", None, IM_TEMPLATE, UNRELATED])
@pytest.mark.parametrize("completion", ["#### b a", " b", "\nb", "  ", "1", "<|end|>b"])
def test_training_begins_with_exactly_the_prompt_of_generation(template: str | None, completion: str) -> None:
    tokenizer = tokenizer_with(template)
    example = Example(EXAMPLE.messages, completion, "b")
    prompt, encoded = encode_prompt(tokenizer, example), encode(tokenizer, example)
    assert encoded.input_ids[: encoded.prompt_length] == prompt
    assert encoded.completion_mask == [0] * len(prompt) + [1] * (len(encoded.input_ids) - len(prompt))


@pytest.mark.parametrize("template", ["own", None, IM_TEMPLATE, UNRELATED])
def test_the_completion_ends_with_eos_exactly_once(template: str | None) -> None:
    tokenizer = tokenizer_with(template)
    encoded = encode(tokenizer, EXAMPLE)
    completion = encoded.input_ids[encoded.prompt_length :]
    assert completion[-1] == tokenizer.eos_token_id and completion.count(tokenizer.eos_token_id) == 1
    assert text_of(tokenizer, completion).startswith("#### b a")


def test_the_templates_own_end_of_turn_is_learnt_before_eos() -> None:
    tokenizer = tokenizer_with(IM_TEMPLATE)
    encoded = encode(tokenizer, EXAMPLE)
    assert text_of(tokenizer, encoded.input_ids[encoded.prompt_length :]) == "#### b a<|im_end|><|end|>"


def test_a_conversation_the_template_refuses_is_explained() -> None:
    example = Example(({"role": "system", "content": "Be brief."}, *EXAMPLE.messages), "b", "b")
    with pytest.raises(PollardError, match="chat template refuses a conversation of system, user: No system messages, please"):
        encode_prompt(tokenizer_with(REFUSING), example)


# Half a solution teaches to stop half-way: longer examples are left out whole, and counted.
def test_too_long_examples_are_left_out_and_counted() -> None:
    tokenizer = tokenizer_with()
    short = encode(tokenizer, EXAMPLE)
    encoded, left_out = encode_all(tokenizer, [LONGER, EXAMPLE, LONGER], max_length=len(short.input_ids))
    assert encoded == [short] and left_out == 2


def test_where_no_example_fits_the_shortest_is_told() -> None:
    tokenizer = tokenizer_with()
    length = len(encode(tokenizer, EXAMPLE).input_ids)
    told = f"No example fits into max_length {length - 1}: the shortest has {length} tokens. Raise max_length."
    with pytest.raises(PollardError, match=told):
        encode_all(tokenizer, [LONGER, EXAMPLE], max_length=length - 1)
