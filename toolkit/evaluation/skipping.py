"""How many experts were skipped while a model answered, where it skips any."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from toolkit.moe import SkipCount, counting_skips, find_blocks
from toolkit.moe.expert_skipping import is_skipping
from toolkit.runtime.distributed import gather, say


@contextmanager
def measured_skipping(model: PreTrainedModel) -> Iterator[dict[str, Any]]:
    """Yields what is known of it after the context, of all ranks together: nothing where the model does not skip, or no token
    passed (all answers were there already)."""
    facts: dict[str, Any] = {}
    if not is_skipping(model):
        yield facts
        return
    with counting_skips(model) as counter:
        yield facts
    count = SkipCount.merged(gather(counter.take()))
    if not any(count.tokens):
        return
    names = [block.name for block in find_blocks(model)]
    by_block = zip(names, count.tokens, count.skipped, strict=True)
    facts |= {
        "skip_rate": count.rate, "experts_skipped": count.saved,
        "skipped_per_token": {name: skipped / max(1, tokens) for name, tokens, skipped in by_block},
    }  # fmt: skip
    say(f"  {count.rate:.1%} of the experts after a token's first skipped, {count.saved:.1%} of all")
