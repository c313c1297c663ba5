"""Drafts for a target, and what each would come to on answers that the target has written: read off one pass over them.

    k1        the target itself, one expert per token                    shares the target's weights
    plan      the target as if pruned by a plan                          shares them, but for routers of fewer rows
    blocks    the target without the experts of some MoE blocks          shares them
    layers    the target without some decoder layers                     shares them
    lookup    what stood behind the same tokens before                   no model

Which blocks or layers (SWIFT, arXiv 2410.06916) is searched by the replay itself: the next one to go is that without which the
target needs the fewest passes. Shape legend: B answers, S positions, P prompt tokens, N tokens of an answer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from toolkit.cuts import LayersCut, Plan, masked, masked_in_form
from toolkit.evaluation.replay import DraftCounts, replay_lookup, replay_predictions, total
from toolkit.moe import find_blocks, layers_of, logits_at, override_top_k, shared_copy, without_experts
from toolkit.runtime.errors import PollardError
from toolkit.runtime.progress import progress_display

LENGTHS = range(1, 9)  # of drafts: beyond, the last tokens are hardly ever accepted, and verifying them costs all the same
SEARCH_LENGTH = 4  # of the drafts that blocks or layers are searched for
CONSIDERED = 4  # of the blocks or layers that are left: those that were missed least by themselves
ROWS = 8  # answers in one pass
Change = Callable[[PreTrainedModel], AbstractContextManager[object]]
"""Inside the context a model does less per token."""


class TargetAnswer(NamedTuple):
    """What a target writes after a prompt, greedily, up to and including its end token."""

    prompt: list[int]
    tokens: list[int]


@torch.no_grad()
def predictions(model: PreTrainedModel, answers: Sequence[TargetAnswer]) -> list[torch.Tensor]:
    """Per answer the model's likeliest token [N] after the prompt and every beginning of the answer."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(answers)
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].prompt) + len(answers[i].tokens))
    for rows in (order[start : start + ROWS] for start in range(0, len(order), ROWS)):
        longest = max(len(answers[i].prompt) + len(answers[i].tokens) for i in rows)
        ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BS, counted_BS = torch.zeros_like(ids_BS), torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, i in enumerate(rows):
            prompt, tokens = answers[i]
            ids_BS[row, : len(prompt) + len(tokens)] = torch.tensor([*prompt, *tokens])
            mask_BS[row, : len(prompt) + len(tokens)] = 1
            counted_BS[row, len(prompt) : len(prompt) + len(tokens)] = True
        inputs = {"input_ids": ids_BS.to(model.device), "attention_mask": mask_BS.to(model.device)}
        predicted = logits_at(model, inputs, counted_BS[:, 1:].to(model.device)).argmax(-1).cpu()
        for i, part in zip(rows, predicted.split([len(answers[i].tokens) for i in rows]), strict=True):
            found[i] = part
    return found


@dataclass(frozen=True)
class Replay:
    """The target's answers, and how they were written."""

    answers: list[TargetAnswer]
    max_new_tokens: int
    ends: list[int]

    @property
    def tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers)

    def agreement(self, model: PreTrainedModel) -> float:
        """The share of the tokens that are the model's likeliest: 1 for the target, but for ties within its precision."""
        pairs = zip(predictions(model, self.answers), self.answers, strict=True)
        return sum(int((predicted == torch.tensor(answer.tokens)).sum()) for predicted, answer in pairs) / self.tokens

    def by_model(self, model: PreTrainedModel, lengths: Iterable[int] = LENGTHS) -> dict[int, DraftCounts]:
        """What drafting by `model` comes to, by draft length."""
        pairs = list(zip(self.answers, predictions(model, self.answers), strict=True))

        def count(length: int) -> DraftCounts:
            return total([
                replay_predictions(torch.tensor(answer.tokens), predicted, length, self.max_new_tokens, self.ends)
                for answer, predicted in pairs
            ])  # fmt: skip

        return {length: count(length) for length in lengths}

    def by_lookup(self) -> dict[int, DraftCounts]:
        def count(length: int) -> DraftCounts:
            return total([
                replay_lookup(torch.tensor(prompt), torch.tensor(tokens), length, self.max_new_tokens, self.ends)
                for prompt, tokens in self.answers
            ])  # fmt: skip

        return {length: count(length) for length in LENGTHS}


class Candidate(NamedTuple):
    """A draft that was replayed. `kind`: as in the table above, or the role of a checkpoint; `model`: None for lookup."""

    kind: str
    description: str
    model: PreTrainedModel | None
    counts: dict[int, DraftCounts]
    shares_weights: bool


class SelfDrafts:
    """The drafts that `target` can be for itself. Their models are changed while `stack` is open; the target never is."""

    def __init__(self, target: PreTrainedModel, replay: Replay, stack: ExitStack) -> None:
        self.target, self.replay, self.stack = target, replay, stack

    def with_one_expert(self) -> Candidate:
        """Raises PollardError for a dense target, and for one whose routers choose one expert anyway, or cannot."""
        most = max(block.experts_per_token for block in find_blocks(self.target))
        if most == 1:
            raise PollardError("its routers choose one expert per token already", code="drafts.one-expert-already")
        return self._candidate("k1", f"1 expert per token instead of {most}", lambda model: override_top_k(model, 1))

    def with_plan(self, plan: Plan) -> Candidate:
        """Raises PollardError for the plan of another model."""
        return self._candidate("plan", "as if pruned by the plan", lambda model: masked_in_form(model, plan))

    def without_blocks(self) -> list[Candidate]:
        """Without 1, 2, … up to half of the MoE blocks. Raises PollardError for a dense target, and one of a single block."""
        names = [block.name for block in find_blocks(self.target)]

        def change(left_out: Sequence[int]) -> Change:
            return lambda model: without_experts(model, [names[number] for number in left_out])

        return self._searched("blocks", len(names), change)

    def without_layers(self) -> list[Candidate]:
        """Without 1, 2, … up to half of the decoder layers. Raises PollardError for a dense target, and one that can do without
        none."""
        count = len(layers_of(self.target, find_blocks(self.target))[1])

        def change(left_out: Sequence[int]) -> Change:
            return lambda model: only_layers(model, [number for number in range(count) if number not in left_out])

        return self._searched("layers", count, change)

    def _candidate(self, kind: str, description: str, change: Change, counts: dict[int, DraftCounts] | None = None) -> Candidate:
        """`counts`: what it comes to, where it has been replayed already."""
        draft = shared_copy(self.target)
        with ExitStack() as tried:
            tried.enter_context(change(draft))
            counts = counts or self.replay.by_model(draft)
            self.stack.enter_context(tried.pop_all())
        return Candidate(kind, description, draft, counts, shares_weights=True)

    def _searched(self, kind: str, count: int, change: Callable[[Sequence[int]], Change]) -> list[Candidate]:
        draft, refusals = shared_copy(self.target), [f"it has {count} of them"]
        counts: dict[tuple[int, ...], dict[int, DraftCounts]] = {}

        def passes(left_out: Sequence[int]) -> int | None:
            try:
                with change(left_out)(draft):
                    counts[tuple(left_out)] = self.replay.by_model(draft)
                    return counts[tuple(left_out)][SEARCH_LENGTH].passes
            except PollardError as error:
                refusals.append(str(error))
                return None

        found = []
        with progress_display(f"leaving out {kind}", count // 2) as advance:
            for left_out in least_missed(range(count), count // 2, passes):
                description = f"without {_listed(kind, left_out)}"
                found.append(self._candidate(kind, description, change(left_out), counts[left_out]))
                advance(1)
        if not found:
            raise PollardError(f"it cannot do without any of its {kind}: {refusals[-1]}", code="drafts.nothing-to-leave-out")
        return found


def least_missed(parts: Sequence[int], most: int, passes: Callable[[Sequence[int]], int | None]) -> Iterator[tuple[int, ...]]:
    """Sets of 1, 2, … up to `most` parts to leave out: each is the one before and the part without which the fewest passes are
    needed; of equal ones the first. `passes`: without some parts; None where that cannot be.

    A part is considered while it is among the CONSIDERED that were missed least by themselves, so that the work grows with the
    number of parts and not with its square.
    """
    alone = {part: needed for part in parts if (needed := passes((part,))) is not None} if most else {}
    ranked, chosen = sorted(alone, key=lambda part: (alone[part], part)), tuple[int, ...]()
    while ranked and len(chosen) < most:
        sets = [tuple(sorted((*chosen, part))) for part in ranked[:CONSIDERED]]
        needed_by = {each: needed for each in sets if (needed := passes(each) if chosen else alone[each[0]]) is not None}
        if not needed_by:
            return
        chosen = min(needed_by, key=lambda each: (needed_by[each], each))
        ranked = [part for part in ranked if part not in chosen]
        yield chosen


@contextmanager
def only_layers(model: PreTrainedModel, kept: Sequence[int]) -> Iterator[PreTrainedModel]:
    """`model` inside the context without its other layers. Raises PollardError where it cannot do without them."""
    cut = LayersCut.of(model, kept, "drafting")
    plan = Plan(model=model.config._name_or_path, experts_per_token=find_blocks(model)[0].experts_per_token, cuts=[cut])
    with masked(model, plan):
        yield model


def _listed(kind: str, numbers: Sequence[int]) -> str:
    """ "layers 2, 5"; "experts of blocks 2, 5"."""
    of = "the experts of block" if kind == "blocks" else "layer"
    return f"{of}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
