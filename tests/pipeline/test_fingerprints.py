"""Law: a version of the toolkit that changes no result changes no fingerprint, or finished work would be done again.

fingerprints.json holds those of fingerprints.yaml under overrides that reach every stage, as the version before stages were
objects made them. Where a result is meant to change, its fingerprint changes, and is written here anew.
"""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.stage_list import STAGES, stages_of
from toolkit.pipeline.stages.round import Round
from toolkit.pipeline.stages.student import StudentAnswers
from toolkit.recipe.file import load_recipe

RECIPE = Path(__file__).with_name("fingerprints.yaml")
FROZEN = json.loads(Path(__file__).with_name("fingerprints.json").read_text())


def context_of(case: str, monkeypatch: pytest.MonkeyPatch) -> RunContext:
    monkeypatch.chdir(ROOT)
    return RunContext(load_recipe(RECIPE, FROZEN[case]["overrides"]))


@pytest.mark.parametrize("case", FROZEN)
def test_finished_work_stays_finished(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stages_of(context_of(case, monkeypatch))
    assert {stage.name: stage.fingerprint() for stage in stages} == FROZEN[case]["fingerprints"]
    assert [stage.name for stage in stages] == list(FROZEN[case]["fingerprints"])  # the order in which they are done


def test_so_does_that_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    case = "rounds with a teacher"
    (first,) = (stage for stage in stages_of(context_of(case, monkeypatch)) if isinstance(stage, Round))
    assert {stage.name: stage.fingerprint() for stage in stages_of(first.own_context())} == FROZEN[case]["first_round"]


def test_every_stage_is_frozen() -> None:
    frozen = {name for case in FROZEN.values() for name in case["fingerprints"]}
    others = {"fidelity/control", "harness/control", "first_task/recovered"}  # the last is of a checkpoint that another run makes
    one_each = {slot.name for slot in STAGES if slot.stage not in (Round, StudentAnswers)}
    assert one_each - others <= frozen
