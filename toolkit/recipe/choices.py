"""Names that other rooms register, for the recipe's schema, which imports none of them.

Generated: `pollard recipes --choices > toolkit/recipe/choices.py` after a change of one of the lists.
"""

from typing import Literal

Criterion = Literal[
    "random",
    "frequency",
    "gate_weight",
    "soft_activation",
    "ean",
    "weighted_ean",
    "reap",
    "easy_ep",
    "max_activation",
    "mean_activation",
    "mean_squared_activation",
    "aimer",
    "reconstruction",
]

CRITERIA_ON_ALL_TOKENS = {
    "reconstruction",
}

WidthCriterion = Literal[
    "energy",
    "taylor",
    "fisher",
    "magnitude",
    "random",
]

LayerCriterion = Literal[
    "dev_loss",
    "influence",
    "angular",
    "top",
    "random",
]

Method = Literal[
    "full",
    "lora",
    "qlora",
    "router",
    "experts",
    "new",
    "spp",
]

METHODS_WITH_ADAPTERS = {
    "lora",
    "qlora",
}

TaskName = Literal[
    "custom",
    "gsm8k",
    "math",
    "svamp",
    "multiple_choice",
    "classification",
    "playground/arithmetic",
    "playground/sorting",
    "playground/reversing",
    "playground/facts",
    "playground/logic",
    "playground/code",
]

ScorerName = Literal[
    "exact",
    "numeric",
    "math",
    "contains",
    "choice",
    "f1",
    "regex",
    "label",
]

LabelFormat = Literal[
    "letter",
    "text",
    "index_from_0",
    "index_from_1",
]
