"""Laws of fidelity: of a model with itself it is perfect; by hand it is the same; neither ranks nor batches decide it."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import plan_for, raises, tiny_model
from transformers import PreTrainedModel

from toolkit.cuts.apply import apply_plan, masked
from toolkit.evaluation import Fidelity, fidelity, measure_fidelity, write_reference
from toolkit.tasks import Encoded, padded_batches

KEPT = [0, 2, 5, 7]


def sure_model(seed: int = 0) -> PreTrainedModel:
    """Its distributions are as uneven as those of a trained model: some entries are in the rest."""
    model = tiny_model("mixtral", vocab_size=300, seed=seed)
    model.lm_head.weight.data *= 6
    return model


def examples() -> list[Encoded]:
    """Of every length; the last is plain text, where the first token has nothing before it to predict it."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, 300, (6 + i % 5,), generator=draw).tolist() for i in range(9)]
    return [Encoded(tokens, 0 if i == 8 else 2 + i % 3) for i, tokens in enumerate(ids)]


def batches(size: int = 4) -> list[dict[str, torch.Tensor]]:
    return padded_batches(examples(), size, 0)


def measured(model: PreTrainedModel, folder: Path, size: int = 4) -> Fidelity:
    write_reference(sure_model(), batches(size), folder, "fingerprint")
    return measure_fidelity(model, batches(size), folder, "fingerprint")


@torch.no_grad()
def by_hand(original: PreTrainedModel, model: PreTrainedModel) -> tuple[list[float], list[float], list[int]]:
    """Per example the sums of KL and acceptance over its completion tokens, one unpadded example at a time, over the whole
    vocabulary, in float64."""
    kl, acceptance, tokens = [], [], []
    for e in examples():
        first = max(e.prompt_length, 1)
        p, q = (m(torch.tensor([e.input_ids])).logits[0, first - 1 : -1].double().softmax(-1) for m in (original, model))
        kl.append((p * (p / q).log()).sum().item())
        acceptance.append(torch.minimum(p, q).sum().item())
        tokens.append(len(p))
    return kl, acceptance, tokens


def test_a_model_is_perfectly_like_itself(tmp_path: Path) -> None:
    found = measured(sure_model(), tmp_path / "kept")
    assert found.kl == pytest.approx(0, abs=1e-7) and found.acceptance == pytest.approx(1, abs=1e-6)
    assert found.kl_error == pytest.approx(0, abs=1e-7) and found.examples == 9


@pytest.mark.parametrize("size", [1, 4, 9])
def test_it_is_what_a_plain_loop_over_whole_distributions_finds(tmp_path: Path, size: int) -> None:
    other = sure_model(seed=1)
    kl, acceptance, tokens = by_hand(sure_model(), other)
    found = measured(other, tmp_path / "kept", size)
    assert found.tokens == sum(tokens)
    assert found.kl == pytest.approx(sum(kl) / sum(tokens), abs=1e-4) and found.kl > 0.1
    assert found.acceptance == pytest.approx(sum(acceptance) / sum(tokens), abs=1e-5)


# As one draws other examples, the mean moves by so much: the jackknife over examples says about the same.
def test_the_standard_error_counts_examples_not_tokens(tmp_path: Path) -> None:
    other = sure_model(seed=1)
    kl, _, tokens = by_hand(sure_model(), other)
    without = [(sum(kl) - k) / (sum(tokens) - t) for k, t in zip(kl, tokens, strict=True)]
    middle = sum(without) / len(without)
    jackknife = math.sqrt((len(kl) - 1) / len(kl) * sum((w - middle) ** 2 for w in without))
    assert measured(other, tmp_path / "kept").kl_error == pytest.approx(jackknife, rel=0.15)


def test_a_masked_model_is_as_like_the_original_as_the_pruned_one(tmp_path: Path) -> None:
    original, plan = sure_model(), plan_for(sure_model(), KEPT)
    pruned = apply_plan(sure_model(), plan)
    with masked(original, plan):
        found = measured(original, tmp_path / "kept")
    assert tuple(found) == pytest.approx(tuple(measured(pruned, tmp_path / "kept")), abs=1e-6) and found.kl > 1e-3


def test_two_ranks_find_exactly_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, module, shares = sure_model(seed=1), "toolkit.evaluation.fidelity", []
    one = measured(other, tmp_path / "kept", 2)
    monkeypatch.setattr(f"{module}.gather", lambda mine: shares.append(mine) or list(shares))
    for rank in (1, 0):  # each rank's share in turn; the last finds those of both
        monkeypatch.setattr(f"{module}.shard", lambda numbers, rank=rank: numbers[rank::2])
        found = measure_fidelity(other, batches(2), tmp_path / "kept", "fingerprint")
    assert [len(share) for share in shares] == [2, 3] and found == one


def test_files_that_are_there_are_kept_and_those_of_something_else_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    write_reference(sure_model(), batches(), folder, "one")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "00001.safetensors").unlink()
    write_reference(sure_model(), batches(), folder, "one")
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"00001.safetensors"}
    write_reference(sure_model(), batches(), folder, "another")
    assert all(path.stat().st_mtime_ns != after[path.name] for path in folder.iterdir())


def test_what_is_missing_damaged_or_of_other_tokens_is_told(tmp_path: Path) -> None:
    folder, model = tmp_path / "kept", sure_model()
    with raises("fidelity.missing"):
        measure_fidelity(model, batches(), folder, "fingerprint")
    write_reference(model, batches(), folder, "fingerprint")
    with raises("fidelity.other-tokens"):
        measure_fidelity(model, batches(3), folder, "fingerprint")
    (folder / "00000.safetensors").write_bytes(b"half")
    with raises("fidelity.damaged", "00000.safetensors"):
        measure_fidelity(model, batches(), folder, "fingerprint")


def test_files_of_an_older_format_are_made_again_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = tmp_path / "kept", sure_model()
    write_reference(model, batches(), folder, "fingerprint")
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"format": 1}))
    (folder / "00000.safetensors").write_bytes(b"of another format")
    with raises("fidelity.other-tokens", "--fresh"):
        measure_fidelity(model, batches(), folder, "fingerprint")
    write_reference(model, batches(), folder, "fingerprint")
    assert measure_fidelity(model, batches(), folder, "fingerprint").kl == pytest.approx(0, abs=1e-7)


def test_how_much_will_be_written_is_said_before_and_refused_where_it_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = sum(int(batch["completion_mask"][:, 1:].sum()) for batch in batches())
    write_reference(sure_model(), batches(), tmp_path / "kept", "fingerprint")
    assert f"{tokens} tokens x at most {8 * 300 + 12:,} bytes" in capsys.readouterr().out
    written = sum(path.stat().st_size for path in (tmp_path / "kept").glob("*.safetensors"))
    assert written <= tokens * (8 * 300 + 12) + 3 * 1000  # and three headers
    monkeypatch.setattr(fidelity.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with raises("fidelity.disk", "0.0 GiB", "evaluation.fidelity"):
        write_reference(sure_model(), batches(), tmp_path / "full", "fingerprint")
    assert not list((tmp_path / "full").glob("*.safetensors"))
    write_reference(sure_model(), batches(), tmp_path / "kept", "fingerprint")  # what is there needs no room


def test_an_original_whose_logits_are_no_numbers_is_told(tmp_path: Path) -> None:
    model = sure_model()
    model.lm_head.weight.data[7] = math.nan
    with raises("fidelity.not-finite", "batch 0", "model.dtype=float32"):
        write_reference(model, batches(), tmp_path / "kept", "fingerprint")
