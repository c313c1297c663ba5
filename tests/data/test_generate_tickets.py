import importlib.util
import itertools
import json
from collections import Counter
from typing import Any

import pytest
from conftest import ROOT

from toolkit.recipe.file import load_recipe

TICKETS = ROOT / "data" / "tickets"
spec = importlib.util.spec_from_file_location("generate_tickets", TICKETS / "generate_tickets.py")
generate: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
spec.loader.exec_module(generate)  # type: ignore[union-attr]

SPLITS = ("train", "test")


def committed(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (TICKETS / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("split", SPLITS)
def test_the_committed_files_are_what_the_generator_writes(split: str) -> None:
    drawn = generate.distinct(split, generate.SIZES[split])
    assert committed(split) == [{"text": each.text, "label": each.label} for each in drawn]


def test_another_seed_draws_others() -> None:
    first, other = ([next(generate.stream("train", seed)) for _ in range(2)] for seed in (0, 1))
    assert first != other


def test_no_pair_of_wordings_is_in_both_splits_however_much_is_drawn() -> None:
    train, test = ({each.key for each in itertools.islice(generate.stream(split, 7), 5000)} for split in SPLITS)
    assert train and test and not train & test


def test_what_is_settled_is_of_another_queue_than_what_is_open() -> None:
    queue = {wording: label for label, wordings in generate.WORDINGS.items() for wording in wordings}
    for each in itertools.islice(generate.stream("train"), 500):
        wording, settled = each.key
        assert queue[wording] == each.label != queue.get(settled)


@pytest.mark.parametrize("split", SPLITS)
def test_every_queue_has_about_as_many_messages(split: str) -> None:
    counts, fair = Counter(line["label"] for line in committed(split)), generate.SIZES[split] / len(generate.WORDINGS)
    assert set(counts) == set(generate.WORDINGS)
    assert all(0.75 * fair < count < 1.25 * fair for count in counts.values())


@pytest.mark.parametrize("name", ["smollm", "smollm-mix"])
def test_the_recipes_name_every_queue(name: str) -> None:
    assert set(load_recipe(ROOT / "recipes" / f"{name}.yaml").task.labels or ()) == set(generate.WORDINGS)
