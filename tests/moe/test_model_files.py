"""One folder is one model: whoever reads, counts, compares or copies weights reads those that transformers reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import plan_for, raises, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from toolkit.cli.benchmark_models import models_to_measure
from toolkit.cuts.checkpoint import prune_checkpoint, tensor_shapes
from toolkit.moe import StreamedModel, check_loaded, checkpoint_bytes, checkpoint_files, load_config, load_model
from toolkit.moe.model_files import INDEX, SINGLE, report_unread_weights
from toolkit.moe.tensor_files import stored_tensors

KEPT = [0, 3, 5, 6]
EMBEDDINGS = "model.embed_tokens.weight"


def read_as(path: Path, factor: float) -> dict[str, torch.Tensor]:
    return {name: tensor * factor for name, tensor in load_file(path / SINGLE).items()}


def shards(folder: Path, tensors: dict[str, torch.Tensor], name: str = INDEX, count: int = 2) -> None:
    """A model in several files, and their index."""
    names, where = sorted(tensors), {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number::count]
        save_file({key: tensors[key] for key in mine}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(mine, file)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def single_beside_an_index(folder: Path) -> None:
    shards(folder, read_as(folder, 0.5))


def stale_shards(folder: Path) -> None:
    """An earlier save left more files than this one overwrote, and a single one of another format."""
    shards(folder, read_as(folder, 0.5), "old.index.json", 3)
    shards(folder, read_as(folder, 1.0))
    (folder / SINGLE).rename(folder / "consolidated.safetensors")


def variant(folder: Path) -> None:
    save_file(read_as(folder, 0.5), folder / "model.fp16.safetensors", {"format": "pt"})


def torch_files(folder: Path) -> None:
    torch.save(read_as(folder, 0.5), folder / "pytorch_model.bin")


def named_by_config(folder: Path) -> None:
    save_file(read_as(folder, 1.0), folder / "mine.safetensors", {"format": "pt"})
    save_file(read_as(folder, 0.5), folder / SINGLE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))


def tensors_that_the_index_does_not_name(folder: Path) -> None:
    shards(folder, read_as(folder, 1.0))
    (folder / SINGLE).unlink()
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][EMBEDDINGS]
    (folder / INDEX).write_text(json.dumps(index))


SITUATIONS = [
    single_beside_an_index, stale_shards, variant, torch_files, named_by_config, tensors_that_the_index_does_not_name,
]  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_everyone_reads_the_weights_that_transformers_reads(situation: Callable[[Path], None], tmp_path: Path, capsys) -> None:
    folder, path = tmp_path / "original", str(tmp_path / "original")
    model = tiny_model("mixtral")
    model.save_pretrained(folder)
    situation(folder)
    expected = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(expected.get_input_embeddings().weight, model.get_input_embeddings().weight)  # factor 1.0

    loaded = load_model(path)
    check_loaded(loaded, path)
    streamed = StreamedModel(path).model.get_input_embeddings().weight
    prune_checkpoint(folder, plan_for(expected, KEPT), tmp_path / "pruned")
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    for found in (loaded.get_input_embeddings().weight, streamed, pruned.get_input_embeddings().weight):
        assert torch.equal(found, expected.get_input_embeddings().weight)
    size = sum(parameter.nbytes for parameter in expected.parameters())
    assert size <= checkpoint_bytes(path) < size + 10_000
    assert len(tensor_shapes(path)) == len(stored_tensors(folder)) == 65
    assert not models_to_measure([path], {}, "auto")[0].size.random

    left = sorted(file.name for file in (tmp_path / "pruned").iterdir())
    assert left == ["config.json", "generation_config.json", SINGLE, "pollard.json"]
    unread = checkpoint_files(folder).unread
    assert capsys.readouterr().out.count("as transformers reads it; not read: " + ", ".join(unread)) == bool(unread)


def test_the_order_is_that_of_transformers(tmp_path: Path) -> None:
    files = [SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json"]
    for name in files:
        (tmp_path / name).write_text('{"weight_map": {"a": "x-1.safetensors", "b": "x-0.safetensors", "c": "x-0.safetensors"}}')
    for name in files:
        found = checkpoint_files(tmp_path)
        names = ["x-0.safetensors", "x-1.safetensors"] if name.endswith("json") else [name]
        assert [file.name for file in found.weights] == names
        assert found.index_file == (tmp_path / name if name.endswith("json") else None)
        assert found.safetensors == (name != "pytorch_model.bin")
        (tmp_path / name).unlink()
    assert checkpoint_files(tmp_path).weights == ()


def test_a_trainings_state_is_no_other_model(tmp_path: Path) -> None:
    for name in (SINGLE, "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "model.gguf"):
        (tmp_path / name).write_text("")
    assert checkpoint_files(tmp_path).unread == ("model.gguf",)


@pytest.mark.parametrize(
    "names", [["model.fp16.safetensors"], ["consolidated.safetensors"], ["model-00001-of-00002.safetensors"], ["model.gguf"]]
)
def test_weights_under_no_name_that_is_looked_for_say_what_to_do(tiny_checkpoint, names: list[str]) -> None:
    folder = tiny_checkpoint()
    (folder / SINGLE).rename(folder / names[0])
    for opened in (load_model, StreamedModel, report_unread_weights):
        with raises("checkpoint.unread-weights", f"({names[0]})"):
            opened(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", ("checkpoint.damaged-index", "index.json")),
        ("[]", ("checkpoint.damaged-index", "index.json")),
        ('{"weight_map": ["a"]}', ("checkpoint.damaged-index", "index.json")),
        ('{"weight_map": {"a": 1}}', ("checkpoint.damaged-index", "index.json")),
        ("[" * 100_000, ("checkpoint.damaged-index", "index.json")),
    ],
)
def test_an_index_that_is_none_is_told(tmp_path: Path, content: str, message: tuple[str, ...]) -> None:
    (tmp_path / INDEX).write_text(content)
    with raises(*message):
        checkpoint_files(tmp_path)


def test_a_tensor_in_two_files_that_the_index_gives_to_the_earlier_is_told(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({"a": torch.full((2,), number), f"b{number}": torch.ones(1)}, tmp_path / f"{number}.safetensors")
    where = {"a": "1.safetensors", "b1": "1.safetensors", "b2": "2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}))
    with raises("checkpoint.misleading-index", "1.safetensors", "2.safetensors"):
        stored_tensors(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where | {"a": "2.safetensors"}}))
    assert stored_tensors(tmp_path)["a"].file.name == "2.safetensors"


def test_parts_of_a_distributed_save_and_a_name_that_is_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_text("")
    (tmp_path / "config.json").write_text('{"transformers_weights": "mine.safetensors"}')
    with raises("checkpoint.named-weights-missing", "`transformers_weights`", "mine.safetensors"):
        checkpoint_files(tmp_path)
    (tmp_path / "shard-00001-model-00001-of-00002.safetensors").write_text("")
    with raises("checkpoint.saved-in-parts", "shard-00001"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin", None])
def test_an_adapter_beside_a_model_is_refused_by_everything_that_opens_it(tiny_checkpoint, tmp_path: Path, weights) -> None:
    folder = tiny_checkpoint()
    plan = plan_for(tiny_model("mixtral"), KEPT)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    if weights:
        (folder / weights).write_text("")
    for opened in (
        load_config, load_model, StreamedModel, checkpoint_bytes, lambda path: prune_checkpoint(path, plan, tmp_path / "pruned"),
    ):  # fmt: skip
        with raises("checkpoint.adapter", "holds an adapter beside the model", "Merge it", "move adapter_config.json"):
            opened(str(folder))
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("config", ['{"base_model_name_or_path": "some/base"}', "{", "[]"])
def test_an_adapter_alone_is_no_model(tmp_path: Path, config: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    of = " of some/base" if "some" in config else ""
    with raises("checkpoint.adapter", f"is an adapter{of}, no model"):
        load_config(str(tmp_path))
