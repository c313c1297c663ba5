"""Law: the card names others' work as the hub does, and nothing that only this machine has."""

from pathlib import Path

import pytest
from made_up_run import make_run

from toolkit.pipeline.run_facts import read_run_facts


def origin_of(folder: Path, **changes: object) -> dict:
    return read_run_facts(make_run(folder, **changes).path).origin


def test_a_hub_model_and_the_tasks_data_set_are_named(tmp_path: Path) -> None:
    found = origin_of(tmp_path, model="mistralai/Mixtral-8x7B-v0.1", task="gsm8k")
    assert (found.base_model, found.datasets) == ("mistralai/Mixtral-8x7B-v0.1", ["openai/gsm8k"])


@pytest.mark.parametrize(
    "task", [{"train": "a.jsonl", "test": "b.jsonl", "prompt": "{q}", "completion": "{a}"}, "playground/logic"]
)
def test_local_ones_are_not(tmp_path: Path, task: object) -> None:
    found = origin_of(tmp_path, task=task)  # the model is path/of/model
    assert (found.base_model, found.datasets) == (None, [])


def test_the_data_sets_of_a_mix_are_named_once(tmp_path: Path) -> None:
    mix = [{"task": "gsm8k"}, {"task": {"dataset": "lab/more", "prompt": "{q}", "completion": "{a}"}}, {"text": "notes.txt"}]
    assert origin_of(tmp_path, task="gsm8k", finetuning={"data": mix}).datasets == ["openai/gsm8k", "lab/more"]


def test_licence_and_language_are_those_of_the_originals_card(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.pruned.mkdir()
    (run.pruned / "README.md").write_text(
        "---\nlicense: apache-2.0\nlicense_link: 2026-01-31\nlanguage: [en, no]\ntags: [x]\n---\n# Theirs\n"
    )
    (run.pruned / "config.json").write_text('{"model_type": "mixtral"}')
    found = read_run_facts(run.path).origin
    licence = {"license": "apache-2.0", "license_link": "2026-01-31", "language": ["en", "no"]}
    assert (found.card, found.family) == (licence, "mixtral")


@pytest.mark.parametrize("text", ["no metadata", "---\n[\n---\n", "---\n- a list\n---\n", ""])
def test_a_card_without_readable_metadata_says_nothing(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path)
    run.pruned.mkdir()
    (run.pruned / "README.md").write_text(text)
    assert read_run_facts(run.path).origin.card == {}
