"""What drafting costs, in passes of the target over one token: measured in turn, in one process.

    v_d   a pass of the target over d drafted tokens and the one before them
    c     a pass of the draft over one token

The tokens are those of answers, each in the middle of its own: which experts a few tokens read together, and how long a cache is,
decide what a pass costs. Every measurement stands beside one of the target's pass over one token, of which it is a multiple.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from transformers import DynamicCache, PreTrainedModel

from toolkit.evaluation.draft_candidates import LENGTHS, TargetAnswer
from toolkit.evaluation.drafting import wait_for_device
from toolkit.evaluation.speed import median_and_range
from toolkit.runtime.progress import progress

REPEATS = 5  # turns over everything, each in another answer, after one to warm up
PASSES = 5  # of every measurement


class DraftCosts(NamedTuple):
    """Medians, each with its lowest and highest, in passes of the target over one token."""

    seconds: list[float]  # of that pass
    verifying: dict[int, list[float]]  # by the number of drafted tokens, 0 included
    drafting: dict[str, list[float]]  # by the draft's name


class ReadAnswer:
    """A model that has read a prompt and the first half of its answer. `timed` reads on, and takes it back."""

    def __init__(self, model: PreTrainedModel, answer: TargetAnswer) -> None:
        half = max(1, len(answer.tokens) // 2)
        read, rest = [*answer.prompt, *answer.tokens[:half]], answer.tokens[half:]
        most = max(LENGTHS) + 1
        self.model = model
        self.rest = torch.tensor([(rest + most * [read[-1]])[:most]], device=model.device)
        self.cache = DynamicCache(config=model.config)
        cast(Any, self.cache).activate_past_recording()
        model(torch.tensor([read[:-1]], device=model.device), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.last = torch.tensor([read[-1:]], device=model.device)

    def timed(self, drafted: int) -> float:
        """Seconds of a pass over the last token that was read and `drafted` ones behind it."""
        ids = torch.cat([self.last, self.rest[:, :drafted]], dim=1)
        wait_for_device(self.model)
        started = time.perf_counter()
        for _ in range(PASSES):
            self.model(ids, past_key_values=self.cache, use_cache=True)
            self.cache.crop(-ids.shape[1])
        wait_for_device(self.model)
        return (time.perf_counter() - started) / PASSES


@torch.no_grad()
def measure_costs(
    target: PreTrainedModel, drafts: Mapping[str, PreTrainedModel], answers: Sequence[TargetAnswer], repeats: int = REPEATS
) -> DraftCosts:
    """`drafts`: by name, those that are models."""
    seconds: list[float] = []
    verifying: dict[int, list[float]] = {length: [] for length in LENGTHS}
    drafting: dict[str, list[float]] = {name: [] for name in drafts}
    for turn in progress(range(repeats + 1), "measuring passes"):
        answer = answers[turn % len(answers)]
        reading = ReadAnswer(target, answer)
        alone = [reading.timed(0)]
        found = {}
        for length in LENGTHS:
            found[length] = reading.timed(length) / alone[-1]
            alone.append(reading.timed(0))
        ratios = {}
        for name, draft in drafts.items():
            ratios[name] = ReadAnswer(draft, answer).timed(0) / alone[-1]
            alone.append(reading.timed(0))
        if turn:  # the first warms up
            seconds += alone
            for length, ratio in found.items():
                verifying[length].append(ratio)
            for name, ratio in ratios.items():
                drafting[name].append(ratio)
    return DraftCosts(
        median_and_range(seconds),
        {0: [1.0] * 3} | {length: median_and_range(values) for length, values in verifying.items()},
        {name: median_and_range(values) for name, values in drafting.items()},
    )
