"""Every task that has a name, in the order of `pollard tasks`."""

from toolkit.tasks.classification import CLASSIFICATION
from toolkit.tasks.gsm8k import GSM8K
from toolkit.tasks.hendrycks_math import MATH_PRESET
from toolkit.tasks.multiple_choice import MULTIPLE_CHOICE
from toolkit.tasks.playground import PLAYGROUND
from toolkit.tasks.preset import Preset
from toolkit.tasks.svamp import SVAMP

PRESETS: dict[str, Preset] = {
    "custom": Preset(about="your own JSONL files or hub data set, by templates over its columns", scorer="exact"),
    "gsm8k": GSM8K,
    "math": MATH_PRESET,
    "svamp": SVAMP,
    "multiple_choice": MULTIPLE_CHOICE,
    "classification": CLASSIFICATION,
    **PLAYGROUND,
}
