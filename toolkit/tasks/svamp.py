"""Simple sums in varied words (SVAMP, Patel et al., arXiv 2103.07191): 700 to train on and 300 to test on the hub.

    {"Body": "Edward spent $ 6 to buy 2 books each book costing him the same.", "Question": "How much did each book cost?",
     "Equation": "( 6.0 / 2.0 )", "Answer": 3.0}

The completion is the equation, then the number: "6 / 2 = 3\\n#### 3".
"""

import re

from toolkit.runtime.errors import PollardError
from toolkit.tasks.preset import Preset
from toolkit.tasks.templates import is_null, text_of

WHOLE = re.compile(r"(\d+)\.0\b")


def worked(row: dict) -> dict:
    """`work` and `number` as people write them, beside the columns that are there."""
    found = {}
    if not is_null(row.get("Equation")):
        work = _written("Equation", row).strip()
        inside = work.startswith("(") and work.endswith(")") and ")" not in work[:-1]
        found["work"] = work[1:-1].strip() if inside else work
    if not is_null(row.get("Answer")):
        found["number"] = _written("Answer", row)
    return row | found


def _written(column: str, row: dict) -> str:
    """Whole numbers without the ".0" that they have there. Raises PollardError for what is no text or number."""
    try:
        return WHOLE.sub(r"\1", text_of(row[column]))
    except ValueError as error:
        raise PollardError(f"the field `{column}`: {error}.") from None


SVAMP = Preset(
    about="simple sums in varied words (hub: ChilleD/SVAMP), the number behind ####",
    dataset="ChilleD/SVAMP",
    train="train",
    test="test",
    prompt="{Body} {Question}\nThink step by step, then write #### and the number.",
    completion="{work} = {number}\n#### {number}",
    scorer="numeric",
    prepare=worked,
    sizes={"train": 700, "test": 300},
)
