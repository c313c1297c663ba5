"""What can be known to be wrong with growing (`pruning.grow`) before anything is calibrated, and what should be known of it."""

from pathlib import Path

from toolkit.cuts import ExpertsCut, Plan
from toolkit.cuts.grow import plan_growth
from toolkit.moe import checkpoint_folder, find_blocks
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.first_run import FirstRun
from toolkit.pipeline.rounds import trains
from toolkit.runtime.errors import PollardError
from toolkit.selection import grown_block


def check_growth(context: RunContext) -> None:
    """Raises PollardError where the first run is not there, is this one, or its checkpoint does not fit the original."""
    first = context.first_run
    if first is None:
        return
    if first.directory.path.resolve() == context.directory.path.resolve():
        raise PollardError(
            f"pruning.grow.onto is {first.onto}, in the directory of this very run, which would replace it: give this run "
            f"another name ({context.directory.another_name}).",
            code="grow.own-run",
        )
    budget, model = context.budget, context.recipe.model
    folder = Path(checkpoint_folder(model.path, model.revision))
    plan_growth(folder, _any_growth(context, first, budget.keep))


def _any_growth(context: RunContext, first: FirstRun, keep: int) -> Plan:
    """A plan of the size that is asked for, before anything is observed: by index."""
    groups = find_blocks(context.meta_model)[0].groups or 1
    blocks = {
        name: grown_block(block, block.kept, range(block.experts), keep, groups) for name, block in first.plan.blocks.items()
    }
    cut = ExpertsCut.of(blocks, criterion=first.plan.criterion, keep=keep, onto=first.onto)
    return first.plan.model_copy(update={"cuts": [cut], "experts_per_token": context.budget.experts_per_token})


def growth_notes(context: RunContext) -> list[str]:
    """What growing costs the first task, before any training and by it."""
    first = context.first_run
    if first is None:
        return []
    notes = [_gates(first)]
    method = context.recipe.finetuning.method
    if trains(context.recipe) and method != "new":
        notes.append(
            f"finetuning.method {method} changes the tensors of {first.onto} as well, and with them what it does for its own "
            "task: finetuning.method new trains the new experts alone."
        )
    return notes


def _gates(first: FirstRun) -> str:
    return (
        f"The routers choose among the experts of {first.onto} and the new ones, also for the tokens of its own task, whose gate "
        "weights change with the choice: the report says what that costs it."
    )
