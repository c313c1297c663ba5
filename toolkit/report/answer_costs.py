"""What an answer costs, beside how often it is right: tokens for each, and seconds for each right one.

A pruned model that rambles, or that is wrong more often, can be faster per token and slower per right answer.
"""

from collections.abc import Mapping

from toolkit.recipe.roles import Role
from toolkit.report.facts import ModelResult

SAME_CONDITIONS = ("device", "ranks", "batch_size", "backend", "dtype", "split", "n", "max_new_tokens", "samples")
"""Fields of ModelResult that must be the same for all models whose seconds are compared."""


def with_costs(models: Mapping[Role, ModelResult | None]) -> dict[Role, ModelResult | None]:
    """The models with `tokens_per_answer`, `truncated_share` and `seconds_per_right`; None for what is not known.

    Seconds only where every model that was timed as a whole was so under the same conditions, on a machine that is known: not
    behind a server, and not where some answers were there already.
    """
    timed = [result for result in models.values() if result and _is_timed(result)]
    alike = len({tuple(getattr(result, field) for field in SAME_CONDITIONS) for result in timed}) == 1
    return {role: result and result.model_copy(update=_costs(result, alike)) for role, result in models.items()}


def _costs(result: ModelResult, alike: bool) -> dict[str, float | None]:
    answers = result.n * (result.samples or 1)
    seconds = result.seconds if alike and _is_timed(result) else None
    return {
        "tokens_per_answer": result.generated_tokens / answers if result.generated_tokens is not None and answers else None,
        "truncated_share": result.truncated / result.n if result.truncated is not None and result.n else None,
        "seconds_per_right": seconds / result.correct if seconds is not None and result.correct else None,
    }


def _is_timed(result: ModelResult) -> bool:
    """Whether `seconds` is the time of all its answers on a known machine."""
    return (
        None not in (result.seconds, result.tokens_per_second, result.device) and not result.logged and result.backend != "server"
    )
