"""Laws of the warnings about what was lost beside the task: they come where it clearly was, and where it cannot be told."""

import pytest
from made_up_run import off_task_loss

from toolkit.recipe.roles import Role
from toolkit.report.off_task_facts import CLEAR_RISE, OffTaskLoss, Training, off_task_warnings


def losses(**of: float | None) -> dict[Role, OffTaskLoss]:
    return {Role(role): OffTaskLoss.model_validate(off_task_loss(loss)) for role, loss in of.items()}


def trained(method: str = "qlora", logged: tuple[float | None, ...] = (1.0, 0.2), **of: float | None) -> list[str]:
    training = Training(method, Role.PRUNED, Role.RECOVERED, logged)
    return off_task_warnings(losses(**({"original": 2.0, "pruned": 2.2} | of)), [training])


@pytest.mark.parametrize("method", ["qlora", "lora", "full", "experts"])
def test_a_loss_that_rises_while_the_trainings_falls_is_told_for_every_method(method: str) -> None:
    (warning,) = trained(method, recovered=2.9)
    for said in (method, "2.2000 to 2.9000", "+0.7000", "1.0000 -> 0.2000", "finetuning.teacher"):
        assert said in warning


def test_what_counts_is_the_model_that_training_began_with() -> None:
    assert trained(recovered=2.2 + CLEAR_RISE - 1e-6) == []  # although the original's loss is lower still
    assert len(trained(recovered=2.2 + CLEAR_RISE + 1e-6)) == 1
    assert trained(recovered=1.9) == []


def test_a_loss_that_is_not_finite_has_risen() -> None:
    assert "not finite" in trained(recovered=None)[0]


def test_without_a_falling_training_loss_nothing_is_said_of_it() -> None:
    for logged in ((1.0, 1.0), (0.2, 1.0), (1.0,), (), (None, 0.5), (1.0, None)):
        assert trained(logged=logged, recovered=2.9) == []
    assert len(trained(logged=(1.0, None, 0.5), recovered=2.9)) == 1


def test_a_model_that_was_not_measured_is_compared_with_nothing() -> None:
    training = [Training("full", Role.PRUNED, Role.RECOVERED, (1.0, 0.2))]
    assert off_task_warnings({}, training) == off_task_warnings(losses(original=2.0, recovered=9.0), training) == []


def test_the_control_is_judged_by_the_original() -> None:
    control = Training("full", Role.ORIGINAL, Role.CONTROL, (1.0, 0.2))
    (warning,) = off_task_warnings(losses(original=2.0, control=2.5), [control])
    assert "2.0000 to 2.5000" in warning


def test_texts_that_the_original_cannot_read_say_nothing_of_the_others() -> None:
    (warning,) = trained(original=6.5, recovered=9.0)  # by guessing 6.5
    assert "6.5000" in warning and "evaluation.off_task" in warning and "2.2000" not in warning
    assert len(trained(original=6.4, recovered=9.0)) == 1


def test_neither_do_texts_that_the_tokenizer_does_not_know() -> None:
    found = {Role.ORIGINAL: OffTaskLoss.model_validate(off_task_loss(0.5) | {"unknown": 1_400})}  # of 7,000
    (warning,) = off_task_warnings(found, [])
    assert "20.0 %" in warning
    few = {Role.ORIGINAL: OffTaskLoss.model_validate(off_task_loss(0.5) | {"unknown": 700})}
    assert off_task_warnings(few, []) == []
