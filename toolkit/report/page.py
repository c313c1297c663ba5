"""report.html: one page that stands alone, rendered from report.json's dictionary and nothing else."""

import shlex
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from toolkit.report import formats
from toolkit.report.charts import heat_map, keep_curve, loss_curve


def render(report: dict[str, Any]) -> str:
    """The page's HTML. Whatever the report holds is escaped: names and paths are other people's text."""
    return _template().render(
        report=report,
        evaluated=[found for found in report["models"].values() if found],
        heat=heat_map(report),
        curve=loss_curve(report["training"]),
        sweep=keep_curve(report["sweep"]),
        kept_shares=[block["kept_share"] for block in report["blocks"].values() if block["kept_share"] is not None],
        recipe=yaml.safe_dump(report["recipe"], sort_keys=False) if report["recipe"] else None,
        command=f"./launch.sh {shlex.quote(report['recipe_path'])} --fresh",
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a fact the template asks for and the report lacks is a bug, not a blank
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (
        formats.percent,
        formats.interval,
        formats.points,
        formats.chance,
        formats.loss,
        formats.amount,
        formats.size,
        formats.speed,
        formats.duration,
        typeset,
    ):
        environment.filters[write.__name__] = write
    return environment.get_template("report.html.j2")


def typeset(text: str) -> str:
    """Arrows, and percent signs that stay between their number and what it is a percentage of."""
    return text.replace("->", "→").replace(" % ", "\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%")
