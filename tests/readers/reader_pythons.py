"""The readers' environments, for tests. They are gigabytes: `POLLARD_TEST_READERS=install pytest tests/readers` makes what is not
there, once; otherwise, and where that cannot be done, the tests are skipped with the reason."""

import os
from functools import cache
from pathlib import Path

import pytest

from toolkit.pipeline.export.environments import ReaderEnvironment
from toolkit.runtime.errors import PollardError


@cache
def _python_or_reason(environment: ReaderEnvironment) -> Path | str:
    try:
        return environment.python(install=os.environ.get("POLLARD_TEST_READERS") == "install")
    except PollardError as error:
        return str(error)


def python_of(environment: ReaderEnvironment) -> Path:
    """Its Python; skips the test where the environment cannot be made."""
    found = _python_or_reason(environment)
    if isinstance(found, str):
        pytest.skip(found)
    return found
