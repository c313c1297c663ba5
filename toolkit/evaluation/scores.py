"""What an evaluation leaves: a score that carries its n and its interval, and one line per item."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit.runtime.display import Displayed, Overview
from toolkit.runtime.errors import ItemsFailed
from toolkit.runtime.files import JsonObject, write_text
from toolkit.runtime.formatting import interval, percent
from toolkit.runtime.intervals import mean_interval, wilson

SHOWN = 5  # wrong answers, in a notebook


@dataclass(frozen=True)
class Sample:
    """One of several answers to an item, as judged by itself."""

    prediction: str
    correct: bool
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Item:
    """One answered test item; `tokens` counts what was generated, `ended`: the model stopped by itself."""

    index: int
    prompt: str
    gold: str
    prediction: str
    correct: bool  # by strict extraction
    tokens: int
    ended: bool
    flexible: bool = False  # correct by flexible extraction
    error: str | None = None  # what the scorer raised
    note: str | None = None  # why a comparison was given up; it counts as wrong
    credit: float | None = None  # a degree of rightness, of F1 and of own scorers
    likeliest: bool | None = None  # whether the right one of the item's choices is the likeliest to the model
    written: str | None = None  # the whole text that the model wrote, where it is more than the prediction
    samples: list[Sample] = field(default_factory=list)  # where there was a vote: every answer that took part


@dataclass
class EvaluationFacts:
    """How an evaluation was done, and of which model. None: does not apply, and has no key in the file; but null where the speed
    was not measured or the size on disk is not known."""

    task: str | None = None
    split: str | None = None
    seconds: float | None = None
    logged: int | None = None  # answers that were there already, so that `seconds` are not of all
    tokens_per_second: float | None = None  # generated, all ranks together; of answers that were not logged before
    max_new_tokens: int | None = None
    ranks: int | None = None
    context_length: int | None = None
    prompts_beyond_context: int | None = None  # prompts longer than the context
    prompts_without_room: int | None = None  # prompts that fit, but not together with `max_new_tokens`
    temperature: float | None = None
    samples: int | None = None
    mean_score: float | None = None  # of single answers, where a vote decides
    chance: float | None = None  # the share that guessing gets right, where there are choices or labels
    device: str | None = None
    dtype: str | None = None
    backend: str | None = None
    batch_size: int | None = None
    skip_rate: float | None = None  # of the experts after a token's first
    experts_skipped: float | None = None  # of all
    skipped_per_token: dict[str, float] | None = None  # by block
    peak_memory_bytes: int | None = None  # the largest of any rank: GPU memory on a GPU, else resident memory of the process
    model: str | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    checkpoint_bytes: int | None = None

    def to_json(self) -> JsonObject:
        unknown = {"tokens_per_second": self.seconds is not None, "checkpoint_bytes": self.parameters is not None}
        return {key: value for key, value in asdict(self).items() if value is not None or unknown.get(key)}


@dataclass(repr=False)
class Scores(Displayed):
    """A model's result on a split. `score` and `interval` are fractions, by strict extraction."""

    items: list[Item]
    facts: EvaluationFacts = field(default_factory=EvaluationFacts)

    def add_facts(self, **facts: Any) -> None:
        """Sets fields of `facts` that are known later: the model's path and size."""
        self.facts = replace(self.facts, **facts)

    @property
    def n(self) -> int:
        return len(self.items)

    @property
    def correct(self) -> int:
        return sum(item.correct for item in self.items)

    @property
    def score(self) -> float:
        return self.correct / self.n if self.n else 0.0

    @property
    def flexible_correct(self) -> int:
        return sum(item.flexible for item in self.items)

    @property
    def flexible_score(self) -> float:
        return self.flexible_correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    @property
    def chance(self) -> float | None:
        """The share that guessing gets right, where there are choices."""
        return self.facts.chance

    @property
    def credit(self) -> float | None:
        """The mean of the items' credits; None where the scorer gives none."""
        credits = [item.credit for item in self.items if item.credit is not None]
        return math.fsum(credits) / len(credits) if credits else None

    @property
    def credit_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `credit` (Student's t: credits are no 0 and 1); None where the scorer gives none."""
        credits = [item.credit for item in self.items if item.credit is not None]
        return mean_interval(credits, 0.0, 1.0) if credits else None

    @property
    def likelihood_score(self) -> float | None:
        """The share of items with choices whose right choice is the likeliest; None where no item has any."""
        return sum(self._likeliest) / len(self._likeliest) if self._likeliest else None

    @property
    def _likeliest(self) -> list[bool]:
        return [item.likeliest for item in self.items if item.likeliest is not None]

    @property
    def other_measures(self) -> str:
        """ ", 61.2% by the likeliest choice, 70.1% mean credit (66.0–74.2 %)", where there are such measures; else empty."""
        ends = self.credit_interval
        names = {"by the likeliest choice": self.likelihood_score, f"mean credit ({interval(ends)})" if ends else "": self.credit}
        return "".join(f", {value:.1%} {name}" for name, value in names.items() if value is not None)

    @property
    def failed(self) -> list[Item]:
        """Items whose scorer raised: there is no score before it is mended."""
        return [item for item in self.items if item.error]

    def check(self) -> None:
        """Raises ItemsFailed where the scorer could not judge an item."""
        failed = self.failed
        if failed:
            more = f" (and {len(failed) - 1:,} more)" if failed[1:] else ""
            raise ItemsFailed(
                f"The scorer of task {self.facts.task} could not judge {len(failed):,} of {self.n:,} answers: "
                f"{failed[0].error}{more}. The others are judged; mend the scorer, and the same command goes on.",
                [item.index for item in failed],
            )

    def overview(self) -> Overview:
        """The score; and in a notebook the first answers that are wrong or could not be judged."""
        facts = [f"{percent(self.score)} of {self.n:,} right, 95 % interval {interval(self.interval)}"]
        facts += [f"{percent(self.flexible_score)} by flexible extraction"] * (self.flexible_correct > self.correct)
        facts += [self.other_measures.removeprefix(", ")] * bool(self.other_measures)
        facts += [f"{len(self.failed):,} not judged"] * bool(self.failed)
        facts += [" ".join(filter(None, (self.facts.task, self.facts.split)))] * bool(self.facts.task)
        wrong = [item for item in self.items if item.error or not item.correct]
        rows = [(str(item.index), item.prompt, item.gold, item.error or item.prediction) for item in wrong[:SHOWN]]
        note = f"{len(rows)} of {len(wrong):,} that are not right" * bool(rows)
        return Overview(facts, ("item", "question", "right answer", "the model's"), rows, note)

    def save(self, folder: str | Path, role: str) -> None:
        """Writes <role>.predictions.jsonl, then <role>.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / f"{role}.predictions.jsonl", "".join(json.dumps(asdict(item)) + "\n" for item in self.items))
        summary: JsonObject = {
            "score": self.score,
            "correct": self.correct,
            "n": self.n,
            "interval": list(self.interval),
            "flexible_score": self.flexible_score,
            "flexible_correct": self.flexible_correct,
            "generated_tokens": sum(item.tokens for item in self.items),
            "truncated": sum(not item.ended for item in self.items),
            "empty": sum(not item.prediction.strip() for item in self.items),
            "unfinished_reasoning": sum(not item.prediction.strip() and bool(item.written) for item in self.items),
            "failed": len(self.failed),
            "given_up": sum(item.note is not None for item in self.items),
        }
        if self.credit is not None:
            summary |= {"credit": self.credit, "credit_interval": list(self.credit_interval or ())}
        if self.likelihood_score is not None:
            summary |= {"likelihood_score": self.likelihood_score, "likelihood_correct": sum(self._likeliest)}
        write_text(folder / f"{role}.json", json.dumps(summary | self.facts.to_json(), indent=1) + "\n")
