"""Whether examples fit a model: lengths against its context, token ids against its embedding."""

from collections.abc import Iterator

import pytest
from conftest import PLAYGROUND, raises
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolkit.tasks.token_checks import check_vocabulary, context_fit, vocabulary_size


def test_what_is_too_long_itself_is_not_counted_again_for_its_answer() -> None:
    assert context_fit([5, 8, 10, 11, 30], 10) == (5, 2, 0)
    assert context_fit([5, 8, 10, 11, 30], 10, new_tokens=2) == (5, 2, 1)
    assert context_fit([5, 8, 10, 11, 30], 10, new_tokens=100) == (5, 2, 3)
    assert context_fit([], 10, new_tokens=2) == (0, 0, 0)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """768 tokens and two added ones: numbers 768 and 769."""
    found = AutoTokenizer.from_pretrained(PLAYGROUND / "model")
    found.add_tokens(["<|sql|>", "<|tool|>"])
    return found


def test_added_tokens_count(tokenizer: PreTrainedTokenizerBase) -> None:
    assert vocabulary_size(tokenizer) == 770


def test_where_every_token_has_an_embedding_the_data_is_not_even_read(tokenizer: PreTrainedTokenizerBase) -> None:
    def data() -> Iterator[tuple[str, list[int]]]:
        raise AssertionError("read")
        yield "", []

    for rows in (770, 1024):  # published models round up
        assert check_vocabulary(tokenizer, rows, data(), "model") is None


def test_tokens_that_the_data_never_uses_are_told_and_not_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    note = check_vocabulary(tokenizer, 768, [("a.jsonl, line 1", [0, 767])], "model")
    assert note and "770 tokens" in note and "768 rows" in note and "none of those" in note


@pytest.mark.parametrize(("rows", "count"), [(768, 2), (769, 1)])
def test_tokens_that_the_data_uses_are_refused_with_both_numbers_and_the_place(
    tokenizer: PreTrainedTokenizerBase, rows: int, count: int
) -> None:
    data = [("a.jsonl, line 1", [5, 768]), ("a.jsonl, line 2", [768, 769, 769])]
    with raises("tokenizer.beyond-vocabulary") as error:
        check_vocabulary(tokenizer, rows, data, "some/model")
    told = str(error.value)
    assert "some/model has 770 tokens" in told and f"has {rows} rows" in told and f"uses {count} of those" in told
    assert "'<|tool|>' (number 769) in a.jsonl, line 2" in told and "resize_token_embeddings(770)" in told
    assert ("'<|sql|>' (number 768) in a.jsonl, line 1" in told) == (rows == 768)
