"""The readers' environments, for tests: made where they are not there, and where that cannot be done, the tests are skipped with
the reason."""

from functools import cache
from pathlib import Path

import pytest

from toolkit.pipeline.export.environments import ReaderEnvironment
from toolkit.runtime.errors import PollardError


@cache
def _python_or_reason(environment: ReaderEnvironment) -> Path | str:
    try:
        return environment.python(install=True)
    except PollardError as error:
        return str(error)


def python_of(environment: ReaderEnvironment) -> Path:
    """Its Python; skips the test where the environment cannot be made."""
    found = _python_or_reason(environment)
    if isinstance(found, str):
        pytest.skip(found)
    return found
