"""`pollard recipes --choices`: the names that other rooms register, as toolkit/recipe/choices.py.

The recipe's schema allows these names and must not import the rooms (imports point one way, and a recipe is read in an
instant), so they are written into a file that it imports; a test keeps the file in step with the lists.
"""

from collections.abc import Iterable

from toolkit.recovery.methods import METHODS
from toolkit.selection import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA
from toolkit.tasks import PRESETS
from toolkit.tasks.choices import LABEL_FORMATS
from toolkit.tasks.scorers import SCORER_FACTORIES, SCORERS

HEAD = '''"""Names that other rooms register, for the recipe's schema, which imports none of them.

Generated: `pollard recipes --choices > toolkit/recipe/choices.py` after a change of one of the lists.
"""

from typing import Literal
'''


def choices() -> str:
    """The text of toolkit/recipe/choices.py."""
    return HEAD + "".join(
        [
            _literal("Criterion", CRITERIA),
            _set("CRITERIA_ON_ALL_TOKENS", (name for name, rule in CRITERIA.items() if rule.all_tokens_only)),
            _literal("WidthCriterion", WIDTH_CRITERIA),
            _literal("LayerCriterion", LAYER_CRITERIA),
            _literal("Method", METHODS),
            _set("METHODS_WITH_ADAPTERS", (name for name, method in METHODS.items() if method.adapters)),
            _literal("TaskName", PRESETS),
            _literal("ScorerName", (*SCORERS, *SCORER_FACTORIES)),
            _literal("LabelFormat", LABEL_FORMATS),
        ]
    )


def _literal(name: str, values: Iterable[str]) -> str:
    return f"\n{name} = Literal[\n{_lines(values)}]\n"


def _set(name: str, values: Iterable[str]) -> str:
    return f"\n{name} = {{\n{_lines(values)}}}\n"


def _lines(values: Iterable[str]) -> str:
    return "".join(f'    "{value}",\n' for value in values)
