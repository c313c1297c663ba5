"""Laws of the teacher's cache: it says what the live teacher says, costs what was planned, and outlives a kill."""

import json
from pathlib import Path

import pytest
import torch
from conftest import raises, tiny_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from toolkit.moe import logits_at
from toolkit.recovery import teacher
from toolkit.recovery.distillation import COLUMNS, IGNORED, TeacherCollator, distillation_losses, distillation_losses_in_parts
from toolkit.recovery.recover import _row
from toolkit.recovery.teacher import TeacherCache, cache_logits, predicted_tokens
from toolkit.recovery.top_logits import TopAndTail, bytes_per_token, top_and_tail
from toolkit.tasks import Encoded

VOCABULARY = 300
KINDS = (torch.int32, torch.float16, torch.float32)  # of the columns, behind the bits


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return sure_model()


def sure_model(seed: int = 0) -> PreTrainedModel:
    """Its distributions are as uneven as those of a trained model."""
    model = tiny_model("mixtral", vocab_size=VOCABULARY, seed=seed)
    model.lm_head.weight.data *= 6
    return model


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "EXAMPLES", 4)


def examples(number: int = 10) -> list[Encoded]:
    """Of every length; the last is plain text, where the first token has nothing before it to predict it."""
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(3, VOCABULARY, (6 + i % 5,), generator=draw).tolist() for i in range(number)]
    return [Encoded(tokens, 0 if i == number - 1 else 2 + i % 3) for i, tokens in enumerate(ids)]


def cached(model: PreTrainedModel, folder: Path, temperature: float = 2.0, batch_size: int = 3) -> TeacherCache:
    cache_logits(model, examples(), folder, temperature, batch_size, 0, "fingerprint")
    return TeacherCache(folder, examples(), temperature, int(model.config.vocab_size))


@torch.no_grad()
def logits_of(model: PreTrainedModel, encoded: Encoded) -> torch.Tensor:
    """What predicts its completion tokens, alone and unpadded."""
    return model(torch.tensor([encoded.input_ids])).logits[0, max(encoded.prompt_length, 1) - 1 : -1]


def by_definition(student: torch.Tensor, live: torch.Tensor, temperature: float, top: int = 64) -> torch.Tensor:
    """KL over the teacher's `top` tokens and one bucket for all others, in float64, from whole distributions."""
    p, q = ((logits.double() / temperature).softmax(-1) for logits in (live, student))
    chosen = torch.zeros_like(p, dtype=torch.bool).scatter(-1, live.topk(min(top, live.shape[-1])).indices, True)
    total = torch.where(chosen, p * (p / q).log(), 0).sum()
    rest = [torch.where(chosen, 0, each).sum(-1) for each in (p, q)]
    return total + (rest[0] * (rest[0] / rest[1]).log()).sum() if live.shape[-1] > top else total


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_from_the_cache_is_the_live_teachers(model: PreTrainedModel, tmp_path: Path, temperature: float) -> None:
    student = sure_model(seed=1)
    cache = cached(model, tmp_path / "teacher", temperature)
    for number, encoded in enumerate(examples()):
        mine, live = logits_of(student, encoded), logits_of(model, encoded)
        target = torch.tensor(encoded.input_ids[-predicted_tokens(encoded) :])
        cross, divergence = distillation_losses(mine, target, cache.rows(number), temperature)
        expected = by_definition(mine, live, temperature)
        assert expected > 0.1 * len(target)  # these two disagree
        assert divergence.item() == pytest.approx(expected.item(), abs=1e-4 * len(target))
        assert cross.item() == pytest.approx(-mine.log_softmax(-1).gather(-1, target[:, None]).sum().item(), rel=1e-6)
        assert distillation_losses(live, target, cache.rows(number), temperature)[1].item() == pytest.approx(
            0, abs=1e-4 * len(target)
        )


def test_parts_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.recovery.distillation.TOKENS_AT_ONCE", 3)
    live, student = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0)).mul(4)
    rows, target = top_and_tail(live, 2.0), torch.arange(8)
    found = []
    for compute in (distillation_losses, distillation_losses_in_parts):
        student.requires_grad_().grad = None
        cross, divergence = compute(student, target, rows, 2.0)
        (cross + divergence).backward()
        found.append((cross.detach(), divergence.detach(), student.grad))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)
    # and the gradient is that of the definition
    student.requires_grad_().grad = None
    (by_definition(student, live, 2.0) + torch.nn.functional.cross_entropy(student.double(), target, reduction="sum")).backward()
    torch.testing.assert_close(found[0][2], student.grad, atol=1e-4, rtol=0)


@pytest.mark.parametrize("vocabulary", [16, 64])
def test_a_vocabulary_without_a_rest_is_the_whole_divergence(vocabulary: int) -> None:
    live, student = torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    rows = top_and_tail(live, 2.0)
    assert rows.index_NK.shape == (5, vocabulary)
    divergence = distillation_losses(student, torch.arange(5), rows, 2.0)[1]
    p, q = (live / 2).log_softmax(-1), (student / 2).log_softmax(-1)
    torch.testing.assert_close(divergence, (p.exp() * (p - q)).sum(), atol=1e-3, rtol=0)
    divergence.backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_tokens_the_teacher_rules_out_leave_numbers() -> None:
    live = torch.randn(3, 100).index_fill(1, torch.arange(50), -torch.inf)
    student = torch.randn(3, 100, requires_grad=True)
    divergence = distillation_losses(student, torch.arange(3), top_and_tail(live, 1.0), 1.0)[1]
    divergence.backward()
    assert divergence.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_a_token_costs_what_was_planned(model: PreTrainedModel, tmp_path: Path) -> None:
    cached(model, tmp_path / "teacher")
    tensors = [load_file(path) for path in sorted((tmp_path / "teacher").glob("*.safetensors"))]
    tokens = sum(map(predicted_tokens, examples()))
    assert len(tensors) == 3 and sum(len(shard["tail"]) for shard in tensors) == tokens
    assert sum(t.nbytes for shard in tensors for t in shard.values()) == tokens * bytes_per_token(VOCABULARY) == tokens * 388


def test_batches_change_nothing_but_rounding(model: PreTrainedModel, tmp_path: Path) -> None:
    one, three = (cached(model, tmp_path / str(size), batch_size=size) for size in (1, 3))
    for number in range(10):
        alone, padded = one.rows(number), three.rows(number)
        assert (alone.index_NK == padded.index_NK).float().mean() > 0.98  # ties may turn
        torch.testing.assert_close(alone.offset_NK, padded.offset_NK, atol=2e-3, rtol=0)
        torch.testing.assert_close(alone.tail_N, padded.tail_N, atol=1e-4, rtol=0)


def test_a_kill_loses_one_shard_and_changes_nothing(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(model, tmp_path / "whole")
    calls = []

    def killed_in_the_second(tensors: dict, path: Path) -> None:
        calls.append(path.name)
        path.write_bytes(b"half")
        if len(calls) == 2:
            raise KeyboardInterrupt
        save_file(tensors, path)

    monkeypatch.setattr(teacher, "save_file", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        cached(model, tmp_path / "killed")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "00000.safetensors", "00001.safetensors.tmp", "about.json",
    ]  # fmt: skip
    cached(model, tmp_path / "killed")
    assert calls[2:] == ["00001.safetensors.tmp", "00002.safetensors.tmp"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_another_temperature_is_another_cache(model: PreTrainedModel, tmp_path: Path) -> None:
    first = cached(model, tmp_path / "teacher", 1.0).rows(0)
    second = cached(model, tmp_path / "teacher", 2.0).rows(0)
    assert torch.equal(first.offset_NK, second.offset_NK) and not torch.allclose(first.tail_N, second.tail_N, atol=0.1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoded": [*examples()[:-1], Encoded([5, 6, 7], 1)]}, ["`tokens`"]),
        ({"encoded": [Encoded([*examples()[0].input_ids[:-1], 299], 2), *examples()[1:]]}, ["`data`"]),
        ({"temperature": 1.0}, ["`temperature`", 2.0, 1.0]),
        ({"vocabulary": 299}, ["`vocabulary`", 300, 299, "tokenizer"]),
    ],
)
def test_a_cache_of_other_data_or_another_tokenizer_is_refused(
    model: PreTrainedModel, tmp_path: Path, change: dict, named: list
) -> None:
    cached(model, tmp_path / "teacher")
    with raises("recovery.other-teacher-cache", tmp_path / "teacher", *named):
        TeacherCache(**{"folder": tmp_path / "teacher", "encoded": examples(), "temperature": 2.0, "vocabulary": 300, **change})


def test_damaged_files_are_named(model: PreTrainedModel, tmp_path: Path) -> None:
    cached(model, tmp_path / "teacher")
    path = tmp_path / "teacher" / "00001.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"tail": tensors["tail"] * torch.nan}, path)
    with raises("recovery.damaged-teacher-cache", "00001.safetensors"):
        TeacherCache(tmp_path / "teacher", examples(), 2.0, VOCABULARY).rows(5)
    for damage in (lambda: save_file({name: t[:-1] for name, t in tensors.items()}, path), lambda: path.write_bytes(b"x")):
        damage()
        with raises("recovery.damaged-teacher-cache", "00001.safetensors"):
            TeacherCache(tmp_path / "teacher", examples(), 2.0, VOCABULARY)
    path.unlink()
    with raises("recovery.damaged-teacher-cache", "00001.safetensors"):
        TeacherCache(tmp_path / "teacher", examples(), 2.0, VOCABULARY)
    with raises("recovery.no-teacher-cache", "nowhere"):
        TeacherCache(tmp_path / "nowhere", examples(), 2.0, VOCABULARY)


def test_a_teacher_without_numbers_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = sure_model()
    broken.lm_head.weight.data[7] = torch.nan
    with raises("recovery.teacher-not-finite", "examples 0 to 3", "model.dtype=float32"):
        cached(broken, tmp_path / "broken")
    monkeypatch.setattr(teacher.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with raises("recovery.no-disk-space", tmp_path / "full", "GiB more", "finetuning.examples"):
        cached(broken, tmp_path / "full")
    assert json.loads((tmp_path / "full" / "about.json").read_text())["tokens"] == sum(map(predicted_tokens, examples()))


def test_a_shuffled_padded_batch_has_the_losses_of_its_examples(model: PreTrainedModel, tmp_path: Path) -> None:
    cache, student, chosen = cached(model, tmp_path / "teacher"), sure_model(seed=1), [7, 9, 2]
    rows = [{"example": number, **_row(examples()[number])} for number in chosen]
    batch = TeacherCollator(DataCollatorForLanguageModeling(pad_token_id=0), cache)(rows)
    counted = batch["labels"][:, 1:] != IGNORED
    teaching = TopAndTail(*(batch[name].view(kind) for name, kind in zip(COLUMNS, KINDS, strict=True)))
    logits = logits_at(student, {name: batch[name] for name in ("input_ids", "attention_mask")}, counted)
    together = distillation_losses(logits, batch["labels"][:, 1:][counted], teaching, 2.0)
    alone = []
    for number in chosen:
        target = torch.tensor(examples()[number].input_ids[-predicted_tokens(examples()[number]) :])
        alone.append(torch.stack(distillation_losses(logits_of(student, examples()[number]), target, cache.rows(number), 2.0)))
    torch.testing.assert_close(torch.stack(together), torch.stack(alone).sum(0), rtol=1e-5, atol=0)
