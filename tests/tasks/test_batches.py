from toolkit.tasks import Encoded, padded_batches

ENCODED = [Encoded([5, 6, 7], 2), Encoded([8, 9, 10, 11], 1), Encoded([12, 13], 0)]


def test_sequences_are_padded_on_the_right_and_padding_is_masked() -> None:
    (batch,) = padded_batches(ENCODED, batch_size=3, pad_token_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 10, 11], [12, 13, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]]


# A token that looks like padding counts all the same: eos often pads.
def test_the_mask_follows_lengths_and_not_values() -> None:
    (batch,) = padded_batches([Encoded([5, 1], 1), Encoded([5, 6, 1], 1)], batch_size=2, pad_token_id=1)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_batches_keep_the_order_and_are_only_as_long_as_they_must() -> None:
    batches = padded_batches(ENCODED, batch_size=2, pad_token_id=0)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 4), (1, 2)]
    real = [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert real == [encoded.input_ids for encoded in ENCODED]


def test_no_sequences_make_no_batches() -> None:
    assert padded_batches([], batch_size=2, pad_token_id=0) == []
