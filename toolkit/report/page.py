"""report.html: one page that stands alone, rendered from `RunFacts` and nothing else."""

import shlex
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from toolkit.recipe.file import dump_values, without_nulls
from toolkit.recipe.roles import Role
from toolkit.report import size_table, speed_table
from toolkit.report.charts import agreement, forest, keep_curve, loss_curve
from toolkit.report.contents import Contents
from toolkit.report.cut_charts import channels_in_common, layer_marks, layer_strip, width_map
from toolkit.report.dots import decision, score_dots
from toolkit.report.entropy_chart import entropy_curve
from toolkit.report.facts import ModelResult, RunFacts, look_up
from toolkit.report.fit_chart import prediction_chart, size_chart
from toolkit.report.fit_facts import AXIS_NAMES, SINGLE_CUTS
from toolkit.report.fit_table import markdown_rows, rest_lines
from toolkit.report.heat import heat_map
from toolkit.report.local_paths import model_name
from toolkit.report.measures import FORMATS, KEY_FIGURES, Measure
from toolkit.report.telling import speeds_tell, table_measures
from toolkit.runtime import formatting as formats


def render(report: RunFacts) -> str:
    """The page's HTML. Whatever the report holds is escaped: names and paths are other people's text."""
    evaluated = list(report.evaluated.values())
    result, original = report.evaluated_result, report.models[Role.ORIGINAL]
    decisive = report.pair_of(result, Role.ORIGINAL) if result else None
    trainings = {Role.RECOVERED: report.training, Role.CONTROL: report.control_training}
    table = table_measures(evaluated)
    contents = Contents()
    both = [original, report.evaluated[result]] if result and original else []
    ranks = max((entry.get("ranks") or 1 for entry in report.stages.values()), default=1)
    return environment().get_template("report.html.j2").render(
        report=report,
        fact=_fact_writer(report),
        evaluated=evaluated,
        result=result,
        figures=[figure for figure in KEY_FIGURES if both and all(_is_key_figure(figure, model) for model in both)][:4],
        measures=table.shown,
        zero_measures=table.zero,
        speeds_hidden=not speeds_tell(evaluated),
        contents=contents,
        model_name=model_name(report),
        heading=contents.heading,
        decisive=decisive,
        decisive_at=report.pairs.index(decisive) if decisive else None,
        decision=decision(decisive, report.noninferiority.margin if report.noninferiority else None),
        dots=score_dots(report.evaluated),
        entropy=entropy_curve(trainings),
        speeds=speed_table.rows(report.speed) if report.speed else [],
        speed_columns=speed_table.COLUMNS,
        speed_explanation=speed_table.explanation(report.speed) if report.speed else "",
        forest=forest(report.pairs),
        **_fit_drawings(report),
        **_cut_drawings(report),
        heat=heat_map(report.blocks, report.pruning.tokens if report.pruning else "all"),
        agreed=agreement(report.criteria),
        curve=loss_curve(trainings),
        sweep=keep_curve(report.sweep),
        kept_shares=[block.kept_share for block in report.blocks.values() if block.kept_share is not None],
        recipe=recipe_text(report.recipe),
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


def recipe_text(recipe: Mapping[str, Any] | None) -> str | None:
    """A run's recipe as YAML, without keys that are null; None where the run directory has none."""
    return dump_values(without_nulls(recipe)) if recipe else None


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
    made.filters |= FORMATS | {"plain": formats.plain_points, "capitalize_first": lambda text: text[:1].upper() + text[1:]}
    made.filters |= {"typeset": typeset, "last_line": last_line, "ranges": formats.ranges}
    made.globals |= {"formats": FORMATS, "size_names": size_table.ROWS, "markdown_rows": markdown_rows, "rest_lines": rest_lines}
    return made


def typeset(text: str) -> str:
    """Arrows, and percent signs that stay between their number and what it is a percentage of."""
    text = text.replace(" -> ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
    return text.replace(" % ", "\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def last_line(text: str) -> str:
    """Of a question: where it is asked, behind instructions and worked examples."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "(empty)")
