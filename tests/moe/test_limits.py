"""How many tokens a model reads: by its configuration, whatever its family calls that, and by how far its positions reach."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from toolkit.moe import meta_model
from toolkit.moe.tokenizer import context_length, embedding_rows, longer_than_context
from toolkit.runtime.errors import PollardError

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
    with pytest.raises(PollardError, match=r"pad_token_id is 768, and the model's embedding has 768 rows"):
        meta_model(config)
