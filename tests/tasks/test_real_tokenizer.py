"""What only a real tokenizer shows, with that of SmolLM2-135M-Instruct: 49,152 tokens of bytes and merges, a chat template with a
system prompt of its own, a beginning of a turn as its first token, and one token that ends turns and pads.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from smollm import write_smollm_tokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from toolkit.evaluation import evaluate
from toolkit.evaluation.answers import read_answer
from toolkit.moe import load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.recovery.recover import _row
from toolkit.tasks import Example, Task, encode, encode_all, encode_prompt, gold_of, padded_batches

DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEXTS = (
    "72",
    " leading space",
    "two\n\nlines  and two spaces",
    "def f(x):\n\treturn x ** 2",
    "naïve café – 東京 – 🙂",
    "#### 1,234.50",
    "<b>&amp;</b> [INST] <think>",
    "x" * 300,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("smollm")
    write_smollm_tokenizer(folder)
    return load_tokenizer(str(folder))


def example_of(completion: str, system: str | None = None) -> Example:
    user = {"role": "user", "content": "How many?"}
    return Example(({"role": "system", "content": system}, user) if system else (user,), completion, completion)


def test_the_templates_own_system_prompt_stands_there_once_and_gives_way_to_the_users(tokenizer: Any) -> None:
    own = tokenizer.decode(encode_prompt(tokenizer, example_of("72")))
    assert own.count("<|im_start|>system") == 1 and DEFAULT_SYSTEM in own and own.endswith("<|im_start|>assistant\n")
    users = tokenizer.decode(encode_prompt(tokenizer, example_of("72", "You route tickets.")))
    assert users.count("<|im_start|>system\nYou route tickets.<|im_end|>") == 1 and DEFAULT_SYSTEM not in users


def test_no_token_is_added_to_what_the_template_writes(tokenizer: Any) -> None:
    """Its first token is that of a turn's beginning, too."""
    prompt = encode_prompt(tokenizer, example_of("72"))
    assert prompt.count(tokenizer.bos_token_id) == 3  # system, user, assistant


# Byte-level merges reach over line breaks and spaces: what is trained must still be what generation continues.
@pytest.mark.parametrize("text", TEXTS)
def test_the_gold_answer_is_read_back_from_its_own_tokens(tokenizer: Any, text: str) -> None:
    example = example_of(text)
    encoded, prompt = encode(tokenizer, example), encode_prompt(tokenizer, example)
    written = encoded.input_ids[encoded.prompt_length :]
    assert encoded.input_ids[: encoded.prompt_length] == prompt
    assert written[-1] == tokenizer.eos_token_id and written.count(tokenizer.eos_token_id) == 1
    answer = read_answer(tokenizer, written, [tokenizer.eos_token_id], (), len(written) + 1)
    assert answer.text == gold_of(tokenizer, example) == text and answer.ended


def test_the_end_is_learnt_although_it_is_what_pads(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = [encode(tokenizer, example_of(text)) for text in ("72", "a longer answer of some words")]
    batch = padded_batches(encoded, 2, tokenizer.pad_token_id)[0]
    for row, one in enumerate(encoded):
        learnt = batch["input_ids"][row][batch["completion_mask"][row].bool()].tolist()
        assert learnt == one.input_ids[one.prompt_length :] and learnt[-1] == tokenizer.eos_token_id
        assert int(batch["attention_mask"][row].sum()) == len(one.input_ids)


def test_the_trainers_batches_have_the_end_as_a_label_and_padding_as_none(tokenizer: Any) -> None:
    encoded = [encode(tokenizer, example_of(text)) for text in ("72", "a longer answer of some words")]
    collator = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    labels = collator([_row(one) for one in encoded])["labels"]
    for row, one in zip(labels, encoded, strict=True):
        assert row[row != -100].tolist() == one.input_ids[one.prompt_length :]


def test_what_is_too_long_is_counted_and_left_out_whole(tokenizer: Any) -> None:
    examples = [example_of("72"), example_of("word " * 200), example_of("no")]
    fitting, longer = encode_all(tokenizer, examples, 64)
    assert longer == 1 and [len(one.input_ids) <= 64 for one in fitting] == [True, True]
    assert all(one.input_ids[-1] == tokenizer.eos_token_id for one in fitting)


def test_an_answer_that_never_ends_is_counted_as_one_and_one_that_ends_is_not(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"q": "How many?", "a": "72"}\n{"q": "Why?", "a": "no"}\n')
    task = Task(TaskRecipe(train=str(file), test=str(file), prompt="{q}", completion="{a}", scorer="exact"))
    model = tiny_model("mixtral", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    writes = [int(tokenizer("a")["input_ids"][0])]

    def only(module: Any, given: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(logits).index_fill_(-1, torch.tensor(writes), 1)

    model.lm_head.register_forward_hook(only)
    endless = evaluate(model, tokenizer, task, batch_size=2, max_new_tokens=8)
    assert [(item.prediction, item.tokens, item.ended) for item in endless.items] == [("aaaaaaaa", 8, False)] * 2
    writes[:] = [tokenizer.eos_token_id]
    silent = evaluate(model, tokenizer, task, batch_size=2, max_new_tokens=8)
    assert [(item.prediction, item.tokens, item.ended) for item in silent.items] == [("", 1, True)] * 2
