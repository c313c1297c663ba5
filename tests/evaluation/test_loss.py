import math

import pytest
import torch
from conftest import tiny_model

from toolkit.evaluation import completion_loss
from toolkit.tasks import Encoded, padded_batches

LENGTHS = (24, 9, 17, 12)


def sequences() -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    return [Encoded(torch.randint(3, 64, (length,), generator=generator).tolist(), 5) for length in LENGTHS]


# Neither padding nor the prompt counts, and a long completion counts by its tokens, however it is batched.
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_the_cross_entropy_of_the_completion_tokens(size: int) -> None:
    model = tiny_model("mixtral", torch.float64)
    expected = []
    for ids, prompt in sequences():
        log_p = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        expected += [-log_p[i - 1, ids[i]].item() for i in range(prompt, len(ids))]
    found = completion_loss(model, padded_batches(sequences(), size, 0))
    assert found.tokens == sum(LENGTHS) - 5 * len(LENGTHS) == len(expected)
    assert found.mean == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_without_a_token_to_predict_there_is_no_loss() -> None:
    found = completion_loss(tiny_model("mixtral"), padded_batches([Encoded([5], 0)], 1, 0))
    assert found.tokens == 0 and math.isnan(found.mean) and found.finite is None
