"""report.html: one page that stands alone, rendered from report.json's dictionary and nothing else."""

import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from toolkit.recipe.file import dump_values
from toolkit.report import speed_table
from toolkit.report.charts import agreement, forest
from toolkit.report.curves import keep_curve, loss_curve
from toolkit.report.fidelity_harness import acceptance, kl, measured
from toolkit.report.heat import heat_map
from toolkit.runtime import formatting as formats

FORMATS: dict[str, Callable[[Any], str]] = {
    write.__name__: write
    for write in (
        formats.percent, formats.interval, formats.count, formats.points, formats.p_value, formats.loss, formats.amount,
        formats.size, formats.speed, formats.duration, kl, acceptance, measured,
    )
}  # fmt: skip
ROWS = (  # label, key of a model's measures (none: several of them), format; a row that no model has is left out
    ("Score", "score", "percent"),
    ("95 % interval", "", "interval"),
    ("Questions", "n", "count"),
    ("By flexible extraction", "flexible_score", "percent"),
    ("Likeliest choice is right", "likelihood_score", "percent"),
    ("Mean credit (F1, or the scorer's degree)", "credit", "percent"),
    ("Cut off by the token limit", "truncated", "count"),
    ("Empty answers", "empty", "count"),
    ("Comparisons given up", "given_up", "count"),
    ("Parameters", "parameters", "amount"),
    ("Active per token", "active_parameters", "amount"),
    ("Of the experts after a token’s first, skipped", "skip_rate", "percent"),
    ("Of all its experts, skipped", "experts_skipped", "percent"),
    ("Checkpoint", "checkpoint_bytes", "size"),
    ("Peak memory", "peak_memory_bytes", "size"),
    ("Tokens/s", "tokens_per_second", "speed"),
)
FIGURES = (
    ("Accuracy", "score", "percent"),
    ("Parameters", "parameters", "amount"),
    ("Checkpoint", "checkpoint_bytes", "size"),
    ("Peak memory", "peak_memory_bytes", "size"),
    ("Active per token", "active_parameters", "amount"),
)


def render(report: dict[str, Any]) -> str:
    """The page's HTML. Whatever the report holds is escaped: names and paths are other people's text."""
    models = report["models"]
    evaluated = [found for found in models.values() if found]
    result = next((role for role in ("recovered", "pruned") if models.get(role)), None)
    both = [models["original"], models[result]] if result and models["original"] else []
    ranks = max((entry.get("ranks") or 1 for entry in report["stages"].values()), default=1)
    return environment().get_template("report.html.j2").render(
        report=report,
        fact=_facts(report),
        evaluated=evaluated,
        result=result,
        figures=[figure for figure in FIGURES if both and all(_tells(found, figure[1]) for found in both)][:4],
        rows=[row for row in ROWS if not row[1] or any(found.get(row[1]) is not None for found in evaluated)],
        speeds=speed_table.rows(report["speed"]) if report["speed"] else [],
        speed_columns=speed_table.COLUMNS,
        speed_told=speed_table.told(report["speed"]) if report["speed"] else "",
        forest=forest(report["pairs"]),
        heat=heat_map(report),
        agreed=agreement(report["criteria"]),
        curve=loss_curve({"recovered": report["training"], "control": report["control_training"]}),
        sweep=keep_curve(report["sweep"]),
        kept_shares=[block["kept_share"] for block in report["blocks"].values() if block["kept_share"] is not None],
        recipe=recipe_text(report),
        command=f"./launch.sh --ranks {ranks} {shlex.quote(report['recipe_path'])} --fresh",
    )  # fmt: skip


def recipe_text(report: dict[str, Any]) -> str | None:
    return dump_values(report["recipe"]) if report["recipe"] else None


def _tells(found: dict[str, Any], key: str) -> bool:
    """Memory on CPU is that of the whole process, libraries included: no figure for the top of the page."""
    return found[key] is not None and not (key == "peak_memory_bytes" and found["device"] == "cpu")


def _facts(report: dict[str, Any]) -> Callable[[list[str | int], str], Markup]:
    """Writes one number of report.json and where it stands there, so that a program can read the page, too."""

    def fact(where: list[str | int], how: str) -> Markup:
        found: Any = report
        for key in where:
            found = found[key]
        path = "/".join(map(str, where))
        return Markup('<span data-fact="{}" data-format="{}">{}</span>').format(path, how, typeset(FORMATS[how](found)))

    return fact


@cache
def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        undefined=StrictUndefined,  # a fact the template asks for and the report lacks is a bug, not a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= FORMATS | {
        "typeset": typeset,
        "last_line": last_line,
    }
    made.globals["formats"] = FORMATS
    return made


def typeset(text: str) -> str:
    """Arrows, and percent signs that stay between their number and what it is a percentage of."""
    text = text.replace(" -> ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
    return text.replace(" % ", "\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")


def last_line(text: str) -> str:
    """Of a question: where it is asked, behind instructions and worked examples."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "(empty)")
