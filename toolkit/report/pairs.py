"""Two models on the same questions: who is right where the other is wrong says more than two scores do.

Questions are matched by their text and gold answer, wherever they stand in the files; a question that is put twice is
matched with its like, in order.
"""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.runtime.errors import PollardError
from toolkit.runtime.intervals import pair

Right = dict[tuple[str, str, int], bool]  # question, gold, which of its like -> whether it was answered rightly
SIGNIFICANT = 0.05  # p below it
REFERENCES = ("original", "control", "pruned", "recovered")  # a model is compared with those before it


def read_items(path: Path) -> list[dict[str, Any]] | None:
    """The lines of a predictions file; None where there is none. Raises PollardError for one that is damaged."""
    if not path.exists():
        return None
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        scores = f"{path.name.partition('.')[0]}.json"
        raise PollardError(
            f"{path} is damaged ({error}). Remove it, and {scores} beside it: `pollard run` makes both again."
        ) from None


def right_of(items: list[dict[str, Any]]) -> Right:
    """Who was right where: by what was asked and not by its place, so that two runs can be matched."""
    seen: Counter[tuple[str, str]] = Counter()
    right = {}
    for item in sorted(items, key=lambda item: item["index"]):
        asked = item["prompt"], item["gold"]
        right[*asked, seen[asked]] = bool(item["correct"])
        seen[asked] += 1
    return right


def compared(first: Right, second: Right) -> dict[str, Any]:
    """The counts, the difference (share of the first minus the second's) with its interval, and whether it is significant.

    Both must answer the same questions."""
    outcomes = Counter((first[question], second[question]) for question in first)
    found = pair(outcomes[True, True], outcomes[True, False], outcomes[False, True], outcomes[False, False])
    facts = found._asdict() | {"interval": list(found.interval), "n": found.n}
    return facts | {"significant": found.p < SIGNIFICANT}


def pairs(run: RunDirectory, models: dict[str, Any]) -> list[dict[str, Any]]:
    """Every two evaluated models of a run that answered the same questions; the reference is the second."""
    rights = {}
    order = [*REFERENCES, *(role for role in models if role not in REFERENCES)]
    for role in sorted((role for role, found in models.items() if found), key=order.index):
        items = read_items(run.evaluation / f"{role}.predictions.jsonl")
        if items:
            rights[role] = models[role]["split"], right_of(items)
    return [
        {"first": first, "second": second} | compared(rights[first][1], rights[second][1])
        for second, first in combinations(rights, 2)
        if rights[first][0] == rights[second][0] and rights[first][1].keys() == rights[second][1].keys()
    ]
