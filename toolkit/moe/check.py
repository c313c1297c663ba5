"""What a model's routers cannot do is said before anything starts, in numbers."""

from collections.abc import Sequence

from toolkit.errors import PollardError
from toolkit.moe.blocks import MoEBlock


def check_prunable(blocks: Sequence[MoEBlock], keep: int, experts_per_token: int) -> None:
    """Raises PollardError unless these blocks can be routed with `keep` experts each, `experts_per_token` at a time."""
    for block in blocks:
        if experts_per_token > block.experts_per_token:
            raise PollardError(
                f"The model activates {block.experts_per_token} experts per token: "
                f"pruning.experts_per_token can lower that, not raise it to {experts_per_token}."
            )
        if block.groups is None:
            continue
        groups, each = block.groups, keep // block.groups
        needed = groups * max(2, -(-experts_per_token // block.groups_per_token))
        wish = f"{keep} experts cannot be kept: {block.name} routes within {groups} group{'s' * (groups > 1)} of experts"
        if keep % groups:
            raise PollardError(f"{wish} of equal size. Give a multiple of {groups}.")
        if each < 2:
            raise PollardError(f"{wish}, ranked by the two best of each. Keep at least {needed}.")
        if block.groups_per_token * each < experts_per_token:
            raise PollardError(
                f"{wish} and takes {experts_per_token} experts per token from the best {block.groups_per_token}, which hold "
                f"only {block.groups_per_token * each}. Keep at least {needed}, or lower pruning.experts_per_token."
            )
