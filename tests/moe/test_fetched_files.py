"""What is fetched of a hub repository: the model once, and what lies beside it. The hub is a folder here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import raises
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from toolkit.moe import model_files as hub
from toolkit.moe.load import checkpoint_folder, load_config
from toolkit.moe.model_files import IGNORED_FILES

BESIDE = [
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt",
    "chat_template.jinja", "additional_chat_templates/tools.jinja", "preprocessor_config.json", "modeling_my.py",
    "my_code/layers.py", "LICENSE", "README.md",
]  # fmt: skip
MODEL = [
    "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors",
]  # fmt: skip
TWICE = [
    "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "consolidated.safetensors.index.json",
    "consolidated.00.pth", "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors",
    "model-00001-of-00002.fp16.safetensors", "model.safetensors.index.fp16.json", "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack",
    "flax_model-00001-of-00002.msgpack", "flax_model.msgpack.index.json", "rust_model.ot", "onnx/model.onnx",
    "onnx/model.onnx_data", "onnx/model_quantized.onnx", "onnx/model.onnx_data_1", "openvino/openvino_model.xml",
    "openvino/openvino_model.bin", "coreml/model.mlpackage/Data/weights/weight.bin", "coreml/text/model.mlmodel",
    "model.tflite", "gguf/model-Q4_K_M.gguf", "model-Q4_K_M.gguf", "original/model.safetensors", "metal/model.bin",
    "fp8/model.safetensors", "checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "adapter_model.safetensors",
    "mlx/weights.safetensors",
]  # fmt: skip


def test_what_there_is_twice_is_not_fetched_and_what_a_model_needs_is() -> None:
    assert [*filter_repo_objects([*BESIDE, *MODEL, *TWICE], ignore_patterns=IGNORED_FILES)] == [*BESIDE, *MODEL]


COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a repository that is fetched already, some/model."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def make(files: dict[str, str]) -> Path:
        folder = tmp_path / "models--some--model" / "snapshots" / COMMIT
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        (tmp_path / "models--some--model" / "refs").mkdir()
        (tmp_path / "models--some--model" / "refs" / "main").write_text(COMMIT)
        return folder

    return make


FILES = ["deep/model-2.safetensors", "model-1.safetensors"]
INDEX = json.dumps({"metadata": {}, "weight_map": dict(zip("ab", FILES, strict=True))})


@pytest.mark.parametrize(
    ("config", "repository", "expected"),
    [
        ("{}", {"model.safetensors": "", "model.safetensors.index.json": INDEX}, ["model.safetensors"]),
        ("{}", {"model.safetensors.index.json": INDEX}, [*FILES, "model.safetensors.index.json"]),
        ('{"transformers_weights": "mine.safetensors"}', {"model.safetensors": "", "mine.safetensors": ""}, ["mine.safetensors"]),
        ("{}", {"pytorch_model.bin": "", "odd.safetensors": ""}, []),
    ],
)  # fmt: skip
def test_of_the_weights_those_are_fetched_that_transformers_reads(cache, monkeypatch, config, repository, expected) -> None:
    folder = cache({"config.json": config, **{name: text for name, text in repository.items() if name.endswith(".json")}})
    asked: list[str] = []
    options: dict[str, Any] = {}

    def cached_file(path: str, name: str, **given: Any) -> str | None:
        options.update(given)
        asked.extend([name] * (name in repository))
        return str(folder / name) if name in repository else None

    def get_checkpoint_shard_files(path: str, index: str, revision: str) -> None:
        asked.extend(json.loads(Path(index).read_text())["weight_map"].values())

    monkeypatch.setattr(hub, "cached_file", cached_file)
    monkeypatch.setattr(hub, "get_checkpoint_shard_files", get_checkpoint_shard_files)
    assert checkpoint_folder("some/model") == folder
    assert sorted(asked) == expected and options["revision"] == COMMIT  # whatever the branch points to by now


@pytest.mark.parametrize(
    "names", [["model.fp16.safetensors"], ["consolidated.safetensors", "params.json"], ["model-Q4_K_M.gguf"]]
)
def test_a_repository_without_a_model_that_transformers_reads_says_what_it_has(cache, monkeypatch, names: list[str]) -> None:
    cache({"config.json": "{}"})
    monkeypatch.setattr(hub, "cached_file", lambda *given, **options: None)
    monkeypatch.setattr(hub, "list_repo_files", lambda *given, **options: ["config.json", "tokenizer.json", *names])
    with raises("checkpoint.unread-weights", "some/model", f"({names[0]})"):
        checkpoint_folder("some/model")
    monkeypatch.setattr(hub, "list_repo_files", lambda *given, **options: ["pytorch_model.bin", *names])
    assert checkpoint_folder("some/model").name == COMMIT  # transformers fetches that itself


def test_an_adapter_of_the_hub_is_refused(cache) -> None:
    cache({"config.json": "{}", "adapter_config.json": "{}"})
    with raises("checkpoint.adapter", "some/model holds an adapter beside the model"):
        load_config("some/model")
