"""Speculative decoding replayed over an answer that is known: how many passes of the target a draft would save, exactly.

Greedily, a drafted token is accepted where it is what the target itself writes, and the target's answer is the same whatever
drafts (transformers' assisted generation; Leviathan et al., arXiv 2211.17192). So what a draft predicts at every token of that
answer, read in one pass over it (SWIFT, arXiv 2410.06916), decides everything, for every draft length at once:

    answer       4  8  15  16  23  42       the target's own, greedily
    predicted    4  8  15   7  23  42       the draft's next token after each true beginning
    3 drafted    [4  8  15]+16  [23 42]     two passes of the target: 4 tokens, of which 3 were drafted, and 2

Everything here is arithmetic on tokens; no model is needed. Shape legend: P prompt tokens, N tokens of the answer.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self, cast

import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

LOOKUP_NGRAM = 2  # tokens of the longest n-gram that is looked up: transformers' own default


class DraftCounts(NamedTuple):
    """What drafting comes to, over one answer or several.

    `passes_drafting[d]`: passes of the target over d drafted tokens and the one before them. Where a draft leaves the true path,
    it is taken to write on to its full length; one that ends its answer there by itself drafts less, so `drafted` is an upper
    bound, and the rest is exact.
    """

    tokens: int
    passes_drafting: tuple[int, ...]

    @property
    def passes(self) -> int:
        return sum(self.passes_drafting)

    @property
    def drafted(self) -> int:
        return sum(length * passes for length, passes in enumerate(self.passes_drafting))

    @property
    def accepted(self) -> int:
        """Every pass writes one token of the target's own, and the rest were drafted."""
        return self.tokens - self.passes

    def plus(self, other: Self) -> "DraftCounts":
        pairs = zip(self.passes_drafting, other.passes_drafting, strict=True)
        return DraftCounts(self.tokens + other.tokens, tuple(one + another for one, another in pairs))

    def speed_up(self, verifying: Mapping[int, float], drafting: float) -> float:
        """The speed against the target alone, both measured in passes of the target over one token.

        `verifying[d]`: the cost v_d of a pass over d drafted tokens and the one before them; `verifying[0]` is 1. `drafting`: the
        cost c of a drafted token. Where each is accepted with the same probability α, always γ are drafted, and answers are
        long, this tends to (1 − α^(γ+1)) / ((1 − α)(v + γ c)).
        """
        cost = sum(passes * verifying[length] for length, passes in enumerate(self.passes_drafting) if passes)
        return self.tokens / (cost + self.drafted * drafting)


def total(counts: Sequence[DraftCounts]) -> DraftCounts:
    """Of several answers. There must be at least one."""
    first, *rest = counts
    for each in rest:
        first = first.plus(each)
    return first


def replay_predictions(
    answer_N: torch.Tensor, predicted_N: torch.Tensor, length: int, max_new_tokens: int, ends: Sequence[int]
) -> DraftCounts:
    """Drafting by a model, `length` tokens at a time.

    `predicted_N[i]`: the draft's likeliest token after the prompt and `answer_N[:i]`. `ends`: the end tokens, after which a draft
    stops, too. `max_new_tokens`: of an answer, where it does not end by itself.
    """
    answer, predicted = answer_N.tolist(), predicted_N.tolist()
    passes_drafting, at = [0] * (length + 1), 0
    while at < len(answer):
        drafted = min(length, max_new_tokens - at - 1)  # the last token is always the target's own
        proposed = predicted[at : at + drafted]
        matching = _matching(proposed, answer[at : at + drafted])
        for position, token in enumerate(proposed[: matching + 1]):  # what it writes behind its first mistake is not known
            if token in ends:
                drafted = position + 1
                break
        passes_drafting[drafted] += 1
        at += matching + 1
    return DraftCounts(len(answer), tuple(passes_drafting))


def replay_lookup(
    prompt_P: torch.Tensor, answer_N: torch.Tensor, length: int, max_new_tokens: int, ends: Sequence[int]
) -> DraftCounts:
    """Drafting by looking up what followed the last tokens where they stood before, in the prompt or the answer so far.

    transformers itself proposes, so every count is exact. Arguments as above.
    """
    ids_S, answer = torch.cat([prompt_P, answer_N]), answer_N.tolist()
    lookup = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor(list(ends), device=ids_S.device),
        num_output_tokens=length,
        max_matching_ngram_size=LOOKUP_NGRAM,
        max_length=len(prompt_P) + max_new_tokens,
    )
    passes_drafting, at = [0] * (length + 1), 0
    while at < len(answer):
        so_far = len(prompt_P) + at
        candidates_1S, _ = lookup.get_candidates(cast(torch.LongTensor, ids_S[None, :so_far]))
        proposed = candidates_1S[0, so_far:].tolist()
        passes_drafting[len(proposed)] += 1
        at += _matching(proposed, answer[at : at + length]) + 1
    return DraftCounts(len(answer), tuple(passes_drafting))


def _matching(proposed: Sequence[int], answer: Sequence[int]) -> int:
    """How many of the proposed tokens are the answer's, before the first that is not."""
    pairs = enumerate(zip(proposed, answer, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(proposed), len(answer)))
