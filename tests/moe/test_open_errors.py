"""Whatever a library raises while it opens somebody's files is explained; what is our own stays a bug."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import raises
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.cli.exit_status import BUG
from toolkit.moe import load_config, load_model, load_tokenizer, meta_model
from toolkit.moe.open_errors import explained
from toolkit.runtime.errors import PollardError

Break = Callable[[Path], Any]


def edited(name: str, **keys: Any) -> Break:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | keys))

    return change


def written(name: str, text: str | bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def removed(*names: str) -> Break:
    return lambda folder: [path.unlink() for name in names for path in folder.glob(name)]


def newer_tokenizer(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["type"] = "BPE2"
    (folder / "tokenizer.json").write_text(json.dumps(content))


def in_files(index: str) -> Break:
    def change(folder: Path) -> None:
        removed("model.safetensors")(folder)
        (folder / "model.safetensors.index.json").write_text(index)

    return change


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
TOKENIZER = [
    (newer_tokenizer, r"cannot be read by the installed tokenizers [\d.]+: it is damaged, or was written by a newer version"),
    (written("tokenizer.json", "{"), r"tokenizer\.json is no valid JSON \(.*line 1 column 2"),
    (written("tokenizer.json", LFS), r"tokenizer\.json is no valid JSON"),
    (written("tokenizer.json", "{}"), "cannot be read by the installed tokenizers"),
    (written("tokenizer_config.json", "[]"), r"tokenizer_config\.json is JSON, but no object"),
    (written("tokenizer_config.json", "{,}"), r"tokenizer_config\.json is no valid JSON"),
    (written("special_tokens_map.json", "{"), r"special_tokens_map\.json is no valid JSON"),
    (edited("tokenizer_config.json", eos_token=5), r"tokenizer_config\.json has a wrong value under eos_token"),
    (removed("*token*"), r"it has no tokenizer \(tokenizer\.json\)"),
    (removed("tokenizer.json"), r"needs (sentencepiece|tiktoken), which is not installed: pip install"),
    (written("chat_template.jinja", "one\n{% if %}"), r"chat template of .* \(chat_template\.jinja, line 2\) is no valid Jinja"),
    (written("chat_template.jinja", "{{ x | nope }}"), r"chat_template\.jinja, line 1\) is no valid Jinja: No filter named"),
]
CONFIGURATION = [
    (written("config.json", "{"), r"config\.json is no valid JSON"),
    (written("config.json", b"\xff\xfe"), r"config\.json is no valid JSON"),
    (written("config.json", "[" * 100_000), r"config\.json is no valid JSON \(maximum recursion depth"),
    (written("config.json", "[]"), r"config\.json is JSON, but no object"),
    (edited("config.json", model_type=None), r"config\.json has no `model_type`"),
    (
        edited("config.json", hidden_size="many"),
        r"describes no model that the installed transformers [\d.]+ can build, at hidden_size",
    ),
    (edited("config.json", hidden_act="nope"), r"describes no model(.|\n)*KeyError: 'nope'"),
    (edited("config.json", dtype="bfloat17"), r"describes no model(.|\n)*bfloat17"),
    (removed("config.json"), r"it has no config\.json"),
]
BY_CONFIGURATION = [  # what opens a tokenizer reads it first
    (edited("config.json", max_position_embeddings=None), r"config\.json describes no model .* at max_position_embeddings"),
    (edited("config.json", dtype="float17"), r"config\.json describes no model"),
]


def broken_beside(folder: Path) -> None:
    """The model is whole; another file, which nobody reads, and a shard that is not there."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors", {"format": "pt"})
    (folder / "a.safetensors").write_text(LFS)
    files = dict.fromkeys(tensors, "model-00001-of-00002.safetensors") | {"lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


WEIGHTS = [
    (broken_beside, r"Cannot read .*model-00002-of-00002\.safetensors: No such file"),
    (written("model.safetensors", LFS), r"model\.safetensors is no whole safetensors file"),
    (lambda f: written("model.safetensors", (f / "model.safetensors").read_bytes()[:-9])(f), r"model\.safetensors is cut off"),
    (removed("model.safetensors"), r"it has no weights \(\*\.safetensors\)"),
    (in_files("{"), r"index\.json is damaged \(JSONDecodeError"),
    (in_files("{}"), r"index\.json is damaged \(KeyError\('weight_map'\)\)"),
    (
        edited("config.json", vocab_size=700),
        r"\.weight is \[768, 32\] in the files, .* describes \[700, 32\] \(vocab_size: 700\)",
    ),
    (
        edited("config.json", intermediate_size=8),
        r"is \[8, 32, 16\] in the files, .* describes \[8, 32, 8\] \(intermediate_size: 8",
    ),
    (edited("config.json", hidden_size=64), r"in the files, and the configuration describes .*more tensors do not fit"),
    (written("generation_config.json", "{"), r"generation_config\.json is no valid JSON"),
    (written("generation_config.json", "[]"), r"generation_config\.json is JSON, but no object"),
    (edited("generation_config.json", eos_token_id="</s>"), r"eos_token_id is '</s>', and must be a token's number"),
]


def parts(cases: list, load: Callable[[str], Any]) -> list:
    return [(broken, load, told) for broken, told in cases]


@pytest.mark.parametrize(
    ("broken", "load", "told"),
    [
        *parts(TOKENIZER, load_tokenizer),
        *parts(BY_CONFIGURATION, load_tokenizer),
        *parts(CONFIGURATION, lambda path: meta_model(load_config(path))),
        *parts(WEIGHTS, load_model),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(broken: Break, load: Callable, told: str, tiny_checkpoint: Callable) -> None:
    folder = tiny_checkpoint()
    broken(folder)
    with pytest.raises(PollardError, match=told):
        load(str(folder))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), ("model.does-not-open", "The memory (RAM) does not hold it")),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            ("model.does-not-open", "The memory (RAM) does not"),
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), ("model.does-not-open", "It does not fit in the GPU's memory")),
    ],
)
def test_full_memory_is_told_as_such(error: Exception, told: tuple[str, ...], tiny_checkpoint: Callable) -> None:
    def load() -> None:
        raise error

    with raises(*told) as found:
        explained(load, str(tiny_checkpoint()), "weights")
    assert "damaged" not in str(found.value) and "complete" not in str(found.value)


@pytest.mark.parametrize("error", [Exception(""), KeyError("key"), SafetensorError("x"), RecursionError(), ImportError("no y")])
@pytest.mark.parametrize("part", ["files", "configuration", "tokenizer", "weights", "generation settings"])
def test_every_foreign_exception_is_explained(error: Exception, part: Any, tiny_checkpoint: Callable) -> None:
    def load() -> None:
        raise error

    for path in (str(tiny_checkpoint()), "somebody/model"):
        with raises("model.does-not-open", path, type(error).__name__):
            explained(load, path, part)


def test_interruptions_and_own_errors_pass() -> None:
    for error in (KeyboardInterrupt(), PollardError("ours"), SystemExit(1)):

        def load(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as found:
            explained(load, "here")
        assert found.value is error


def test_a_bug_of_ours_is_still_one(tiny_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.modules["toolkit.cuts.model_summary"], "sizes", lambda model: 1 / 0)
    monkeypatch.setattr("sys.argv", ["pollard", "inspect", str(tiny_checkpoint())])
    assert cli.main() == BUG and "This is a bug" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["inspect"], ["generate", "{}", "Why?"], ["benchmark"], ["chat"]])
def test_every_verb_explains(verb: list[str], tiny_checkpoint: Callable, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folder = tiny_checkpoint()
    written("config.json", "[" * 100_000)(folder)
    words = [word.format(folder) for word in verb] if len(verb) > 1 else [*verb, str(folder)]
    monkeypatch.setattr("sys.argv", ["pollard", *words])
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    status, out = cli.main(), capsys.readouterr().out
    assert status == 1 and "This is a bug" not in out
    if verb != ["chat"]:  # which takes runs
        assert "config.json is no valid JSON" in out.replace("\n", " ")
