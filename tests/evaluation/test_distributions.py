"""Laws of compressed distributions: exact where the vocabulary is small or the model sure, else within the stated error."""

import math
from collections.abc import Iterator

import pytest
import torch

from toolkit.evaluation.distributions import ENTRIES, REST, CompressedDistributions, bytes_per_token, compare, compress

TOKENS = 64


def exactly(p_logits: torch.Tensor, q_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and acceptance of each token over the whole vocabulary, in float64."""
    log_p, log_q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1), torch.minimum(log_p.exp(), log_q.exp()).sum(-1)


def bytes_of(kept: CompressedDistributions) -> int:
    return sum(column.numel() * column.element_size() for column in kept)


def originals(vocabulary: int, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """Logits from as flat as can be to nearly sure; `zipf` falls off as words of a language do."""
    noise = torch.randn(TOKENS, vocabulary, generator=draw)
    rank = torch.arange(1, vocabulary + 1, dtype=torch.float32)
    return {"uniform": torch.zeros_like(noise), "flat": noise, "uneven": 3 * noise, "peaked": 8 * noise,
            "zipf": 0.3 * noise - 1.1 * rank.log()}  # fmt: skip


def others(logits: torch.Tensor, draw: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Models near and far; `moved` gives much to one entry that the original may hardly know."""
    noise = torch.randn(logits.shape, generator=draw)
    yield "near", logits + 0.1 * noise
    yield "apart", logits + 0.3 * noise
    yield "far", logits + noise
    yield "hotter", logits / 1.3
    where = torch.randint(0, logits.shape[-1], (len(logits), 1), generator=draw)
    yield "moved", logits.scatter_add(-1, where, torch.full((len(logits), 1), 8.0))


# What is drawn makes the error of a token one of chance: a mean over N tokens is off by its standard error through √N.
@pytest.mark.parametrize("shape", ["uniform", "flat", "uneven", "peaked", "zipf"])
@pytest.mark.parametrize("vocabulary", [5_000, 50_000])
def test_the_error_of_a_mean_over_512_tokens_is_what_is_stated(vocabulary: int, shape: str) -> None:
    draw = torch.Generator().manual_seed(vocabulary)
    logits = originals(vocabulary, draw)[shape]
    kept = compress(logits)
    assert bytes_of(kept) <= TOKENS * bytes_per_token(vocabulary) and bytes_per_token(vocabulary) <= 16_400
    for name, other in others(logits, draw):
        within = 1e-4 if shape == "peaked" or (shape in ("uneven", "zipf") and name in ("near", "apart")) else 1e-3
        for found, true in zip(compare(kept, other), exactly(logits, other), strict=True):
            error = (found - true).std() / math.sqrt(512)
            assert error < within and (found - true).mean().abs() < 3 * within * math.sqrt(512 / TOKENS), (name, error)


# A pruned model may be broken, and give much to what the original hardly knows or excludes: no part of that may be lost.
@pytest.mark.parametrize("shape", ["flat", "uneven", "barred", "unlikely"])
@pytest.mark.parametrize("other", ["uniform", "unrelated"])
def test_a_model_that_is_far_away_is_measured_without_bias(shape: str, other: str) -> None:
    draw = torch.Generator().manual_seed(3)
    noise = torch.randn(TOKENS, 50_000, generator=draw)
    last = torch.arange(50_000) > 40_000
    logits = {
        "flat": noise,
        "uneven": 3 * noise,
        "barred": noise.masked_fill(last, -math.inf),
        "unlikely": noise - 5 * last,
    }[shape]
    model = torch.zeros_like(noise) if other == "uniform" else torch.randn(noise.shape, generator=draw)
    log_p, log_q = logits.double().log_softmax(-1), model.double().log_softmax(-1)
    true_kl = torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0).sum(-1)
    kl, acceptance = compare(compress(logits), model)
    for found, true in ((kl, true_kl), (acceptance, torch.minimum(log_p.exp(), log_q.exp()).sum(-1))):
        error = found - true
        assert error.mean().abs() < 2e-4 + 4 * error.std() / math.sqrt(TOKENS) and error.std() / math.sqrt(512) < 1.5e-3


# Up to so many entries nothing is drawn: what is left out is less than a millionth.
@pytest.mark.parametrize("vocabulary", [2, 300, ENTRIES])
def test_a_small_vocabulary_is_kept_whole(vocabulary: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for logits in originals(vocabulary, draw).values():
        kept = compress(logits)
        assert not kept.drawn_N.any()
        for _, other in others(logits, draw):
            (kl, acceptance), (true_kl, true_acceptance) = compare(kept, other), exactly(logits, other)
            assert (kl - true_kl).abs().max() < 1e-4 and (acceptance - true_acceptance).abs().max() < 1e-5


def test_a_distribution_is_perfectly_like_itself() -> None:
    for vocabulary in (500, 20_000):
        for logits in originals(vocabulary, torch.Generator().manual_seed(1)).values():
            kl, acceptance = compare(compress(logits), logits)
            assert kl.abs().max() < 2e-6 and (1 - acceptance).abs().max() < 1e-5


def test_what_is_kept_of_a_sure_model_holds_all_but_a_millionth_and_no_entry_more() -> None:
    logits = 4 * torch.randn(300, 500, generator=torch.Generator().manual_seed(0))
    kept = compress(logits)
    p = logits.double().softmax(-1).sort(-1, descending=True).values
    for row, count in zip(p, kept.count_N.tolist(), strict=True):
        assert row[count:].sum() <= 1.01 * REST < 1.02 * row[count - 1 :].sum()
    assert kept.count_N.float().mean() < 450


# Neither how many tokens are compressed at a time nor what stands beside them decides what is kept of one.
def test_a_token_is_kept_alike_alone_and_among_others() -> None:
    draw = torch.Generator().manual_seed(2)
    logits = torch.cat([2 * torch.randn(130, 6_000, generator=draw), 9 * torch.randn(3, 6_000, generator=draw)])
    together, counts = compress(logits), compress(logits).count_N.tolist()
    index = together.index_M.split(counts)
    for token in (0, 127, 128, 132):
        alone = compress(logits[token : token + 1])
        assert torch.equal(alone.index_M, index[token]) and alone.drawn_N[0] == together.drawn_N[token]
        assert torch.equal(compare(alone, logits[:1])[0], compare(together, logits[:1].expand(133, -1))[0][token : token + 1])


def test_a_model_that_gives_no_probability_where_the_original_does_is_infinitely_far() -> None:
    logits = torch.randn(4, 3_000, generator=torch.Generator().manual_seed(3))
    other = logits.masked_fill(torch.arange(3_000) < 1_500, -torch.inf)
    kl, acceptance = compare(compress(logits), other)
    assert kl.isposinf().all() and (acceptance > 0.3).all() and (acceptance < 0.7).all()
    broken = logits.clone()
    broken[0, 0] = torch.nan
    kl, _ = compare(compress(logits), broken)
    assert kl[0].isnan() and kl[1:].isfinite().all()
