"""A verb names the stage to run to. Where the recipe has no such stage, running all the others would be no answer."""

import argparse

import pytest
from conftest import ROOT, raises

from toolkit.cli.verbs.running import LAST_STAGES, run_recipe

RECIPE = str(ROOT / "recipes" / "playground.yaml")


@pytest.mark.parametrize(
    ("verb", "overrides", "code"),
    [
        ("refit", [], "refit.not-asked"),
        ("fit", [], "fit.not-asked"),
        ("recover", ["evaluation.models=[original,pruned]"], "recover.not-asked"),
        ("recover", ["evaluation.models=[]"], "recover.not-asked"),
    ],
)
def test_a_verb_whose_stage_the_recipe_lacks_is_refused_before_anything_runs(verb: str, overrides: list[str], code: str) -> None:
    with raises(code, RECIPE):
        run_recipe(argparse.Namespace(recipe=RECIPE, overrides=overrides, fresh=False, json=False), LAST_STAGES[verb])
