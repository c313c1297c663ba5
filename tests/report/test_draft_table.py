"""Laws of the table of drafts: the best of every kind, the best first; and commands for those servers that can."""

import json
import shlex

import pytest

from toolkit.report.draft_table import NO_SERVER, DraftFacts, DraftLength, DraftsFacts, MeasuredDraft, server_lines, show_drafts


def draft(kind: str, predicted: dict[int, float], description: str = "", path: str | None = None, **more: object) -> DraftFacts:
    lengths = [
        DraftLength(length=length, passes=40, drafted=80, accepted=60, predicted=value) for length, value in predicted.items()
    ]
    cost = None if kind == "lookup" else (0.5, 0.4, 0.6)
    values = {"kind": kind, "description": description, "path": path, "more_bytes": 0, "cost": cost, "lengths": lengths}
    return DraftFacts.model_validate(values | more)


@pytest.fixture
def facts() -> DraftsFacts:
    measured = MeasuredDraft(length=2, answers=3, speed_up=(1.1, 0.9, 1.3), same=True, passes_as_replayed=True)
    drafts = [
        draft("blocks", {1: 0.5, 2: 0.4}, "without the experts of block 0"),
        draft("blocks", {1: 0.9, 2: 1.5}, "without the experts of blocks 0, 1", measured=measured),
        draft("layers", {1: 0.7, 2: 0.8}),
        draft("layers", {1: 0.1, 2: 0.2}),
        draft("recovered", {1: 1.1, 2: 1.3}, path="runs/my task/recovered", more_bytes=7 * 2**20),
        draft("lookup", {1: 1.2, 2: 1.1}),
    ]
    return DraftsFacts.model_validate({
        "run": "runs/my task", "target": "original", "path": "my model", "device": "cpu", "dtype": "float32", "threads": 1,
        "questions": 4, "tokens": 100, "agreement": 0.99, "pass_seconds": (0.01, 0.009, 0.02),
        "verifying": {0: (1, 1, 1), 1: (1.2, 1.1, 1.3), 2: (1.4, 1.3, 1.5)}, "drafts": drafts, "left_out": {"k1": "no experts"},
    })  # fmt: skip


def test_of_every_kind_the_best_is_shown_and_the_best_comes_first(facts: DraftsFacts) -> None:
    best = facts.best_of_kinds
    assert [each.kind for each in best] == ["blocks", "recovered", "lookup", "layers"]
    assert best[0].description.endswith("0, 1") and best[0].best.length == 2


def test_commands_can_be_pasted_into_a_shell(facts: DraftsFacts) -> None:
    lines = {(line.kind, line.server): line for line in server_lines(facts)}
    _, _, model, _, config = shlex.split(lines["recovered", "vLLM"].command)
    assert model == "my model" and json.loads(config)["model"] == "runs/my task/recovered"
    assert json.loads(shlex.split(lines["lookup", "vLLM"].command)[-1])["num_speculative_tokens"] == 1
    assert "--draft-max 2" in lines["recovered", "llama.cpp"].command
    assert {line.kind for line in lines.values() if line.server == "no server"} <= NO_SERVER.keys()


def test_what_is_shown_names_costs_measurements_and_what_was_left_out(facts: DraftsFacts, capsys) -> None:
    show_drafts(facts)
    out = " ".join(capsys.readouterr().out.split())
    for part in ("1.50", "1.10 (0.90–1.30)", "+7.0 MiB", "no k1: no experts", "99", "vllm serve"):
        assert part in out, part


def test_the_file_holds_every_draft_at_every_length(facts: DraftsFacts) -> None:
    again = DraftsFacts.model_validate_json(json.dumps(facts.as_json()))
    assert again == facts and len(again.drafts) == 6
