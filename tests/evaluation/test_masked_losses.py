"""The losses of masked plans: streamed ≡ loaded ≡ cut, in one pass over the files, on any number of ranks."""

import copy
import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, plan_for, raises, tiny_model
from drawn_plan import drawn_plan
from families import KEPT_LAYERS, LAYER_CHANGES, tiny_family
from rank_launcher import RANKS, ranks
from safetensors.torch import load_file, save_file
from small_run import small_recipe
from transformers import PreTrainedModel

from toolkit.cuts import DenseBlock, ExpertsCut, LayersCut, Plan, apply_plan, merged_model
from toolkit.evaluation import Loss, completion_loss, masked_losses
from toolkit.moe import ForwardPass, StreamedModel, activation_offload, expert_width, load_model
from toolkit.moe.placement import with_layers
from toolkit.tasks import Encoded, padded_batches

# What each has that others have not
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {},  # shared experts behind a gate
    "gpt_oss": {},  # biases, sliding windows
    "deepseek_v2": {"first_k_dense_replace": 1},
    "gemma4": {"final_logit_softcapping": 20.0, **LAYER_CHANGES["gemma4"]},  # tied embeddings
    "granitemoe": {"logits_scaling": 0.1, "tie_word_embeddings": True},
    "mimo_v2_flash": {},  # layers of two kinds of attention
}


def batches() -> list[dict[str, torch.Tensor]]:
    """Three batches of two sequences; some tokens are prompt, some padding."""
    draw = torch.Generator().manual_seed(4)
    rows = [Encoded(torch.randint(3, 60, (length,), generator=draw).tolist(), 5) for length in (24, 9, 17, 12, 30, 8)]
    return padded_batches(rows, 2, 0)


def plans_of(model: PreTrainedModel, layers: list[int]) -> list[Plan | None]:
    """The original, and each cut alone and all together."""
    width = expert_width(model) // 2
    choices = (drawn_plan(model, 4), drawn_plan(model, None, width), drawn_plan(model, layers=layers))
    return [None, *choices, drawn_plan(model, 4, width, layers, seed=1)]


@pytest.fixture
def mixtral(tmp_path: Path) -> PreTrainedModel:
    model = tiny_model("mixtral", num_hidden_layers=4)
    model.save_pretrained(tmp_path / "model")
    return model


class Reads(Counter[str]):
    """How often each layer and the head were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        layer, head = StreamedModel.layer, StreamedModel.head

        @contextmanager
        def counted(model: StreamedModel, which: Any) -> Iterator[Any]:
            self[f"layer {which}"] += 1
            with layer(model, which) as found:
                yield found

        @contextmanager
        def counted_head(model: StreamedModel) -> Iterator[Any]:
            self["head"] += 1
            with head(model) as found:
                yield found

        monkeypatch.setattr(StreamedModel, "layer", counted)
        monkeypatch.setattr(StreamedModel, "head", counted_head)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.mark.parametrize("family", CASES)
def test_streamed_is_loaded_is_cut(family: str, tmp_path: Path, reads: Reads) -> None:
    model = tiny_family(family, **CASES[family])
    model.get_output_embeddings().weight.data.mul_(10)  # a model that is sure of itself: losses differ
    model.save_pretrained(tmp_path)
    plans = plans_of(model, KEPT_LAYERS.get(family, [0, 2, 3]))
    known: dict[int, Loss] = {}
    streamed = masked_losses(StreamedModel(str(tmp_path)), plans, batches(), known.__setitem__)
    assert reads == {"layer 0": 1, "layer 1": 1, "layer 2": 1, "layer 3": 1, "head": 1}
    assert list(known.items()) == list(enumerate(streamed))
    loaded = masked_losses(load_model(str(tmp_path)), plans, batches())
    cut = [completion_loss(apply_plan(copy.deepcopy(model), plan) if plan else model, batches()) for plan in plans]
    for mine, whole, sliced in zip(streamed, loaded, cut, strict=True):
        assert mine.tokens == whole.tokens == sliced.tokens == 24 + 9 + 17 + 12 + 30 + 8 - 6 * 5
        assert mine.mean == pytest.approx(whole.mean, rel=1e-5) and mine.mean == pytest.approx(sliced.mean, rel=1e-5)
    means = sorted(loss.mean for loss in streamed)
    assert all(after > before * (1 + 1e-4) for before, after in pairwise(means)), means  # or masks would prove nothing


def test_a_layer_that_no_plan_keeps_is_not_read_and_the_model_stays_as_it_was(mixtral: Any, tmp_path: Path, reads: Reads) -> None:
    model = StreamedModel(str(tmp_path / "model"))
    before, names = model.model.config.to_dict(), [name for name, _ in model.model.named_modules()]
    plans = [drawn_plan(mixtral, layers=[0, 3]), drawn_plan(mixtral, 4, layers=[0, 1])]
    found = masked_losses(model, plans, batches())
    assert reads == {"layer 0": 1, "layer 1": 1, "layer 3": 1, "head": 1}
    assert found == [pytest.approx(loss) for loss in masked_losses(mixtral, plans, batches())]
    assert model.model.config.to_dict() == before and [name for name, _ in model.model.named_modules()] == names
    assert all(parameter.is_meta for parameter in [*model.layers.parameters(), *model.model.lm_head.parameters()])
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.model.modules())
    assert found == masked_losses(model, plans, batches())


def test_fewer_active_experts_are_a_plan_too(mixtral: PreTrainedModel, tmp_path: Path) -> None:
    plan = plan_for(mixtral, list(range(8))).model_copy(update={"experts_per_token": 1})
    first, second = masked_losses(StreamedModel(str(tmp_path / "model")), [None, plan], batches())
    assert second == pytest.approx(completion_loss(apply_plan(mixtral, plan), batches())) and abs(first.mean - second.mean) > 1e-4


def test_blocks_may_keep_different_numbers_of_experts(mixtral: PreTrainedModel, tmp_path: Path) -> None:
    even = plan_for(mixtral, [0, 2, 3, 5])
    kept = {name: list(range(2 + number)) for number, name in enumerate(even.blocks)}
    cut = ExpertsCut(criterion="by hand", keep=4, experts=dict.fromkeys(kept, 8), kept=kept, allocation="measured")
    plans = [even, even.model_copy(update={"cuts": [cut]})]
    streamed = masked_losses(StreamedModel(str(tmp_path / "model")), plans, batches())
    assert streamed == [pytest.approx(loss) for loss in masked_losses(mixtral, plans, batches())]
    assert abs(streamed[0].mean - streamed[1].mean) > 1e-4


def test_a_dense_model_has_a_loss_as_well(mixtral: PreTrainedModel, tmp_path: Path) -> None:
    blocks = {name: DenseBlock(coefficients=[0.1] * 8) for name in plan_for(mixtral, [0]).blocks}
    dense = merged_model(mixtral, blocks)
    dense.save_pretrained(tmp_path / "dense")
    assert masked_losses(StreamedModel(str(tmp_path / "dense")), [None], batches()) == [completion_loss(dense, batches())]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_a_plan_in_the_dense_form_is_measured_in_it(family: str, tmp_path: Path) -> None:
    model = tiny_family(family)
    model.save_pretrained(tmp_path)
    plan = drawn_plan(model, 4, layers=[0, 2, 3])
    dense = {name: DenseBlock(coefficients=[0.2, 0.3, 0.4, 0.5], shared=0.7) for name in plan.blocks}
    plans = [plan, plan.model_copy(update={"form": "dense", "dense": dense})]
    streamed, loaded = (masked_losses(m, plans, batches()) for m in (StreamedModel(str(tmp_path)), model))
    layers = plan.cut(LayersCut)
    renumbered = {str(layers.rename(name, name)): block for name, block in dense.items()} if layers else {}
    expected = completion_loss(merged_model(apply_plan(model, plan), renumbered), batches())
    for losses in (streamed, loaded):
        assert losses[1].mean == pytest.approx(expected.mean, rel=1e-5) and abs(losses[0].mean - expected.mean) > 1e-4


def test_without_memory_one_plan_after_the_other_waits_on_disk(
    mixtral: Any, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(activation_offload, "MEMORY_SHARE", 0)
    plans = plans_of(mixtral, [0, 2, 3])
    losses = masked_losses(StreamedModel(str(tmp_path / "model")), plans, batches())
    assert losses == [pytest.approx(loss) for loss in masked_losses(mixtral, plans, batches())]
    assert (reads["layer 0"], reads["layer 1"], reads["head"]) == (5, 3, 5)
    out = capsys.readouterr().out
    assert "the checkpoint is read 5 times" in out and "wait on disk" in out


# What waits is counted in bytes: batches of [2, 24], [2, 17] and [2, 30] tokens, 32 numbers wide, in float32.
def test_groups_are_as_large_as_memory_allows(
    mixtral: Any, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(activation_offload.ActivationOffload, "capacity", lambda self, needed: asked.append(needed) or 3)
    plans, known = plans_of(mixtral, [0, 2, 3]), []
    losses = masked_losses(StreamedModel(str(tmp_path / "model")), plans, batches(), lambda number, loss: known.append(number))
    assert losses == [pytest.approx(loss) for loss in masked_losses(mixtral, plans, batches())]
    assert reads["layer 0"] == reads["head"] == 2 and known == [0, 1, 2, 3, 4]
    states = 2 * (24 + 17 + 30) * 32 * 4
    assert states <= asked[0] < 5 * states  # and masks and positions, which are small where hidden states are wide


def test_what_does_not_fit_is_told_before_anything_is_read(mixtral: Any, tmp_path: Path, reads: Reads) -> None:
    other = drawn_plan(tiny_model("mixtral", num_hidden_layers=5), 4)
    model = StreamedModel(str(tmp_path / "model"))
    known: list[int] = []
    for each in (mixtral, model):
        with raises("plan.other-model", "model.layers.4.mlp"):
            masked_losses(each, [None, other], batches(), lambda number, loss: known.append(number))
    assert not known
    file = tmp_path / "model" / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if key != "lm_head.weight"}, file, {"format": "pt"})
    with raises("checkpoint.tensors-missing", "lm_head.weight"):
        masked_losses(StreamedModel(str(tmp_path / "model")), [None], batches())
    assert not reads
    assert masked_losses(model, [], batches()) == masked_losses(mixtral, [], batches()) == []


def test_an_error_inside_leaves_neither_masks_nor_threads(mixtral: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plans = StreamedModel(str(tmp_path / "model")), plans_of(mixtral, [0, 2, 3])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stop"):
        patch.setattr(ForwardPass, "take_output", lambda self: (_ for _ in ()).throw(RuntimeError("stop")))
        masked_losses(model, plans, batches())
    assert not any(isinstance(thread, ForwardPass) for thread in threading.enumerate())
    assert len(model.model.model.layers) == 4
    assert masked_losses(model, plans, batches()) == [pytest.approx(loss) for loss in masked_losses(mixtral, plans, batches())]


@pytest.mark.parametrize("streamable", [True, False], ids=["layer by layer", "whole"])
def test_it_takes_what_with_layers_hands_over(streamable: bool, mixtral: Any, tmp_path: Path) -> None:
    folder, plans, kinds = tmp_path / "model", plans_of(mixtral, [0, 2, 3]), []
    if not streamable:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    def measure(model: Any) -> list[Loss]:
        kinds.append(isinstance(model, StreamedModel))
        return masked_losses(model, plans, batches())

    found = with_layers(small_recipe(model=str(folder)), str(folder), None, measure, why_whole="routers are masked")
    assert kinds == [streamable]
    assert found == [pytest.approx(loss) for loss in masked_losses(mixtral, plans, batches())]


SCRIPT = """
import json, sys
sys.path[:0] = ["tests/evaluation", "tests"]
import test_masked_losses as here
from toolkit.moe import StreamedModel, load_model
from toolkit.runtime import distributed
distributed.start()
found = []
for number, model in enumerate((StreamedModel(sys.argv[-1]), load_model(sys.argv[-1]))):
    plans = here.plans_of(load_model(sys.argv[-1]), [0, 2, 3])
    found += [here.masked_losses(model, plans, here.batches()[:count]) for count in (3, 1)]
everyone = distributed.gather(found)
assert everyone[0] == everyone[1]
if distributed.is_main():
    print("FOUND", json.dumps(found))
distributed.stop()
"""


@pytest.mark.launcher
def test_two_ranks_measure_what_one_does(mixtral: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(SCRIPT)
    command = ranks(RANKS, str(tmp_path / "losses.py"), str(tmp_path / "model"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    for streamed, loaded, count in zip(found[:2], found[2:], (3, 1), strict=True):  # of one batch, a rank has none
        one = [list(loss) for loss in masked_losses(mixtral, plans_of(mixtral, [0, 2, 3]), batches()[:count])]
        assert streamed == [pytest.approx(loss) for loss in one] and loaded == [pytest.approx(loss) for loss in one]
