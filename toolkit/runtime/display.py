"""How an object shows itself: one line where Python prints it, a small table where a notebook does.

    Plan(4 of 8 experts by reap, 2 active per token)

Tensors and lists of thousands stay out of both: they are in the object's fields.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST_ROWS = 12
LONGEST = 80  # characters of a fact, or of a cell


@dataclass(frozen=True)
class Overview:
    """What is worth knowing at first sight. `facts` are the line; in a notebook `rows` of `columns` follow, and a `note`."""

    facts: Sequence[str]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


class Displayed:
    """Mixed in first, gives an object with an `overview` both forms."""

    def overview(self) -> Overview:
        """Must not raise: it is also asked for half-built objects, in a debugger."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(shortened, self.overview().facts))})"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return html_of(type(self).__name__, self.overview())


def html_of(title: str, overview: Overview) -> str:
    """A fragment for a notebook's cell. Everything is escaped: names, questions and answers are other people's text."""
    parts = [f"<b>{escape(title)}</b> {escape(' · '.join(map(shortened, overview.facts)))}"]
    if overview.rows:
        head = "".join(f"<th>{escape(column)}</th>" for column in overview.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(shortened(cell))}</td>' for cell in row)}</tr>" for row in overview.rows[:MOST_ROWS]
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    if more := len(overview.rows) - MOST_ROWS:
        parts += [f"<small>… and {more:,} more</small>"] * (more > 0)
    if overview.note:
        parts.append(f"<small>{escape(overview.note)}</small>")
    return f"<div>{'<br>'.join(parts)}</div>"


def shortened(text: str, longest: int = LONGEST) -> str:
    """On one line, its end left out where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"
