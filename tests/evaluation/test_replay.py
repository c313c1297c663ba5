"""Laws of the replay, on tokens alone: speculative decoding written out step by step, and the arithmetic of its cost."""

import random

import pytest
import torch

from toolkit.evaluation.replay import DraftCounts, replay_lookup, replay_predictions, total

END = 1


def counts(answer: list[int], predicted: list[int], length: int, most: int = 100) -> DraftCounts:
    return replay_predictions(torch.tensor(answer), torch.tensor(predicted), length, most, [END])


def test_the_example_of_the_docstring() -> None:
    found = counts([4, 8, 15, 16, 23, 42], [4, 8, 15, 7, 23, 42], 3)
    assert (found.passes, found.accepted, found.drafted) == (2, 4, 6)


def test_a_perfect_draft_saves_all_but_every_last_token_of_a_pass() -> None:
    answer = [5] * 11 + [END]
    for length in range(1, 9):
        found = counts(answer, answer, length)
        assert found.passes == -(-len(answer) // (length + 1)) and found.accepted == len(answer) - found.passes


def test_a_draft_that_is_never_right_saves_nothing() -> None:
    found = counts([5] * 11 + [END], [6] * 12, 4)
    assert found.passes == found.tokens == 12 and found.accepted == 0 and found.drafted == 48


def test_no_more_is_drafted_than_an_answer_may_have_tokens() -> None:
    assert counts([5] * 6, [5] * 6, 4, most=6).passes_drafting == (1, 0, 0, 0, 1)  # 4 + 1, and then the last by itself
    assert counts([5] * 5, [5] * 5, 8, most=5).passes_drafting == (0, 0, 0, 0, 1, 0, 0, 0, 0)


def test_a_draft_stops_where_it_ends_its_answer() -> None:
    assert counts([5, 5, END], [5, 5, END], 8).passes_drafting[3] == 1
    early = counts([5, 5, 5, 5, END], [5, END, 5, 5, END], 4)  # wrong about the end, after one right token
    assert early.passes_drafting == (0, 0, 1, 1, 0) and early.accepted == 3


@pytest.mark.parametrize("length", range(1, 9))
def test_the_replay_does_what_speculative_decoding_does(length: int) -> None:
    """Against a decoding written out with two models that are tables: of the next token after any beginning."""
    dice = random.Random(length)
    for _ in range(50):
        target = _answer_of(dice)
        table = {i: token if dice.random() < 0.7 else dice.randrange(2, 6) for i, token in enumerate(target)}
        found = counts(target, [table[i] for i in range(len(target))], length, most=30)
        at = passes = accepted = 0
        while at < len(target):
            drafted: list[int] = []
            while len(drafted) < min(length, 30 - at - 1) and (not drafted or drafted[-1] != END):
                on_path = drafted == target[at : at + len(drafted)]
                drafted.append(table[at + len(drafted)] if on_path and at + len(drafted) < len(target) else 9)
            right = 0
            while right < len(drafted) and at + right < len(target) and drafted[right] == target[at + right]:
                right += 1
            written = min(right + 1, len(target) - at)
            at, passes, accepted = at + written, passes + 1, accepted + written - 1
        assert (found.tokens, found.passes, found.accepted) == (len(target), passes, accepted)


def _answer_of(dice: random.Random) -> list[int]:
    count = dice.randrange(1, 31)
    return [dice.randrange(2, 6) for _ in range(count - 1)] + [END if count < 30 else 3]


def test_lookup_finds_what_the_prompt_has_and_counts_passes_without_a_proposal() -> None:
    prompt, answer = torch.tensor([7, 8, 9, 10, 11, 20]), torch.tensor([7, 8, 9, 10, 11, END])
    found = replay_lookup(prompt, answer, 4, 100, [END])
    # nothing stood behind 20 before; then 8 9 10 11 after 7; then the end, which is not among what is proposed
    assert found.passes_drafting[0] == 1 and found.passes == 2 and found.accepted == 4


def test_counts_add_up_and_the_cost_follows_them() -> None:
    one, other = DraftCounts(6, (0, 0, 2)), DraftCounts(4, (1, 1, 0))
    both = total([one, other])
    assert both == DraftCounts(10, (1, 1, 2)) and (both.passes, both.drafted, both.accepted) == (4, 5, 6)
    assert both.speed_up({0: 1, 1: 1.5, 2: 2}, 0.1) == pytest.approx(10 / (1 + 1.5 + 4 + 0.5))


def test_the_cost_tends_to_the_closed_formula() -> None:
    dice, share, length = random.Random(0), 0.8, 3
    answer = [5] * 50_000
    predicted = [5 if dice.random() < share else 6 for _ in answer]
    found = counts(answer, predicted, length, most=10**6).speed_up({0: 1, 1: 1.1, 2: 1.2, 3: 1.3}, 0.2)
    assert found == pytest.approx((1 - share ** (length + 1)) / ((1 - share) * (1.3 + length * 0.2)), rel=0.01)
