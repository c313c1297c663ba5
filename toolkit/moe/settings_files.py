"""The small files beside a checkpoint's weights."""

from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import cached_file

from toolkit.errors import PollardError
from toolkit.moe.open_errors import explained


def find_file(path: str, name: str, revision: str | None = None) -> str | None:
    """A file of a checkpoint folder, or of a hub model in the hub's cache (fetched where the hub is reached); None without it."""
    return explained(
        lambda: cached_file(
            path, name, revision=revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        ),
        path,
    )  # fmt: skip


def load_generation_config(path: str, revision: str | None = None) -> GenerationConfig | None:
    """What the checkpoint says of generation, such as its end tokens; None where it says nothing. Raises PollardError for a file
    that cannot be read, which transformers would ignore."""
    file = find_file(path, "generation_config.json", revision)
    if file is None:
        return None
    folder = str(Path(file).parent)
    settings = explained(lambda: GenerationConfig.from_pretrained(folder), folder, "generation settings")
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if not all(end is None or type(end) is int for end in ends):
        raise PollardError(
            f"{file}: eos_token_id is {settings.eos_token_id!r}, and must be a token's number, or several: [1, 2]."
        )
    return settings
