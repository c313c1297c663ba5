"""A GPU whose memory is full is no bug: what to make smaller depends on the stage."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toolkit.runtime.errors import PollardError


@contextmanager
def explained_full_memory(stage: str, smaller: Callable[[], str]) -> Iterator[None]:
    """torch's OutOfMemoryError as a PollardError; every other error passes. `smaller`: the overrides that make the stage take
    less."""
    try:
        yield
    except Exception as error:
        torch = sys.modules["torch"]
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise PollardError(
            f"The GPU's memory is full in stage {stage}. Try {smaller()}. `pollard estimate` tells what each stage "
            f"takes, and of what. Stages that are done stay done.\n(torch says: {str(error).strip().splitlines()[0]})",
            code="machine.gpu-memory-full",
        ) from error
