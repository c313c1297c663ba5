"""What a stale part was made with: the keys whose values it knew otherwise, and of those the ones that decide it."""

import pytest
from small_run import small_recipe

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import described, differing, still_differing
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.stage_list import STAGES
from toolkit.pipeline.stages.round import Round
from toolkit.pipeline.stages.student import StudentAnswers


def test_keys_that_differ_are_named_by_their_path_with_the_earlier_value() -> None:
    old = {"seed": 0, "pruning": {"keep": 4, "schedule": None}, "task": {"stop": ["a"]}, "gone": 1}
    new = {"seed": 0, "pruning": {"keep": 2, "schedule": [6, 2]}, "task": {"stop": ["b"]}, "new": 1}
    assert differing(old, new) == {"pruning.keep": 4, "pruning.schedule": None, "task.stop": ["a"], "gone": 1}
    assert differing(old, old) == {}


def test_the_value_that_counts_is_the_one_of_its_making() -> None:
    first = still_differing({}, {"pruning.keep": 4}, {"pruning": {"keep": 2}})
    second = still_differing(first, {"pruning.keep": 2}, {"pruning": {"keep": 3}})
    assert first == second == {"pruning.keep": 4}
    assert still_differing(second, {"pruning.keep": 3}, {"pruning": {"keep": 4}}) == {}


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("prune", "pruning.keep=4, seed=1"),
        ("recover", "pruning.keep=4, finetuning.trainer.eval_strategy=no, seed=1"),
        ("control", "finetuning.trainer.eval_strategy=no, seed=1"),
        ("evaluate/original", "evaluation.max_new_tokens=8, seed=1"),
        ("evaluate/pruned", "pruning.keep=4, evaluation.max_new_tokens=8, seed=1"),
        ("rounds/6", "pruning.keep=4, finetuning.trainer.eval_strategy=no, seed=1"),
    ],
)
def test_only_what_decides_a_stage_is_said_of_it(stage: str, said: str) -> None:
    made_with = {
        "pruning.keep": 4, "finetuning.trainer.eval_strategy": "no", "evaluation.max_new_tokens": 8,
        "evaluation.batch_size": 2, "evaluation.models": ["pruned"], "model.placement": "copies", "seed": 1,
    }  # fmt: skip
    context = RunContext(small_recipe(pruning={"schedule": [6, 4]}))
    stages = [
        Round(context, early_rounds(context.recipe)[0]),
        *(slot.stage(context, slot.role) for slot in STAGES if slot.stage not in (Round, StudentAnswers)),
    ]
    sections = {each.name: each.sections for each in stages}
    assert described(made_with, sections[stage]) == said
