"""Laws: a layer read ahead is the layer; at most two are there; what goes wrong arrives where the layer is asked for."""

import threading
from pathlib import Path

import pytest
import torch
from conftest import raises, tiny_model
from safetensors.torch import load_file, save_file

from toolkit.calibration import calibrate
from toolkit.moe import StreamedModel, load_model
from toolkit.moe.read_ahead import ReadAhead


def streamed(folder: Path, family: str = "mixtral", layers: int = 4) -> StreamedModel:
    changes = {} if layers == 2 else {"num_hidden_layers": layers}
    tiny_model(family, **changes).save_pretrained(folder)
    return StreamedModel(str(folder))


def layers_there(model: StreamedModel) -> list[int]:
    return [number for number, layer in enumerate(model.layers) if not next(layer.parameters()).is_meta]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, ReadAhead)]


def test_a_layer_that_was_read_ahead_is_the_same_and_there_are_never_three(family: str, tmp_path: Path) -> None:
    count = 4 if family == "mixtral" else 2
    model = streamed(tmp_path, family, count)
    whole = load_model(str(tmp_path)).base_model.layers
    for number in range(count):
        with model.layer(number, number + 1 if number + 1 < count else None) as layer:
            expected = whole[number].state_dict()
            assert layer.state_dict().keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())
            assert set(layers_there(model)) <= {number, number + 1}
        assert layers_there(model) == ([number + 1] if number + 1 < count else [])
    assert not readers()


def test_the_next_layer_is_read_while_this_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, load, read = streamed(tmp_path), StreamedModel._load_layer, threading.Event()

    def loading(self: StreamedModel, number: int) -> None:
        load(self, number)
        if number == 1:
            assert threading.current_thread() is not threading.main_thread()
            read.set()

    monkeypatch.setattr(StreamedModel, "_load_layer", loading)
    with model.layer(0, 1):
        assert read.wait(60)  # this one is still at work


def test_another_layer_than_the_one_read_ahead_may_be_asked_for(tmp_path: Path) -> None:
    model = streamed(tmp_path)
    with model.layer(0, model.layers[1]):
        pass
    with model.layer(3):
        assert layers_there(model) == [3]
    assert layers_there(model) == []


def test_a_damaged_layer_is_told_where_it_is_asked_for_and_not_before(tmp_path: Path) -> None:
    model, name = streamed(tmp_path), "model.layers.1.self_attn.q_proj.weight"
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name][:-1].clone()}, file, {"format": "pt"})
    model, ran = StreamedModel(str(tmp_path)), []
    with model.layer(0, 1):
        ran.append(0)
    with raises("checkpoint.shape-mismatch", name, "[31, 32]", "[32, 32]"), model.layer(1, 2):
        ran.append(1)
    assert ran == [0] and not readers() and 2 not in layers_there(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_no_reader_and_no_layer_behind(tmp_path: Path, error: type[BaseException]) -> None:
    model = streamed(tmp_path)
    with pytest.raises(error), model.layer(0, 1):
        raise error
    assert not readers() and layers_there(model) == []
    with model.layer(1) as layer:  # and it can be walked again
        assert not next(layer.parameters()).is_meta


def test_calibration_reads_every_layer_once_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, load, numbers = streamed(tmp_path), StreamedModel._load_layer, []
    monkeypatch.setattr(StreamedModel, "_load_layer", lambda self, number: (numbers.append(number), load(self, number))[1])
    ids = torch.randint(3, 62, (2, 9), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    found, expected = calibrate(model, batches), calibrate(load_model(str(tmp_path)), batches)
    assert numbers == [0, 1, 2, 3]
    assert found.vectors.keys() == expected.vectors.keys()
    assert all(torch.equal(found.vectors[name], expected.vectors[name]) for name in expected.vectors)
