import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import PLAYGROUND

from toolkit.moe import load_tokenizer, tokenizer
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Example, encode


@pytest.fixture
def without_end(tiny_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A checkpoint whose tokenizer names no end token; what else does, and which others it has (None: no such key)."""
    monkeypatch.setattr(tokenizer, "_told", set())

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
    with pytest.raises(PollardError, match=r"has no end token(.|\n)*768 tokens(.|\n)*\"eos_token\": \"</s>\""):
        load_tokenizer(str(without_end(None, config)))
