"""A source that the student writes: its keys are left out where they are not used, and refused where they cannot work."""

import pytest
from pydantic import ValidationError

from toolkit.recipe.schema import Recipe

WRITTEN = {"self_generated": True, "writer": "student"}


def recipe(*sources: dict, **changes: object) -> Recipe:
    finetuning = {"teacher": "original", "data": list(sources)} | changes.pop("finetuning", {})  # type: ignore[operator]
    return Recipe.model_validate({"name": "student", "model": "a/model", "task": "gsm8k", "finetuning": finetuning} | changes)


def test_keys_that_say_nothing_are_in_no_dump() -> None:
    plain, said = recipe({"self_generated": True}), recipe({"self_generated": True, "writer": "original", "rounds": 1})
    assert plain == said and plain.model_dump() == said.model_dump()
    assert not {"writer", "rounds"} & (said.finetuning.data or [])[0].model_dump().keys()
    assert plain.finetuning.student_sources == [] and plain.finetuning.student_rounds == 0


def test_rounds_are_those_of_the_source() -> None:
    found = recipe({"task": "gsm8k"}, WRITTEN | {"rounds": 3}).finetuning
    assert found.student_rounds == 3 and [source.name for source in found.student_sources] == ["the student's answers"]
    assert recipe({"task": "gsm8k"}, WRITTEN, control=True).finetuning.student_rounds == 1


@pytest.mark.parametrize(
    ("sources", "changes", "said"),
    [
        ([{"task": "gsm8k", "writer": "student"}], {}, "add `self_generated: true`"),
        ([{"text": "a.txt", **WRITTEN}], {}, "a `text` has none"),
        ([{"self_generated": True, "rounds": 2}], {}, "add `writer: student`"),
        ([WRITTEN | {"rounds": 0}], {}, "greater than or equal to 1"),
        ([WRITTEN | {"writer": "nobody"}], {}, "'original' or 'student'"),
        ([WRITTEN], {"finetuning": {"teacher": None}}, "it needs `teacher: original`"),
        ([WRITTEN, WRITTEN | {"rounds": 2}], {}, "give these the same rounds"),
        ([{"task": "gsm8k"}, WRITTEN], {"control": True, "evaluation": {"models": ["original"]}}, "nothing but the control"),
        ([WRITTEN], {"control": True}, "there is nothing else"),
    ],
)
def test_what_cannot_work_is_refused(sources: list[dict], changes: dict, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        recipe(*sources, **changes)
    assert said in str(error.value)
