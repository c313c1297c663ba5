"""report.html: one page that stands alone, rendered from `RunFacts` and nothing else."""

import shlex
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from toolkit.recipe.file import dump_values
from toolkit.recipe.roles import Role
from toolkit.report import size_table, speed_table
from toolkit.report.charts import agreement, forest, keep_curve, loss_curve
from toolkit.report.cut_charts import channels_in_common, layer_marks, layer_strip, width_map
from toolkit.report.facts import ModelResult, RunFacts, look_up
from toolkit.report.fit_chart import prediction_chart, size_chart
from toolkit.report.fit_facts import AXIS_NAMES, SINGLE_CUTS, FitAnswers
from toolkit.report.fit_table import markdown_rows, rest_lines
from toolkit.report.heat import heat_map
from toolkit.report.measurements import Fidelity, HarnessScore, TaskResult
from toolkit.runtime import formatting as formats


def interval(result: ModelResult | TaskResult | FitAnswers) -> str:
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
    "percent": formats.percent, "interval": interval, "ends": formats.interval, "count": formats.count, "points": formats.points,
    "chance": formats.p_value, "loss": formats.loss, "amount": formats.amount, "size": formats.size, "speed": formats.speed,
    "duration": formats.duration, "precise_size": formats.precise_size, "signed_loss": formats.signed_loss,
    "correlation": "{:.2f}".format, "kl": kl, "acceptance": acceptance, "measured": measured,
    "mean_count": formats.mean_count, "seconds_each": formats.seconds_each,
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
"""The rows of the table of measures."""
KEY_FIGURES = (
    Measure("Accuracy", "score", "percent"),
    Measure("Parameters", "parameters", "amount"),
    Measure("Checkpoint", "checkpoint_bytes", "size"),
    Measure("Peak memory", "peak_memory_bytes", "size"),
    Measure("Active per token", "active_parameters", "amount"),
)
"""What stands at the top of the page: the first four that both the original and the result have."""


def render(report: RunFacts) -> str:
    """The page's HTML. Whatever the report holds is escaped: names and paths are other people's text."""
    evaluated = list(report.evaluated.values())
    result, original = report.evaluated_result, report.models[Role.ORIGINAL]
    both = [original, report.evaluated[result]] if result and original else []
    ranks = max((entry.get("ranks") or 1 for entry in report.stages.values()), default=1)
    return environment().get_template("report.html.j2").render(
        report=report,
        fact=_fact_writer(report),
        evaluated=evaluated,
        result=result,
        figures=[figure for figure in KEY_FIGURES if both and all(_is_key_figure(figure, model) for model in both)][:4],
        measures=measures_of(report),
        speeds=speed_table.rows(report.speed) if report.speed else [],
        speed_columns=speed_table.COLUMNS,
        speed_explanation=speed_table.explanation(report.speed) if report.speed else "",
        forest=forest(report.pairs),
        **_fit_drawings(report),
        **_cut_drawings(report),
        heat=heat_map(report.blocks, report.pruning.tokens if report.pruning else "all"),
        agreed=agreement(report.criteria),
        curve=loss_curve({Role.RECOVERED: report.training, Role.CONTROL: report.control_training}),
        sweep=keep_curve(report.sweep),
        kept_shares=[block.kept_share for block in report.blocks.values() if block.kept_share is not None],
        recipe=recipe_text(report),
        command=f"./launch.sh --ranks {ranks} {shlex.quote(report.recipe_path)} --fresh",
    )  # fmt: skip


def _fit_drawings(report: RunFacts) -> Mapping[str, object]:
    """What fit.html.j2 shows beside report.json."""
    if not report.fit:
        return {}
    return {
        "fit_sizes": size_chart(report.fit),
        "fit_predictions": prediction_chart(report.fit),
        "single_cuts": SINGLE_CUTS,
        "axis_names": AXIS_NAMES,
    }


def _cut_drawings(report: RunFacts) -> dict[str, Any]:
    """What cuts.html.j2 shows beside report.json; None for what the run did not cut."""
    width, layers = (report.cuts.width, report.cuts.layers) if report.cuts else (None, None)
    return {
        "channels": width_map(width, report.blocks) if width else None,
        "common": channels_in_common(width) if width else None,
        "channel_criteria": agreement(width.criteria) if width else None,
        "strip": layer_strip(layers) if layers else None,
        "layer_marks": layer_marks,
    }


def measures_of(report: RunFacts) -> list[Measure]:
    """Without those that no model has."""
    return [
        row for row in MEASURES if not row.field or any(row.value_in(model) is not None for model in report.evaluated.values())
    ]  # fmt: skip


def recipe_text(report: RunFacts) -> str | None:
    """The run's recipe as YAML; None where the run directory has none."""
    return dump_values(report.recipe) if report.recipe else None


def _is_key_figure(figure: Measure, model: ModelResult) -> bool:
    """Memory on CPU is that of the whole process, libraries included: no figure for the top of the page."""
    return figure.value_in(model) is not None and not (figure.field == "peak_memory_bytes" and model.device == "cpu")


def _fact_writer(report: RunFacts) -> Callable[[list[str | int], str], Markup]:
    """Writes one number of report.json and where it stands there, so that a program can read the page, too."""

    def fact(where: list[str | int], how: str) -> Markup:
        path, text = "/".join(map(str, where)), typeset(FORMATS[how](look_up(report, where)))
        return Markup('<span data-fact="{}" data-format="{}">{}</span>').format(path, how, text)

    return fact


@cache
def environment() -> Environment:
    """The templates of the page and of the card; a fact that a template asks for and the report lacks is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FORMATS | {"typeset": typeset, "last_line": last_line, "ranges": formats.ranges}
    made.globals |= {"formats": FORMATS, "size_names": size_table.ROWS, "markdown_rows": markdown_rows, "rest_lines": rest_lines}
    return made


def typeset(text: str) -> str:
    """Arrows, and percent signs that stay between their number and what it is a percentage of."""
    text = text.replace(" -> ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
    return text.replace(" % ", "\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def last_line(text: str) -> str:
    """Of a question: where it is asked, behind instructions and worked examples."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "(empty)")
