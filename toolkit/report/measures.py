"""How numbers are written on the page and in the card, and the rows of the table of measures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from toolkit.report.class_results import ClassResult
from toolkit.report.facts import ModelResult
from toolkit.report.fit_facts import FitAnswers
from toolkit.report.measurements import Fidelity, HarnessScore, TaskResult
from toolkit.runtime import formatting as formats


def interval(result: ModelResult | TaskResult | FitAnswers | ClassResult) -> str:
    """ "94.1–97.6 %"."""
    return formats.interval(result.interval) if result.interval else formats.MISSING


def kl(fidelity: Fidelity) -> str:
    """ "0.1234 ± 0.0056"."""
    return formats.with_error(fidelity.kl, fidelity.kl_error)


def acceptance(fidelity: Fidelity) -> str:
    """ "91.2 ± 0.4 %"."""
    return formats.percent_with_error(fidelity.acceptance, fidelity.acceptance_error)


def measured(score: HarnessScore) -> str:
    """ "0.5120 ± 0.0130"."""
    return formats.with_error(score.value, score.error)


FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": formats.percent, "interval": interval, "ends": formats.interval, "count": formats.count,
    "points": formats.points, "change": formats.change, "chance": formats.p_value, "loss": formats.loss,
    "amount": formats.amount, "size": formats.size, "speed": formats.speed, "duration": formats.duration,
    "precise_size": formats.precise_size, "signed_loss": formats.signed_loss, "correlation": "{:.2f}".format, "kl": kl,
    "acceptance": acceptance, "measured": measured, "mean_count": formats.mean_count, "seconds_each": formats.seconds_each,
}  # fmt: skip
"""How a number is written, by the name that the page gives in `data-format`."""


class Measure(NamedTuple):
    """A field of ModelResult, its label, and how it is written. Without a field, the whole result is."""

    label: str
    field: str
    format: str

    def value_in(self, result: ModelResult) -> Any:
        """What the format is given; None where it was not measured."""
        return getattr(result, self.field) if self.field else result


MEASURES = (
    Measure("Score", "score", "percent"),
    Measure("95 % interval", "", "interval"),
    Measure("Questions", "n", "count"),
    Measure("By flexible extraction", "flexible_score", "percent"),
    Measure("Likeliest choice is right", "likelihood_score", "percent"),
    Measure("Mean credit (F1, or the scorer's degree)", "credit", "percent"),
    Measure("95 % interval of the mean credit", "credit_interval", "ends"),
    Measure("Cut off by the token limit", "truncated", "count"),
    Measure("Share cut off", "truncated_share", "percent"),
    Measure("Tokens per answer", "tokens_per_answer", "mean_count"),
    Measure("Time per right answer", "seconds_per_right", "seconds_each"),
    Measure("Empty answers", "empty", "count"),
    Measure("Comparisons given up", "given_up", "count"),
    Measure("Parameters", "parameters", "amount"),
    Measure("Active per token", "active_parameters", "amount"),
    Measure("Of the experts after a token’s first, skipped", "skip_rate", "percent"),
    Measure("Of all its experts, skipped", "experts_skipped", "percent"),
    Measure("Checkpoint", "checkpoint_bytes", "size"),
    Measure("Peak memory", "peak_memory_bytes", "size"),
    Measure("Tokens/s", "tokens_per_second", "speed"),
)
"""The rows of the table of measures, where they tell something (telling.py)."""
KEY_FIGURES = (
    Measure("Accuracy", "score", "percent"),
    Measure("Parameters", "parameters", "amount"),
    Measure("Checkpoint", "checkpoint_bytes", "size"),
    Measure("Peak memory", "peak_memory_bytes", "size"),
    Measure("Active per token", "active_parameters", "amount"),
)
"""What stands at the top of the page: the first four that both the original and the result have."""
