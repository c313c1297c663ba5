"""Which Pollard this is, and which versions of what it stands on: read from installed packages' metadata, imported is nothing."""

import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTION = "pollard-moe"  # `pollard` is another project on the package index
SHOWN = ("torch", "transformers", "trl", "deepspeed")


def versions(packages: Sequence[str] = SHOWN) -> str:
    """ "pollard 0.1.0 (b5c7415), torch 2.13.0, transformers 5.23.0, …"; the commit where this is a checkout."""
    commit = git_commit()
    ours = f"pollard {_version_of(DISTRIBUTION)}{f' ({commit[:7]})' if commit else ''}"
    return ", ".join([ours, *(f"{package} {_version_of(package)}" for package in packages)])


def _version_of(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


def git_commit() -> str | None:
    """The toolkit's own commit, where it stands in a git checkout; not that of a project into whose folder it is installed."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, timeout=10, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
