"""How many tokens a model reads: by its configuration, whatever its family calls that, and by how far its positions reach."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PLAYGROUND, raises
from transformers import AutoConfig

from toolkit.moe import load_tokenizer, meta_model, tokenizer
from toolkit.moe.tokenizer import context_length, embedding_rows, longer_than_context
from toolkit.tasks import Example, encode


@pytest.fixture
def without_end(tiny_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A checkpoint whose tokenizer names no end token; what else does, and which others it has (None: no such key)."""
    monkeypatch.setattr(tokenizer, "_reported", set())

    def make(
        generation: int | Sequence[int] | None = None, config: int | Sequence[int] | None = None, nested: bool = False
    ) -> Path:
        folder = tiny_checkpoint()
        for name, key, value in [
            ("tokenizer_config.json", "eos_token", None),
            ("tokenizer_config.json", "pad_token", None),
            ("generation_config.json", "eos_token_id", generation),
            ("config.json", "eos_token_id", None if nested else config),
        ]:
            content = json.loads((folder / name).read_text())
            content.pop(key, None)
            (folder / name).write_text(json.dumps(content | ({} if value is None else {key: value})))
        if nested:
            content = json.loads((folder / "config.json").read_text()) | {"text_config": {"eos_token_id": config}}
            (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.mark.parametrize(
    ("generation", "config", "nested", "file"),
    [(1, None, False, "generation_config.json"), ([1, 2], 3, False, "generation_config.json"), (None, 1, False, "config.json"),
     (None, [1], True, "config.json"), (99_999, 1, False, "config.json"), ([900, 1], None, False, "generation_config.json")],
)  # fmt: skip
def test_the_models_end_token_serves_where_the_tokenizer_names_none(
    generation: object, config: object, nested: bool, file: str, without_end: Callable, capsys: pytest.CaptureFixture
) -> None:
    folder = without_end(generation, config, nested)
    found, stock = load_tokenizer(str(folder)), load_tokenizer(str(PLAYGROUND / "model"))
    assert (found.eos_token, found.eos_token_id, found.pad_token_id, len(found)) == ("<|end|>", 1, 1, len(stock))
    ids = stock("What is 1 + 1?<|end|>")["input_ids"]
    assert found("What is 1 + 1?<|end|>")["input_ids"] == ids
    assert found.decode(ids, skip_special_tokens=True) == stock.decode(ids, skip_special_tokens=True)
    example = Example(({"role": "user", "content": "What?"},), "This.", "This.")
    assert encode(found, example) == encode(stock, example)
    load_tokenizer(str(folder))
    out = capsys.readouterr().out.replace("\n", " ")
    assert out.count("names no end token") == 1 and f"<|end|>, which {file} names, is used" in out


def test_of_several_end_tokens_the_one_that_the_template_writes_is_taken(without_end: Callable) -> None:
    assert load_tokenizer(str(without_end([7, 1]))).eos_token == "<|end|>"


# A family has numbers of its own where its configuration says nothing: they are not this model's.
@pytest.mark.parametrize("config", [None, 99_999, [-1]])
def test_without_any_end_token_it_is_told(config: object, without_end: Callable) -> None:
    with raises("tokenizer.no-end-token", "768 tokens", '"eos_token": "</s>"'):
        load_tokenizer(str(without_end(None, config)))


NO_TOKENIZER_LIMIT = SimpleNamespace(model_max_length=10**30)


@pytest.mark.parametrize(
    ("family", "keys", "tokens", "key"),
    [
        ("mixtral", {"max_position_embeddings": 512}, 512, "max_position_embeddings"),
        ("gpt2", {"n_positions": 256}, 256, "n_positions"),
        ("dbrx", {"max_seq_len": 333}, 333, "max_seq_len"),
        ("qwen3_vl_moe", {"text_config": {"max_position_embeddings": 777}}, 777, "max_position_embeddings"),
        ("mpt", {"max_seq_len": 2048, "attn_config": {"alibi": False}}, 2048, "max_seq_len"),
    ],
)
def test_every_family_names_its_context_in_its_own_way(family: str, keys: dict, tokens: int, key: str) -> None:
    found = context_length(AutoConfig.for_model(family, **keys))
    assert found == (tokens, key)
    assert str(found) == f"the model's context of {tokens:,} tokens ({key})"


@pytest.mark.parametrize(
    ("family", "keys"), [("mamba", {}), ("bloom", {}), ("mpt", {"attn_config": {"alibi": True}}), ("falcon", {"alibi": True})]
)
def test_models_without_positions_have_no_limit_unless_the_tokenizer_names_one(family: str, keys: dict) -> None:
    config = AutoConfig.for_model(family, **keys)
    assert context_length(config) is None and context_length(config, NO_TOKENIZER_LIMIT) is None  # type: ignore[arg-type]
    found = context_length(config, SimpleNamespace(model_max_length=1024))  # type: ignore[arg-type]
    assert found == (1024, "the tokenizer's model_max_length")


# Tokenizers of models with a long context often still say what an earlier one had.
def test_the_configuration_counts_more_than_the_tokenizer() -> None:
    config = AutoConfig.for_model("mixtral", max_position_embeddings=4096)
    assert context_length(config, SimpleNamespace(model_max_length=512)).tokens == 4096  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({"rope_type": "default"}, 1000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}, 4000),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}, 1000),  # scaled already
        ({"rope_type": "linear", "factor": 2.0}, 2000),
        ({"rope_type": "dynamic", "factor": 8.0}, 8000),
    ],
)
def test_scaled_rotary_embeddings_reach_as_far_as_they_say(rope: dict, tokens: int) -> None:
    parameters = {"rope_theta": 10000.0, **rope}
    config = AutoConfig.for_model("mixtral", max_position_embeddings=1000, rope_parameters=parameters)
    assert context_length(config).tokens == tokens  # type: ignore[union-attr]


def test_a_sliding_window_is_no_limit() -> None:
    config = AutoConfig.for_model("mixtral", max_position_embeddings=1000, sliding_window=64)
    assert context_length(config).tokens == 1000  # type: ignore[union-attr]


def test_texts_beyond_the_context_are_counted() -> None:
    config = AutoConfig.for_model("mixtral", max_position_embeddings=10)
    assert longer_than_context(config, NO_TOKENIZER_LIMIT, [9, 10, 11, 500]) == 2  # type: ignore[arg-type]
    assert longer_than_context(AutoConfig.for_model("mamba"), NO_TOKENIZER_LIMIT, [10**6]) == 0  # type: ignore[arg-type]


def test_the_rows_of_the_embedding_are_those_of_the_language_model() -> None:
    assert embedding_rows(AutoConfig.for_model("qwen3_vl_moe", text_config={"vocab_size": 321})) == 321


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_a_padding_token_without_an_embedding_is_told_with_both_numbers(family: str) -> None:
    config = AutoConfig.for_model(family, num_hidden_layers=1, vocab_size=768, pad_token_id=768)
    with raises("model.pad-token-without-embedding", "pad_token_id", "768"):
        meta_model(config)
