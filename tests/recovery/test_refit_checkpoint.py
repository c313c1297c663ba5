"""Refit of checkpoints: streamed ≡ in memory, resumed ≡ undisturbed, two ranks ≡ one, written ≡ reloaded."""

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import raises
from drawn_plan import drawn_plan
from families import text_logits, tiny_family
from rank_launcher import RANKS, ranks
from refit_cases import drawn_batches
from safetensors.torch import load_file
from transformers import PreTrainedModel

from toolkit.cuts import apply_plan, prune_checkpoint
from toolkit.moe import load_model
from toolkit.recovery.refit import checkpoint, refit_checkpoint, refit_model
from toolkit.recovery.refit.layer_files import LayerFiles
from toolkit.runtime.signed_folders import foreign_files

Pair = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A family's model and its cut one, also as the folders `original` and `pruned`."""

    def make(family: str, dtype: torch.dtype = torch.float32, **cuts: object) -> tuple[PreTrainedModel, PreTrainedModel]:
        model = tiny_family(family, dtype)
        model.save_pretrained(tmp_path / "original")
        plan = drawn_plan(model, **(cuts or {"keep": 4}))  # type: ignore[arg-type]
        prune_checkpoint(tmp_path / "original", plan, tmp_path / "pruned")
        return model, apply_plan(copy.deepcopy(model), plan)

    return make


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v2", "flex_olmo", "cohere2_moe", "gemma4", "olmoe"])
def test_streamed_is_in_memory_and_stock_transformers_reads_it(family: str, tmp_path: Path, pair: Pair) -> None:
    model, cut = pair(family)
    before = weights_of(tmp_path / "pruned")
    streamed = refit_checkpoint(tmp_path / "original", tmp_path / "pruned", tmp_path / "refitted", drawn_batches())
    in_memory = refit_model(model, cut, drawn_batches())
    assert streamed.tokens == in_memory.tokens
    for one, other in zip(streamed.blocks, in_memory.blocks, strict=True):
        assert (one.module, one.weights, one.penalties) == (other.module, other.weights, other.penalties)
        assert one.error_after == pytest.approx(other.error_after, rel=1e-3)
    expected = text_logits(cut)
    assert (text_logits(load_model(str(tmp_path / "refitted"))) - expected).abs().max() <= 1e-4 * expected.abs().max()

    after = weights_of(tmp_path / "refitted")
    assert {name: tensor.shape for name, tensor in after.items()} == {name: tensor.shape for name, tensor in before.items()}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all("experts" in name or "down_proj" in name or "o_proj" in name for name in changed)
    assert not foreign_files(tmp_path / "refitted") and not [*tmp_path.glob("*.tmp")]
    assert not [*(tmp_path / "refitted").glob("layer-*")]


@pytest.mark.parametrize("finished", [0, 2])
def test_resumed_is_undisturbed(finished: int, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair("mixtral", layers=[0, 1, 3], keep=4)

    def refit(target: str) -> None:
        refit_checkpoint(tmp_path / "original", tmp_path / "pruned", tmp_path / target, drawn_batches(), [0, 1, 3])

    refit("undisturbed")
    saved: list[int] = []

    def save_or_die(self: LayerFiles, number: int, *rest: object) -> None:
        if len(saved) == finished:
            raise KeyboardInterrupt
        saved.append(number)
        undisturbed(self, number, *rest)  # type: ignore[arg-type]

    undisturbed = LayerFiles.save
    with monkeypatch.context() as patched:
        patched.setattr(LayerFiles, "save", save_or_die)
        with pytest.raises(KeyboardInterrupt):
            refit("resumed")
    assert not (tmp_path / "resumed").exists()
    solved: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(LayerFiles, "save", lambda self, number, *rest: (solved.append(number), undisturbed(self, number, *rest)))
        refit("resumed")
    assert len(solved) == 3 - finished  # finished layers are not solved again
    ours, theirs = weights_of(tmp_path / "resumed"), weights_of(tmp_path / "undisturbed")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_kill_while_the_checkpoint_is_written_is_gone_on_from(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair("mixtral")
    places = tmp_path / "original", tmp_path / "pruned", tmp_path / "refitted"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "check_opens", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            refit_checkpoint(*places, drawn_batches())
    assert not places[2].exists()
    refit_checkpoint(*places, drawn_batches())
    assert load_model(str(places[2])) is not None and not [*places[2].glob("stored-*")]


@pytest.mark.parametrize("answers", [False, True], ids=["other-tokens", "other-answers"])
def test_other_batches_begin_anew(answers: bool, tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair("mixtral")
    others = (
        [batch | {"completion_mask": batch["input_ids"] % 2} for batch in drawn_batches()] if answers else drawn_batches(seed=6)
    )
    places = tmp_path / "original", tmp_path / "pruned", tmp_path / "refitted"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            refit_checkpoint(*places, drawn_batches())
    refit_checkpoint(*places, others)
    refit_checkpoint(*places[:2], tmp_path / "new", others)
    ours, theirs = weights_of(places[2]), weights_of(tmp_path / "new")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.launcher
def test_two_ranks_are_one(tmp_path: Path, pair: Pair) -> None:
    pair("mixtral")
    torch.save(drawn_batches(), tmp_path / "batches.pt")
    places = [str(tmp_path / name) for name in ("original", "pruned", "two")]
    script = str(Path(__file__).with_name("refit_in_ranks.py"))
    done = subprocess.run(ranks(RANKS, script, *places), cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    refit_checkpoint(*places[:2], tmp_path / "one", drawn_batches())
    ours, theirs = text_logits(load_model(places[2])), text_logits(load_model(str(tmp_path / "one")))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_weights_are_rounded_to_the_checkpoints_dtype_before_they_are_judged(tmp_path: Path, pair: Pair) -> None:
    pair("mixtral", torch.bfloat16)
    result = refit_checkpoint(tmp_path / "original", tmp_path / "pruned", tmp_path / "refitted", drawn_batches())
    assert {tensor.dtype for tensor in weights_of(tmp_path / "refitted").values()} == {torch.bfloat16}
    again = refit_checkpoint(tmp_path / "original", tmp_path / "refitted", tmp_path / "again", drawn_batches())
    assert again.blocks[0].error_before == pytest.approx(result.blocks[0].error_after, rel=1e-3)


def test_a_checkpoint_whose_files_do_not_tell_is_loaded_whole(
    tmp_path: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair("mixtral")
    places = tmp_path / "original", tmp_path / "pruned"
    refit_checkpoint(*places, tmp_path / "streamed", drawn_batches())
    monkeypatch.setattr(checkpoint, "_why_whole", lambda folder: "a test says so")
    refit_checkpoint(*places, tmp_path / "whole", drawn_batches())
    assert "a test says so" in capsys.readouterr().out
    ours, theirs = (text_logits(load_model(str(tmp_path / name))) for name in ("streamed", "whole"))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_what_does_not_fit_together_is_refused(tmp_path: Path, pair: Pair) -> None:
    pair("mixtral", layers=[0, 1, 3])
    places, batches = (tmp_path / "original", tmp_path / "pruned"), drawn_batches(20)
    with raises("refit.other-model", 3, 4, "kept_layers"):
        refit_checkpoint(*places, tmp_path / "refitted", batches)
    for kept in ([0, 1], [3, 1, 0], [0, 1, 4]):
        with raises("refit.other-model"):
            refit_checkpoint(*places, tmp_path / "refitted", batches, kept)
    tiny_family("mixtral", vocab_size=80).save_pretrained(tmp_path / "other")
    with raises("refit.other-model", "vocab_size"):
        refit_checkpoint(tmp_path / "other", places[1], tmp_path / "refitted", batches, [0, 1, 3])
    for target, code in ((places[0], "replaces"), (places[1], "replaces"), (places[1] / "inside", "inside")):
        with raises(f"prune.{code}-original"):
            refit_checkpoint(*places, target, batches, [0, 1, 3])
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "letter.txt").write_text("dear")
    with raises("folders.foreign", "letter.txt"):
        refit_checkpoint(*places, tmp_path / "somebodys", batches, [0, 1, 3], overwrite=True)
    config = json.loads((places[1] / "config.json").read_text())
    (places[1] / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with raises("refit.quantized", "fp8"):
        refit_checkpoint(*places, tmp_path / "refitted", batches, [0, 1, 3])
    assert not (tmp_path / "refitted").exists()
