"""The recipe that `pollard init` writes: what was recognised, what was asked, and defaults that say what they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.recipe.file import dump_value

CALIBRATED, LENGTH_STEP, ANSWER_STEP = 512, 64, 16
"""Examples that calibration reads at most; of what the limits of a text and of an answer are multiples."""


class TokenLimits(NamedTuple):
    """In tokens."""

    max_length: int
    max_new_tokens: int


UNKNOWN = TokenLimits(1024, 512)


def limits_for(whole: Sequence[int], completions: Sequence[int]) -> TokenLimits:
    """Room for the longest of the examples, given the tokens of each and of its completion; half as much again for an answer."""
    return TokenLimits(_rounded(max(whole), LENGTH_STEP), _rounded(1.5 * max(completions), ANSWER_STEP))


def _rounded(tokens: float, step: int) -> int:
    return -int(-tokens // step) * step


def recipe_text(
    path: Path,
    name: str,
    model: str,
    task: Mapping[str, Any],
    keep: int | float,
    understood: Sequence[str],
    limits: TokenLimits | None = None,
) -> str:
    """The recipe as YAML, for the file `path`. `understood`: lines of comment on the task; without `limits` they are guessed."""
    guess = "" if limits else "# a guess: the model was not at hand"
    length, new = limits or UNKNOWN
    comments = "".join(f"# {' '.join(line.split())}\n" for line in understood)  # names of columns may have lines
    keys = "".join(f"  {key}: {dump_value(value)}\n" for key, value in task.items())
    return f"""\
# {name}: made by `pollard init`
#
#     pollard preview {path}      what the model will see
#     pollard estimate {path}     memory, time and disk, and what to change where it does not fit
#     pollard report {path}       the whole way on one rank; on all GPUs: deepspeed toolkit/train.py {path}
#
# Every other key: pollard recipes --reference

name: {dump_value(name)}
seed: 0
model: {dump_value(model)}

{comments}task:
{keys}
# Calibration: which experts does the task use? At most so many examples are read
calibration:
  examples: {CALIBRATED}
{_commented("max_length", length, guess)}
# Pruning: a share of the experts of each block, or their number. `pollard criteria` lists the criteria
pruning:
  criterion: weighted_ean
  keep: {dump_value(keep)}

# Fine-tuning
finetuning:
{_commented("max_length", length, guess)}  trainer:
    num_train_epochs: 3
    per_device_train_batch_size: 4
    gradient_accumulation_steps: 4

# Evaluation on the test data. An answer is cut off at max_new_tokens
evaluation:
{_commented("max_new_tokens", new, guess)}"""


def _commented(key: str, number: int, comment: str) -> str:
    line = f"  {key}: {number}"
    return f"{line:<32}{comment}\n" if comment else f"{line}\n"
