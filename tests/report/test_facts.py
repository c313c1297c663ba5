"""Law: RunFacts is report.json, read and written without a loss; tests/samples/report.json is what earlier versions wrote."""

import json
import pickle

import pytest
from conftest import ROOT
from pydantic import ValidationError

from toolkit.recipe.roles import Role
from toolkit.report import card, render
from toolkit.report.facts import RunFacts, look_up
from toolkit.report.measurements import OffTaskResult, SpeedTable

SAMPLE = (ROOT / "tests" / "samples" / "report.json").read_text(encoding="utf-8")


def test_an_earlier_report_is_read_and_written_byte_for_byte() -> None:
    assert json.dumps(RunFacts.model_validate_json(SAMPLE).as_json(), indent=1) + "\n" == SAMPLE


def test_an_earlier_report_can_be_shown() -> None:
    facts = RunFacts.model_validate_json(SAMPLE)
    assert facts.headline.replace(" -> ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")[:20] in render(facts)
    assert f"**{facts.headline}**" in card(facts, "here")


# The main rank reads the run, and sends the facts to the others.
def test_facts_can_be_sent_to_other_ranks() -> None:
    facts = RunFacts.model_validate_json(SAMPLE)
    received = pickle.loads(pickle.dumps(facts))
    assert received == facts and json.dumps(received.as_json()) == json.dumps(facts.as_json())


def test_every_value_is_found_under_its_path() -> None:
    facts, values = RunFacts.model_validate_json(SAMPLE), json.loads(SAMPLE)
    assert look_up(facts, ["models", "recovered", "score"]) == values["models"]["recovered"]["score"]
    assert look_up(facts, ["sweep", "rows", 1, "task", "interval", 0]) == values["sweep"]["rows"][1]["task"]["interval"][0]
    assert facts.models[Role.RECOVERED] == look_up(facts, ["models", "recovered"])


def test_a_file_keeps_its_order_its_numbers_and_what_no_report_reads() -> None:
    written = '{"loss": 2, "name": "notes.txt", "later": [1.0], "left_out": null}'
    assert json.dumps(OffTaskResult.model_validate_json(written).as_json()) == written


@pytest.mark.parametrize("missing", ["name", "stages", "models", "origin", "pairs"])
def test_what_is_no_report_is_refused(missing: str) -> None:
    values = json.loads(SAMPLE)
    del values[missing]
    with pytest.raises(ValidationError, match=missing):
        RunFacts.model_validate(values)


def test_facts_do_not_change() -> None:
    facts = RunFacts.model_validate_json(SAMPLE)
    with pytest.raises(ValidationError, match="frozen"):
        facts.headline = "better"  # type: ignore[misc]
    assert isinstance(facts.speed, SpeedTable)
