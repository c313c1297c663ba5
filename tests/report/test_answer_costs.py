"""Laws: tokens are per answer that was written; seconds are per right one, and only where they can be compared."""

from toolkit.recipe.roles import Role
from toolkit.report.answer_costs import with_costs
from toolkit.report.facts import ModelResult


def result(**changes: object) -> ModelResult:
    known = {
        "score": 0.5, "correct": 10, "n": 20, "interval": (0.3, 0.7), "truncated": 5, "generated_tokens": 400, "seconds": 30.0,
        "tokens_per_second": 13.3, "device": "cpu", "ranks": 1, "batch_size": 8, "backend": "transformers",
    }  # fmt: skip
    return ModelResult.model_validate(known | changes)


def costs(*results: ModelResult | None) -> list[tuple[float | None, float | None, float | None]]:
    models = with_costs(dict(zip((Role.ORIGINAL, Role.PRUNED, Role.RECOVERED), results, strict=False)))
    return [(r.tokens_per_answer, r.truncated_share, r.seconds_per_right) for r in models.values() if r]


def test_an_answer_costs_its_tokens_and_a_right_one_its_share_of_the_time() -> None:
    assert costs(result(), None, result(correct=5, generated_tokens=800, truncated=0)) == [(20, 0.25, 3), (40, 0, 6)]


def test_of_several_samples_each_is_an_answer() -> None:
    assert costs(result(samples=4))[0] == (5, 0.25, 3)


def test_who_is_never_right_has_no_time_per_right_answer() -> None:
    assert [seconds for _, _, seconds in costs(result(), result(correct=0))] == [3, None]


def test_seconds_are_compared_only_between_models_that_were_timed_alike() -> None:
    for change in ({"device": "NVIDIA H100"}, {"batch_size": 4}, {"ranks": 2}, {"n": 10}, {"backend": "continuous"}):
        assert [seconds for _, _, seconds in costs(result(), result(**change))] == [None, None], change


def test_what_was_not_timed_as_a_whole_is_a_dash_and_does_not_hide_the_others() -> None:
    for change in ({"logged": 3}, {"tokens_per_second": None}, {"backend": "server", "device": None}, {"seconds": None}):
        assert [seconds for _, _, seconds in costs(result(), result(**change))] == [3, None], change


def test_an_earlier_file_without_these_numbers_has_none() -> None:
    assert costs(result(truncated=None, generated_tokens=None, seconds=None)) == [(None, None, None)]
