"""Prompts, completions and batches: what a model is shown."""

import pytest
from conftest import PLAYGROUND, raises
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from toolkit.tasks import Encoded, Example, encode, encode_all, encode_prompt, encode_texts, padded_batches

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
    with raises("chat-template.refuses", "system, user", "No system messages, please"):
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
    with raises("task.too-long", f"max_length {length - 1}", f"{length} tokens"):
        encode_all(tokenizer, [LONGER, EXAMPLE], max_length=length - 1)


def with_word_marks() -> PreTrainedTokenizerBase:
    """As Llama 2's and Mixtral's: a mark is put before every text, and stands for every space."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"])
    tokenizer.train_from_iterator(["Which team?\n\nbilling shipping\n[INST] access [/INST]\n"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


# No mark of a word's beginning where there is none: the model has never seen one behind a new line.
@pytest.mark.parametrize("completion", ["billing", " billing", "\nbilling", "billing shipping"])
def test_the_completions_tokens_are_those_of_the_whole_text(completion: str) -> None:
    tokenizer = with_word_marks()
    example = Example(({"role": "user", "content": "Which team?"},), completion, completion)
    encoded = encode(tokenizer, example)
    assert encoded.input_ids[: encoded.prompt_length] == encode_prompt(tokenizer, example)
    whole = tokenizer(f"Which team?\n{completion}")["input_ids"]
    if completion != "\nbilling":  # where two new lines are one token, none of the prompt's tokens may be changed
        assert encoded.input_ids == [*whole, tokenizer.eos_token_id]
    written = tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.prompt_length :])
    assert "".join(written) == completion.replace(" ", "▁") + "</s>"


@pytest.mark.parametrize("completion", ["b a", "b a<|end|>", "<|end|>"])
def test_a_tokenizer_that_appends_its_end_token_ends_no_prompt_with_it(completion: str) -> None:
    tokenizer = tokenizer_with(None)
    plain, end = encode(tokenizer, EXAMPLE), int(tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", end)]
    )
    assert tokenizer("b a")["input_ids"][-1] == end
    assert encode(tokenizer, EXAMPLE) == plain
    example = Example(EXAMPLE.messages, completion, "b a")
    encoded = encode(tokenizer, example)
    assert (
        encoded.input_ids[: encoded.prompt_length] == encode_prompt(tokenizer, example) == plain.input_ids[: plain.prompt_length]
    )
    assert encoded.input_ids.count(end) == 1 and encoded.input_ids[-1] == end
    assert encode_texts(tokenizer, ["b a"], 99)[0].input_ids[-1] != end


def test_several_templates_without_a_default_are_named() -> None:
    tokenizer = tokenizer_with()
    tokenizer.chat_template = {"rag": IM_TEMPLATE, "tool_use": IM_TEMPLATE}
    with raises("chat-template.several", "rag, tool_use"):
        encode_prompt(tokenizer, EXAMPLE)


@pytest.mark.parametrize("template", ["{{ messages[7].content }}", "{{ undefined_here.x }}", "{% if %}", "{{ 1 // 0 }}"])
def test_whatever_a_template_raises_is_explained(template: str) -> None:
    with raises("chat-template.refuses", "user"):
        encode_prompt(tokenizer_with(template), EXAMPLE)


ENCODED = [Encoded([5, 6, 7], 2), Encoded([8, 9, 10, 11], 1), Encoded([12, 13], 0)]


def test_sequences_are_padded_on_the_right_and_padding_is_masked() -> None:
    (batch,) = padded_batches(ENCODED, batch_size=3, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 10, 11], [12, 13, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]]


# A token that looks like padding counts all the same: eos often pads.
def test_the_mask_follows_lengths_and_not_values() -> None:
    (batch,) = padded_batches([Encoded([5, 1], 1), Encoded([5, 6, 1], 1)], batch_size=2, pad_token_id=1)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_batches_keep_the_order_and_are_only_as_long_as_they_must() -> None:
    batches = padded_batches(ENCODED, batch_size=2, pad_token_id=0)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 4), (1, 2)]
    real = [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert real == [encoded.input_ids for encoded in ENCODED]


def test_no_sequences_make_no_batches() -> None:
    assert padded_batches([], batch_size=2, pad_token_id=0) == []
