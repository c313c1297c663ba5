"""What the student writes, and how it joins the other training data: on-policy distillation with the answers of one moment.

student/1/answers/<source>/00000.jsonl   {"input_ids": [1, 52, …], "prompt_length": 37, "drawn": 2, "right": 0, "ended": 2}
student/1/teacher/                       what the teacher says of these tokens

finetuning:
  data: [{task: gsm8k}, {self_generated: true, writer: student}]
  teacher: original

A student that is trained on others' text alone has never seen what its own first mistake leads to (Agarwal et al., On-policy
distillation of language models, arXiv 2306.13649). Its answers may be wrong: they count by the divergence from the teacher alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from toolkit.recipe.schema import Recipe
from toolkit.recipe.sources import TrainingSourceRecipe
from toolkit.recovery.seam_columns import SeamColumns, TeacherStates
from toolkit.recovery.teacher import TeacherCache
from toolkit.recovery.top_logits import TopAndTail
from toolkit.recovery.training_data import TrainingData, by_weight, sources_without_student, training_sources
from toolkit.runtime.distributed import say
from toolkit.runtime.errors import PollardError
from toolkit.tasks import Encoded

OTHERS, STUDENT = "what the student has not written", "what the student has written"  # of a mix with weights


class TrainingRow(NamedTuple):
    """An example of a training."""

    example: int  # its number in the teacher's caches, one after the other
    encoded: Encoded
    divergence_only: bool  # no cross entropy: the student wrote it


@dataclass(frozen=True)
class MixedData:
    """What one training reads: data that every training of a run shares, and what this one's student has written."""

    shared: TrainingData
    student: list[Encoded]
    numbers: Sequence[int]  # of the examples that are trained on: of `shared`, then of `student`

    @property
    def rows(self) -> list[TrainingRow]:
        every = [*self.shared.encoded, *self.student]
        return [TrainingRow(number, every[number], number >= len(self.shared.encoded)) for number in self.numbers]


def student_sources(recipe: Recipe) -> dict[int, TrainingSourceRecipe]:
    """Those that the student writes, by their numbers in the mix."""
    return {number: source for number, source in enumerate(training_sources(recipe)) if source.written_by_student}


def read_student_answers(recipe: Recipe, folder: Path) -> list[Encoded]:
    """All that the student has written into `folder`, no two the same, source after source; with weights of each its share.

    Raises PollardError where it has written nothing.
    """
    sources, parts = student_sources(recipe), []
    for number, source in sources.items():
        rows = [json.loads(line) for file in sorted(folder.glob(f"{number}/*.jsonl")) for line in file.read_text().splitlines()]
        if not rows:
            raise PollardError(
                f"The student's answers are missing in {folder / str(number)}: run the recipe, which draws them.",
                code="recovery.no-student-answers",
            )
        every = [Encoded(row["input_ids"], row["prompt_length"]) for row in rows]
        parts.append([*{(*each.input_ids, each.prompt_length): each for each in every}.values()])
        say(f"  {source.name}: {len(parts[-1]):,} examples, of which only what the teacher says counts")
    weights = [source.weight for source in sources.values() if source.weight is not None]
    if len(parts) > 1 and weights:
        parts = by_weight([source.name for source in sources.values()], weights, parts, recipe.seed)
    return [encoded for part in parts for encoded in part]


def mixed_data(recipe: Recipe, shared: TrainingData, student: Sequence[Encoded]) -> MixedData:
    """Both together: all examples, or with weights as many of each as the weights of their sources ask."""
    others, whole = len(shared.encoded), len(shared.encoded) + len(student)
    weights = [
        sum(source.weight or 0.0 for source in sources.values())
        for sources in (sources_without_student(recipe), student_sources(recipe))
    ]
    numbers: Sequence[int] = range(whole)
    if all(weights):
        parts = by_weight([OTHERS, STUDENT], weights, [range(others), range(others, whole)], recipe.seed)
        numbers = [number for part in parts for number in part]
    return MixedData(shared, list(student), numbers)


class JoinedCaches:
    """The teacher's caches of a training as one: their examples are numbered on."""

    def __init__(self, caches: Sequence[TeacherCache], sizes: Sequence[int]) -> None:
        """`sizes`: how many examples each has."""
        self.caches, self.ends = caches, list(accumulate(sizes))

    @property
    def columns(self) -> SeamColumns | None:
        """Of hidden states: projected where one of the caches has them so, for want of room on the disk."""
        found = [cache.columns for cache in self.caches if cache.columns]
        return next((columns for columns in found if columns.seed is not None), found[0] if found else None)

    def rows(self, example: int) -> TopAndTail:
        """As `TeacherCache.rows`."""
        cache, number = self._place(example)
        return cache.rows(number)

    def states(self, example: int) -> TeacherStates:
        """As `TeacherCache.states`, as `columns` says."""
        (cache, number), columns = self._place(example), self.columns
        states = cache.states(number)
        if cache.columns == columns or columns is None or columns.projection is None:
            return states
        return states._replace(hidden_NGD=(states.hidden_NGD.float() @ columns.projection).bfloat16())

    def _place(self, example: int) -> tuple[TeacherCache, int]:
        number = next(number for number, end in enumerate(self.ends) if example < end)
        return self.caches[number], example - (self.ends[number - 1] if number else 0)
