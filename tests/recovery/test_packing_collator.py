"""Laws of packed batches: the same examples, the same loss and gradient as padded ones, in fewer positions."""

import random
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch.nn.functional import cross_entropy
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from toolkit.moe import real_positions
from toolkit.recovery import packing
from toolkit.recovery.packing import IGNORED, PackingCollator, padding_shares, rows_of
from toolkit.recovery.recover import _row
from toolkit.tasks import Encoded

Batch = dict[str, Any]


def examples(number: int = 9, seed: int = 0) -> list[Batch]:
    """The last is plain text, whose first token has a label that nothing predicts."""
    draw = random.Random(seed)
    ids = [[draw.randrange(3, 60) for _ in range(draw.randrange(4, 20))] for _ in range(number)]
    return [{"example": i, **_row(Encoded(tokens, 0 if i == number - 1 else 3))} for i, tokens in enumerate(ids)]


@pytest.fixture
def padded() -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(pad_token_id=0)


@pytest.fixture
def packed(padded: DataCollatorForLanguageModeling, monkeypatch: pytest.MonkeyPatch) -> PackingCollator:
    monkeypatch.setattr(packing, "ROW", 32)  # several rows
    return PackingCollator(padded)


def test_every_example_stands_in_one_row_and_no_row_is_too_long() -> None:
    draw = random.Random(1)
    for _ in range(50):
        lengths = [draw.randrange(1, 40) for _ in range(draw.randrange(1, 30))]
        rows = rows_of(lengths, 40)
        assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
        assert max(sum(lengths[number] for number in row) for row in rows) <= 40
        assert len(rows) <= 1.5 * sum(lengths) / 40 + 1  # first fit of falling lengths needs at most 11/9 of the fewest, and one


def test_rows_are_filled_evenly() -> None:
    assert sorted(rows_of([9, 8, 7, 6, 5, 5], 40)) == [[0, 1, 2, 3, 4, 5]]
    assert sorted(map(sorted, rows_of([9, 8, 7, 6, 5, 5], 30))) == [[0, 3, 4], [1, 2, 5]]  # 20 and 20, not 30 and 10


def test_no_token_and_no_label_is_lost(packed: PackingCollator) -> None:
    rows = examples()
    batch, ordered = packed(rows), packed.in_rows(rows)
    real = real_positions(batch["position_ids"])
    assert len(batch["input_ids"]) > 1 and "attention_mask" not in batch
    assert batch["input_ids"][real].tolist() == [token for row in ordered for token in row["input_ids"]]
    assert batch["labels"][real].tolist() == [label for row in ordered for label in (IGNORED, *row["labels"][1:])]
    assert (batch["labels"][~real] == IGNORED).all()


def test_the_dev_slice_is_padded_as_ever(packed: PackingCollator, padded: DataCollatorForLanguageModeling) -> None:
    dev = [{key: row[key] for key in ("input_ids", "labels")} for row in examples()]
    found, expected = packed(dev), padded(dev)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def gradient(family: str, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model, labels = tiny_model(family).train(), batch.pop("labels")[:, 1:]
    logits = model(**batch, use_cache=False).logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "deepseek_v3"])
def test_the_gradient_of_a_step_is_that_of_the_padded_batch(
    family: str, packed: PackingCollator, padded: DataCollatorForLanguageModeling
) -> None:
    rows = examples()
    (loss, found), (expected_loss, expected) = gradient(family, packed(rows)), gradient(family, padded(rows))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_it_takes_fewer_positions_than_padding_by_the_shares_that_are_told(
    packed: PackingCollator, padded: DataCollatorForLanguageModeling
) -> None:
    for seed in range(20):
        rows = examples(8, seed)
        lengths = [len(row["input_ids"]) for row in rows]
        shares, found, before = padding_shares(lengths, 8), packed(rows)["input_ids"].numel(), padded(rows)["input_ids"].numel()
        assert found < before
        assert (found, before) == pytest.approx((sum(lengths) / (1 - shares.packed), sum(lengths) / (1 - shares.padded)))
