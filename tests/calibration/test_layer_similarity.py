"""Laws of the layers' similarities: a plain loop over the hidden states finds them; so do other batches, ranks, ways to run."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from conftest import raises, tiny_model
from families import tiny_family
from test_calibrate import batches_of
from transformers import PreTrainedModel

from toolkit.calibration import CalibrationSource, layer_similarity
from toolkit.calibration.layer_similarity import layer_similarities
from toolkit.cuts.layer_similarities import LayerSimilarities
from toolkit.moe import StreamedModel
from toolkit.runtime.distributed import shard

LENGTHS = [24, 9, 17, 12, 30]
PROMPT = 5


def model_of(layers: int = 4, family: str = "mixtral", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    return tiny_model(family, dtype, num_hidden_layers=layers)


def similarities(model: PreTrainedModel | StreamedModel, batch_size: int = 2, lengths: list[int] = LENGTHS) -> LayerSimilarities:
    return layer_similarities(model, [CalibrationSource("", batches_of(lengths, batch_size, PROMPT))])


def assert_same(one: LayerSimilarities, other: LayerSimilarities, tolerance: float = 1e-9) -> None:
    for tokens in ("all", "prompt", "completion"):
        torch.testing.assert_close(one.mean_cosine(tokens), other.mean_cosine(tokens), rtol=0, atol=tolerance)
        torch.testing.assert_close(one.mean_angle(tokens), other.mean_angle(tokens), rtol=0, atol=tolerance)


@torch.no_grad()
def hidden_states(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """h_0 … h_L [S, H] of one sequence. transformers' list has the last one after the norm, so that is caught before it."""
    before_norm = []
    hook = model.model.norm.register_forward_pre_hook(lambda norm, args: before_norm.append(args[0]))
    try:
        states = model(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    finally:
        hook.remove()
    return [state[0] for state in (*states[:-1], before_norm[0])]


def cosine(u: torch.Tensor, v: torch.Tensor) -> float:
    return float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "gpt_oss"])
@pytest.mark.parametrize(("tokens", "first", "last"), [("all", 0, None), ("prompt", 0, PROMPT), ("completion", PROMPT, None)])
def test_every_gap_as_a_plain_loop_over_the_hidden_states_finds_it(family: str, tokens, first: int, last: int | None) -> None:
    changes = {"layer_types": ["full_attention"] * 4} if family == "gpt_oss" else {}
    model = tiny_model(family, torch.float64, num_hidden_layers=4, **changes)
    found = similarities(model)
    sequences = [batch["input_ids"][0] for batch in batches_of(LENGTHS, 1)]
    states = [hidden_states(model, sequence) for sequence in sequences]
    count = sum(len(sequence[first:last]) for sequence in sequences)
    for gap in range(1, 5):
        for layer in range(5 - gap):
            pairs = [pair for h in states for pair in zip(h[layer][first:last], h[layer + gap][first:last], strict=True)]
            angle = sum(math.acos(cosine(u, v)) / math.pi for u, v in pairs) / count
            assert float(found.mean_angle(tokens)[layer, layer + gap]) == pytest.approx(angle, abs=1e-9), (layer, gap)
            if gap == 1:
                mean = sum(cosine(u, v) for u, v in pairs) / count
                assert float(found.mean_cosine(tokens)[layer]) == pytest.approx(mean, abs=1e-9)


def test_padding_and_the_size_of_batches_change_nothing() -> None:
    model = model_of()
    assert_same(similarities(model, batch_size=5), similarities(model, batch_size=1))


def test_layer_by_layer_from_the_files_is_as_loaded_however_often_they_are_read(tmp_path: Path, monkeypatch) -> None:
    model = model_of(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = similarities(model)
    assert_same(similarities(StreamedModel(str(tmp_path))), loaded, 1e-6)
    read = []
    layer = StreamedModel.layer
    monkeypatch.setattr(StreamedModel, "layer", lambda self, *numbers: read.append(numbers[0]) or layer(self, *numbers))
    monkeypatch.setattr(layer_similarity, "STATE_BYTES", 1)  # a group for each of the three batches
    assert_same(similarities(StreamedModel(str(tmp_path))), loaded, 1e-6)
    assert read == [0, 1, 2, 3] * 3


def test_sources_of_a_mix_count_by_their_weight_and_not_by_their_length() -> None:
    model = model_of()
    one, other = similarities(model, lengths=[20]), similarities(model, lengths=[30, 30, 30])
    sources = [
        CalibrationSource("a", batches_of([20], 1, PROMPT), 3.0),
        CalibrationSource("b", batches_of([30] * 3, 1, PROMPT), 1.0),
    ]
    mixed = layer_similarities(model, sources)
    torch.testing.assert_close(mixed.mean_angle(), 0.75 * one.mean_angle() + 0.25 * other.mean_angle(), rtol=0, atol=1e-9)
    torch.testing.assert_close(mixed.mean_cosine(), 0.75 * one.mean_cosine() + 0.25 * other.mean_cosine(), rtol=0, atol=1e-9)


def test_a_source_without_a_prompt_leaves_its_share_to_the_others() -> None:
    model = model_of()
    text = [{key: value for key, value in batch.items() if key != "completion_mask"} for batch in batches_of([30], 1)]
    mixed = layer_similarities(model, [CalibrationSource("a", batches_of([20], 1, PROMPT)), CalibrationSource("text", text, 5.0)])
    torch.testing.assert_close(mixed.mean_angle("prompt"), similarities(model, lengths=[20]).mean_angle("prompt"))
    alone = layer_similarities(model, [CalibrationSource("text", text)])
    with raises("statistics.no-such-tokens", "prompt"):
        alone.mean_cosine("prompt")


@pytest.mark.parametrize("family", ["deepseek_v4", "gemma4", "glm5_next", "inkling", "nemotron_h", "qwen4_exp", "zaya"])
def test_families_that_hand_on_tuples_and_several_residual_streams(family: str) -> None:
    model = tiny_family(family, torch.float32)
    found = similarities(model)
    off_diagonal = ~torch.eye(found.layers + 1, dtype=torch.bool)
    assert bool((found.mean_angle()[off_diagonal] > 0).all()) and bool((found.mean_angle() < 1).all())


def test_the_file_is_read_where_it_was_made_from_the_same(tmp_path: Path) -> None:
    found = similarities(model_of())
    path = tmp_path / "similarities.safetensors"
    assert LayerSimilarities.load(path, "a") is None
    found.save(path, "a")
    loaded = LayerSimilarities.load(path, "a")
    assert loaded and loaded.sources[0].tokens == found.sources[0].tokens
    assert_same(loaded, found, 0)
    assert LayerSimilarities.load(path, "b") is None
    path.write_bytes(path.read_bytes()[:-8])
    assert LayerSimilarities.load(path, "a") is None


def test_no_tokens_and_states_that_overflow_are_errors() -> None:
    with raises("calibration.no-tokens"):
        layer_similarities(model_of(2), [CalibrationSource("", [])])
    model = model_of(2)
    model.model.layers[1].mlp.experts.down_proj.data.fill_(torch.inf)
    with raises("calibration.not-finite", "model.dtype=float32"):
        similarities(model)


def _compare_on(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    batches = shard(batches_of(LENGTHS, 2, PROMPT))
    layer_similarities(model_of(), [CalibrationSource("", batches)]).save(Path(folder) / f"rank{rank}", "")
    torch.distributed.destroy_process_group()


@pytest.mark.launcher
def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    mp.spawn(_compare_on, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        found = LayerSimilarities.load(tmp_path / f"rank{rank}", "")
        assert found
        assert_same(found, similarities(model_of()), 1e-12)
